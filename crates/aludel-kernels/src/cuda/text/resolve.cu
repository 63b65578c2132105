// Finds thresholds among what was sampled and swept over: the same for all formulas. A block takes one selection.

#define RESOLVERS 1024
#define BINS 2048

// Adds one to a bin, once for all threads of a warp that add to it: magnitudes share few bins.
__device__ __forceinline__ void count_in(u32* histogram, u32 bin) {
    const u32 peers = __match_any_sync(__activemask(), bin);
    if (threadIdx.x % 32 == __ffs(peers) - 1) atomicAdd(&histogram[bin], (u32)__popc(peers));
}

// The bin that holds a rank, from 1, counted from the largest bin or from the smallest, and what comes before it. By one
// warp; all its threads return the same.
__device__ void find_bin(const u32* histogram, u32 bins, bool ascending, u64 rank, u32& bin, u64& before) {
    const u32 lane = threadIdx.x % 32, width = bins / 32;
    u64 sum = 0;
    for (u32 i = lane * width; i < (lane + 1) * width; i++) sum += histogram[ascending ? i : bins - 1 - i];
    u64 through = sum;
    for (int distance = 1; distance < 32; distance *= 2) {
        const u64 left = __shfl_up_sync(0xffffffffu, through, distance);
        if (lane >= distance) through += left;
    }
    u64 passed = through - sum;
    u32 found = 0;
    const bool is_here = passed < rank && rank <= through;
    if (is_here) {
        for (u32 i = lane * width; i < (lane + 1) * width; i++) {
            found = ascending ? i : bins - 1 - i;
            if (rank <= passed + histogram[found]) break;
            passed += histogram[found];
        }
    }
    const u32 holders = __ballot_sync(0xffffffffu, is_here);
    const int holder = holders ? __ffs(holders) - 1 : 0;
    bin = __shfl_sync(0xffffffffu, found, holder);
    before = __shfl_sync(0xffffffffu, passed, holder);
}

// Brackets the threshold of every selection that was sampled: the values at the rank that is expected, and so far above and
// below it that the threshold hardly lies outside.
extern "C" __global__ void __launch_bounds__(RESOLVERS) bracket_thresholds(u64* selections) {
    __shared__ u32 histograms[3][BINS];
    __shared__ u32 prefixes[3];
    __shared__ u64 ranks[3];
    u64* of = selections + (u64)blockIdx.x * SELECTION;
    const u64 sampled = of[SAMPLED];
    if (of[COUNT] == 0 || sampled == 0) return;
    const u32* sample = (const u32*)of[SAMPLE];
    const double share = (double)of[COUNT] / (double)of[OF];
    const double middle = share * (double)sampled;
    const double spread = 6.0 * sqrt(middle * (1.0 - share)) + 8.0;
    const bool is_open_above = middle - spread < 1.0, is_open_below = middle + spread > (double)sampled;
    if (threadIdx.x < 3) {
        const double rank = middle + ((double)threadIdx.x - 1.0) * spread;
        ranks[threadIdx.x] = rank < 1.0 ? 1 : (rank > (double)sampled ? sampled : (u64)rank);
        prefixes[threadIdx.x] = 0;
    }
    int shift = 20, bits = 11;
    for (int level = 0; level < 3; level++) {
        for (u32 i = threadIdx.x; i < 3 * BINS; i += RESOLVERS) ((u32*)histograms)[i] = 0;
        __syncthreads();
        for (u64 i = threadIdx.x; i < sampled; i += RESOLVERS) {
            const u32 magnitude = sample[i];
            const u32 digit = magnitude >> shift & ((1u << bits) - 1);
            if (level == 0) {
                count_in(histograms[0], digit);
            } else {
#pragma unroll
                for (int r = 0; r < 3; r++) {
                    if (magnitude >> (shift + bits) == prefixes[r]) count_in(histograms[r], digit);
                }
            }
        }
        __syncthreads();
        const u32 warp = threadIdx.x / 32;
        u32 bin = 0;
        u64 before = 0;
        if (warp < 3) find_bin(histograms[level == 0 ? 0 : warp], 1u << bits, false, ranks[warp], bin, before);
        __syncthreads();
        if (warp < 3 && threadIdx.x % 32 == 0) {
            prefixes[warp] = prefixes[warp] << bits | bin;
            ranks[warp] -= before;
        }
        bits = 10;
        shift -= 10;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const u32 high = is_open_above ? MAGNITUDE : prefixes[0], low = is_open_below ? 0 : prefixes[2];
        of[BRACKET] = (u64)high << 32 | low;
        // A value is counted once.
        const u32 guess = prefixes[1];
        const bool low_is_guess = low == guess, high_is_known = high == guess || high == low;
        of[COUNTED] = (u64)(low_is_guess ? NOWHERE : guess) << 32 | low;
        of[COUNTED_HIGH] = high_is_known ? NOWHERE : high;
    }
}

struct Found {
    u32 value;
    u64 rank;
    u64 equal;
};

