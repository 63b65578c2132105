// Looks at the magnitudes that a formula selects by: samples them, sweeps over them, and locates the last tie kept.

// An integer hash: where in its share of the tensor a vector is sampled.
__device__ __forceinline__ u32 scattered(u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sample_magnitudes(const u64* tensors, const float* scalars, const u64* selections) {
    const u32 at = blockIdx.x / SAMPLING_BLOCKS;
    const u64* sought = selections + (u64)at * OUT * SELECTION;
    const u64* tensor = tensors + (u64)at * WORDS;
    const u64 vectors = sought[SAMPLED] / V;
    if (vectors == 0) return;
    const Known known = known_of(tensor, scalars + (u64)at * SCALARS);
    const u64 elements = tensor[ELEMENTS];
    const u64 share = elements / V / vectors;
    u64 samples[OUT];
#pragma unroll
    for (int k = 0; k < OUT; k++) samples[k] = sought[k * SELECTION + SAMPLE];
    const u64 first = (u64)(blockIdx.x % SAMPLING_BLOCKS) * THREADS + threadIdx.x;
    for (u64 vector = first; vector < vectors; vector += SAMPLING_BLOCKS * THREADS) {
        const u64 base = (vector * share + scattered((u32)vector) % share) * V;
        float out[OUT][V];
        u32 met = 0;
        values(known, base, elements, out, met);
#pragma unroll
        for (int k = 0; k < OUT; k++) {
            u32 magnitudes[V];
#pragma unroll
            for (int j = 0; j < V; j++) magnitudes[j] = __float_as_uint(out[k][j]) & MAGNITUDE;
            store32(magnitudes, samples[k], vector * V, vectors * V);
        }
    }
}

struct Bracket {
    u32 low, span, high, counted[COUNTED_VALUES];
};

// What one thread has counted for one selection.
struct Tally {
    u32 above, equal[COUNTED_VALUES];
};

// Counts the magnitudes of V elements, the first `length` of which are there; `true` of an element says that it lies in the
// bracket and is none of the counted values.
template <bool WHOLE>
__device__ __forceinline__ u32 tally(const float (&x)[V], const Bracket& bracket, const u32 length, Tally& tally) {
    u32 inside = 0;
    if (bracket.span == 0) {
        // One value, which is counted: so it is where many task vectors share it.
#pragma unroll
        for (int j = 0; j < V; j++) {
            const u32 magnitude = __float_as_uint(x[j]) & MAGNITUDE;
            tally.above += (WHOLE || j < length) && magnitude > bracket.high;
            tally.equal[0] += (WHOLE || j < length) && magnitude == bracket.low;
        }
        return 0;
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        const u32 magnitude = __float_as_uint(x[j]) & MAGNITUDE;
        tally.above += (WHOLE || j < length) && magnitude > bracket.high;
        if ((WHOLE || j < length) && magnitude - bracket.low <= bracket.span) {
            bool is_counted = false;
#pragma unroll
            for (int v = 0; v < COUNTED_VALUES; v++) {
                const bool is_equal = magnitude == bracket.counted[v];
                tally.equal[v] += is_equal;
                is_counted |= is_equal;
            }
            inside |= is_counted ? 0u : 1u << j;
        }
    }
    return inside;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sweep_magnitudes(const u64* tensors, const uint2* blocks, const float* scalars, u64* selections, u32* flags) {
    __shared__ u32 staged_magnitudes[OUT][STAGED];
    __shared__ unsigned short staged_offsets[OUT][STAGED];
    __shared__ u32 staged[OUT];
    __shared__ u32 sums[OUT][1 + COUNTED_VALUES];
    __shared__ u64 places[OUT];
    const uint2 at = blocks[blockIdx.x];
    u64* sought = selections + (u64)at.x * OUT * SELECTION;
    const u64* tensor = tensors + (u64)at.x * WORDS;
    const Known known = known_of(tensor, scalars + (u64)at.x * SCALARS);
    const u64 elements = tensor[ELEMENTS];
    const u64 start = at.y * CHUNK, end = least(start + CHUNK, elements);
    Bracket brackets[OUT];
    Tally tallies[OUT];
#pragma unroll
    for (int k = 0; k < OUT; k++) {
        const u64* of = sought + k * SELECTION;
        brackets[k].low = (u32)of[BRACKET];
        brackets[k].high = (u32)(of[BRACKET] >> 32);
        brackets[k].span = brackets[k].high - brackets[k].low;
        brackets[k].counted[0] = (u32)of[COUNTED];
        brackets[k].counted[1] = (u32)(of[COUNTED] >> 32);
        brackets[k].counted[2] = (u32)of[COUNTED_HIGH];
        tallies[k].above = 0;
#pragma unroll
        for (int v = 0; v < COUNTED_VALUES; v++) tallies[k].equal[v] = 0;
    }
    if (threadIdx.x < OUT) staged[threadIdx.x] = 0;
    if (threadIdx.x < OUT * (1 + COUNTED_VALUES)) ((u32*)sums)[threadIdx.x] = 0;
    __syncthreads();
    u32 met = 0;
    for (u64 base = start + (u64)threadIdx.x * V; base < end; base += THREADS * V) {
        float out[OUT][V];
        values(known, base, elements, out, met);
        const u32 length = (u32)least(V, elements - base);
#pragma unroll
        for (int k = 0; k < OUT; k++) {
            const u32 inside = length == V ? tally<true>(out[k], brackets[k], length, tallies[k])
                                           : tally<false>(out[k], brackets[k], length, tallies[k]);
            if (inside == 0) continue;
            u32 place = atomicAdd(&staged[k], __popc(inside));
#pragma unroll
            for (int j = 0; j < V; j++) {
                if ((inside >> j & 1u) == 0) continue;
                const u32 magnitude = __float_as_uint(out[k][j]) & MAGNITUDE;
                if (place < STAGED) {
                    staged_magnitudes[k][place] = magnitude;
                    staged_offsets[k][place] = (unsigned short)(base + j - start);
                } else {
                    u64* of = sought + k * SELECTION;
                    const u64 into = atomicAdd(of + INSIDE, 1ULL);
                    if (into < of[CAPACITY]) ((u64*)of[KEYS_INSIDE])[into] = (u64)magnitude << 32 | (base + j);
                }
                place++;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < OUT; k++) {
        u32 counts[1 + COUNTED_VALUES] = {tallies[k].above, tallies[k].equal[0], tallies[k].equal[1], tallies[k].equal[2]};
#pragma unroll
        for (int c = 0; c < 1 + COUNTED_VALUES; c++) {
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) {
                counts[c] += __shfl_down_sync(0xffffffffu, counts[c], distance);
            }
            if (threadIdx.x % 32 == 0 && counts[c]) atomicAdd(&sums[k][c], counts[c]);
        }
    }
    __syncthreads();
    if (threadIdx.x < OUT) {
        u64* of = sought + threadIdx.x * SELECTION;
        if (sums[threadIdx.x][0]) atomicAdd(of + ABOVE, (u64)sums[threadIdx.x][0]);
        for (int v = 0; v < COUNTED_VALUES; v++) {
            ((u32*)of[TIES])[at.y * COUNTED_VALUES + v] = sums[threadIdx.x][1 + v];
        }
        const u32 count = staged[threadIdx.x] < STAGED ? staged[threadIdx.x] : STAGED;
        places[threadIdx.x] = count ? atomicAdd(of + INSIDE, (u64)count) : 0;
    }
    __syncthreads();
    for (int k = 0; k < OUT; k++) {
        const u64* of = sought + k * SELECTION;
        const u32 count = staged[k] < STAGED ? staged[k] : STAGED;
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            const u64 into = places[k] + i;
            if (into < of[CAPACITY]) {
                ((u64*)of[KEYS_INSIDE])[into] = (u64)staged_magnitudes[k][i] << 32 | (start + staged_offsets[k][i]);
            }
        }
    }
    if (met & NOT_FINITE) atomicOr(flags + at.x, 1u);
}

// One block for each selection whose last tie lies in a chunk that is known.
extern "C" __global__ void __launch_bounds__(THREADS)
locate_ties(const u64* tensors, const float* scalars, const u64* selections) {
    __shared__ u32 counts[THREADS];
    __shared__ u32 before;
    const u32 at = blockIdx.x / OUT, which = blockIdx.x % OUT;
    const u64* of = selections + (u64)blockIdx.x * SELECTION;
    const u32 chunk = (u32)of[LOCATED], tie = (u32)(of[LOCATED] >> 32);
    if (of[COUNT] == 0 || tie == 0) return;
    const u64* tensor = tensors + (u64)at * WORDS;
    const Known known = known_of(tensor, scalars + (u64)at * SCALARS);
    const u64 elements = tensor[ELEMENTS];
    Cut* cut = (Cut*)of[CUT];
    const u32 threshold = (u32)cut->threshold;
    const u64 start = chunk * CHUNK, end = least(start + CHUNK, elements);
    if (threadIdx.x == 0) before = 0;
    for (u64 step = start; step < end; step += THREADS * V) {
        const u64 base = step + (u64)threadIdx.x * V;
        float out[OUT][V];
        u32 met = 0;
        values(known, base, elements, out, met);
        u32 ties = 0;
#pragma unroll
        for (int k = 0; k < OUT; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                const bool is_tie = base + j < elements && (__float_as_uint(out[k][j]) & MAGNITUDE) == threshold;
                if (k == which && is_tie) ties |= 1u << j;
            }
        }
        __syncthreads();
        counts[threadIdx.x] = __popc(ties);
        __syncthreads();
        // Inclusive sums over the threads.
        for (u32 distance = 1; distance < THREADS; distance *= 2) {
            const u32 left = threadIdx.x >= distance ? counts[threadIdx.x - distance] : 0;
            __syncthreads();
            counts[threadIdx.x] += left;
            __syncthreads();
        }
        const u32 mine = before + counts[threadIdx.x] - __popc(ties);
        if (mine < tie && tie <= mine + __popc(ties)) {
            u32 rest = tie - mine;
            for (int j = 0; j < V; j++) {
                rest -= ties >> j & 1u;
                if (rest == 0) {
                    cut->ties_end = base + j + 1;
                    break;
                }
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) before += counts[THREADS - 1];
    }
}