// The value at a rank, from 1: of magnitudes, the largest first and the counted ones among them, or of the indices of those
// of one magnitude, the smallest first. With it its rank among those equal to it, and how many these are.
__device__ Found value_at(
    const u64* keys, u64 count, bool by_index, u32 magnitude, u64 rank, const u32* counted, const u64* equal
) {
    __shared__ u32 histogram[BINS];
    __shared__ u32 found_bin;
    __shared__ u64 found_before;
    Found found = {0, rank, 0};
    int shift = by_index ? 21 : 20, bits = 11;
    for (int level = 0; level < 3; level++) {
        for (u32 i = threadIdx.x; i < BINS; i += RESOLVERS) histogram[i] = 0;
        __syncthreads();
        const u32 mask = (1u << bits) - 1;
        for (u64 i = threadIdx.x; i < count; i += RESOLVERS) {
            const u64 key = keys[i];
            if (by_index && (u32)(key >> 32) != magnitude) continue;
            const u32 field = by_index ? (u32)key : (u32)(key >> 32);
            if (level == 0 || field >> (shift + bits) == found.value) count_in(histogram, field >> shift & mask);
        }
        if (!by_index && threadIdx.x < COUNTED_VALUES && equal[threadIdx.x] > 0) {
            const u32 field = counted[threadIdx.x];
            if (level == 0 || field >> (shift + bits) == found.value) {
                atomicAdd(&histogram[field >> shift & mask], (u32)equal[threadIdx.x]);
            }
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            u32 bin;
            u64 before;
            find_bin(histogram, 1u << bits, by_index, found.rank, bin, before);
            if (threadIdx.x == 0) {
                found_bin = bin;
                found_before = before;
            }
        }
        __syncthreads();
        found.value = found.value << bits | found_bin;
        found.rank -= found_before;
        found.equal = histogram[found_bin];
        bits = by_index && level == 0 ? 11 : 10;
        shift -= bits;
        __syncthreads();
    }
    return found;
}

extern "C" __global__ void __launch_bounds__(RESOLVERS) resolve_thresholds(u64* selections) {
    __shared__ u64 equal[COUNTED_VALUES];
    __shared__ u32 counted[COUNTED_VALUES];
    __shared__ u64 sums[32];
    u64* of = selections + (u64)blockIdx.x * SELECTION;
    const u64 sought = of[COUNT];
    if (sought == 0) return;
    const u32* ties = (const u32*)of[TIES];
    const u64 chunks = of[CHUNKS];
    if (threadIdx.x < COUNTED_VALUES) {
        equal[threadIdx.x] = 0;
        counted[threadIdx.x] =
            threadIdx.x == 0 ? (u32)of[COUNTED] : (threadIdx.x == 1 ? (u32)(of[COUNTED] >> 32) : (u32)of[COUNTED_HIGH]);
    }
    __syncthreads();
    for (u64 i = threadIdx.x; i < chunks * COUNTED_VALUES; i += RESOLVERS) {
        if (ties[i]) atomicAdd(&equal[i % COUNTED_VALUES], (u64)ties[i]);
    }
    __syncthreads();
    const u64 above = of[ABOVE], inside = of[INSIDE];
    const u64 candidates = inside + equal[0] + equal[1] + equal[2];
    if (inside > of[CAPACITY] || sought <= above || sought > above + candidates) {
        // The sample misled: the CPU computes this tensor.
        if (threadIdx.x == 0) atomicOr((u32*)of[FLAG], 4u);
        return;
    }
    const u64* keys = (const u64*)of[KEYS_INSIDE];
    const Found found = value_at(keys, inside, false, 0, sought - above, counted, equal);
    Cut* cut = (Cut*)of[CUT];
    if (threadIdx.x == 0) {
        cut->threshold = found.value;
        cut->ties_end = ~0ULL;
    }
    if (found.rank == found.equal) return;
    int which = -1;
    for (int v = 0; v < COUNTED_VALUES; v++) {
        if (counted[v] == found.value && equal[v] > 0) which = v;
    }
    if (which < 0) {
        const Found last = value_at(keys, inside, true, found.value, found.rank, counted, equal);
        if (threadIdx.x == 0) cut->ties_end = (u64)last.value + 1;
        return;
    }
    // In which chunk the last tie lies: each thread sums a run of chunks, then one of them walks its own.
    const u64 run = (chunks + RESOLVERS - 1) / RESOLVERS;
    const u64 first = least(threadIdx.x * run, chunks), end = least(first + run, chunks);
    u64 sum = 0;
    for (u64 i = first; i < end; i++) sum += ties[i * COUNTED_VALUES + which];
    u64 through = sum;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int distance = 1; distance < 32; distance *= 2) {
        const u64 left = __shfl_up_sync(0xffffffffu, through, distance);
        if (lane >= distance) through += left;
    }
    if (lane == 31) sums[warp] = through;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) through += sums[w];
    u64 passed = through - sum;
    if (passed < found.rank && found.rank <= through) {
        for (u64 i = first; i < end; i++) {
            const u32 here = ties[i * COUNTED_VALUES + which];
            if (found.rank <= passed + here) {
                of[LOCATED] = (found.rank - passed) << 32 | i;
                break;
            }
            passed += here;
        }
    }
}
