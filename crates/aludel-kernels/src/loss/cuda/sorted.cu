// Distances of sorted probabilities, a block to a row. Logits have 16 bits, so that a row of any length has few values that differ: each is counted,
// nothing is sorted. A run is a value, and the ranks that its columns have; what a column gets depends on its run alone. Printed before this text:
// THREADS of a block.
#define BINS 65536
#define BINS_EACH (BINS / THREADS)
#define ARRAYS 7
#define NO_PARTNER 0xffffffffu
#define NOTHING -1e30f

// Of each term: the inverse temperature, the factor of its value, and that of its gradient.
struct Term { float inverse, value_factor, gradient_factor; };

struct Runs {
    // The run of each bin that has any, the bin of each run, and the rank after its last.
    u32 *of_bin, *bins, *ends;
    int count;
};

// Bins are numbered from the greatest number down; -0 is 0.
__device__ __forceinline__ u32 bin_of(half_bits x) {
    u32 bits = x == 0x8000u ? 0u : (u32)x;
    return 0xffffu - (bits & 0x8000u ? 0xffffu - bits : bits | 0x8000u);
}

__device__ __forceinline__ float number_of(u32 bin, int type) {
    u32 up = 0xffffu - bin;
    half_bits bits = (half_bits)(up & 0x8000u ? up & 0x7fffu : 0xffffu - up);
    float x = type == 1 ? from_f16(bits) : from_bf16(bits);
    return x < NOTHING ? NOTHING : x;
}

// The sum over threads before this one, and over all; `room` has 32 numbers.
__device__ __forceinline__ u32 before_in_block(u32 x, u32* room, u32& all) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 sum = x;
    for (int step = 1; step < 32; step <<= 1) {
        u32 other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) room[warp] = sum;
    __syncthreads();
    u32 before = 0;
    all = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        if (i < warp) before += room[i];
        all += room[i];
    }
    __syncthreads();
    return before + sum - x;
}

__device__ __forceinline__ void count_runs(const half_bits* z, int valid, Runs& runs, u32* room) {
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) runs.of_bin[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < valid; i += THREADS) atomicAdd(runs.of_bin + bin_of(z[i]), 1u);
    __syncthreads();
    u32* own = runs.of_bin + threadIdx.x * BINS_EACH;
    u32 columns = 0, filled = 0, all;
    for (int i = 0; i < BINS_EACH; i++) {
        columns += own[i];
        filled += own[i] != 0;
    }
    u32 rank = before_in_block(columns, room, all);
    u32 run = before_in_block(filled, room, all);
    runs.count = (int)all;
    for (int i = 0; i < BINS_EACH; i++) {
        if (own[i] == 0) continue;
        rank += own[i];
        own[i] = run;
        runs.bins[run] = threadIdx.x * BINS_EACH + i;
        runs.ends[run] = rank;
        run++;
    }
    __syncthreads();
}

__device__ __forceinline__ u32 begin_of(const Runs& runs, int run) { return run ? runs.ends[run - 1] : 0; }

__device__ __forceinline__ float sum_of_runs(const Runs& runs, int type, float most, float inverse, float* room) {
    float sum = 0.0f;
    for (int run = threadIdx.x; run < runs.count; run += THREADS)
        sum += (float)(runs.ends[run] - begin_of(runs, run)) * expf((number_of(runs.bins[run], type) - most) * inverse);
    return sum_of_block(sum, room);
}

// What the teacher has at each rank: runs of logits, or the likeliest one by one and equal parts after them.
struct Teacher {
    Runs runs;
    int type;
    float most, inverse, share;
    const float* known;
    int count, known_count;
    u32 columns;
    float rest;
    // Whether ranks after the last are compared with 0.
    bool goes_on;

    __device__ __forceinline__ u32 end(int run) const {
        if (!known) return runs.ends[run];
        return run < known_count ? (u32)run + 1 : columns;
    }

    __device__ __forceinline__ float p(int run) const {
        if (!known) return expf((number_of(runs.bins[run], type) - most) * inverse) * share;
        return run < known_count ? known[run] : rest;
    }
};

// `partners` are rows of the teacher. Of known columns `starts` says where each row's begin; of every term, one after another, there are
// `known` and the `rests` of rows. `scratch` has ARRAYS of BINS numbers for each block.
extern "C" __global__ void __launch_bounds__(THREADS) sorted_rows(
    const Term* terms, int term_count, int rows, const u32* labels, const u32* partners, half_bits* student, i64 stored, int valid,
    const half_bits* teacher, int type, i64 teacher_stored, int teacher_valid, const u32* starts, const float* known, i64 known_total,
    const float* rests, int known_rows, int goes_on, float label_factor, float soft_cap, int is_gradient, u32* scratch, float* values,
    int columns
) {
    __shared__ float room[32];
    __shared__ u32 counts[32];
    __shared__ u64 firsts[THREADS / 32];
    __shared__ float of_label;
    u32* own = scratch + (i64)blockIdx.x * ARRAYS * BINS;
    float *slopes = (float*)own + 5 * BINS, *gradients = (float*)own + 6 * BINS;
    Runs runs = {own, own + BINS, own + 2 * BINS, 0};
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        half_bits* z = student + row * stored;
        float* value = values + (i64)row * columns;
        u32 label = labels[row], partner = partners[row];
        if (threadIdx.x == 0)
            for (int i = 0; i < columns; i++) value[i] = 0.0f;
        if (label == 0xffffffffu) {
            if (is_gradient)
                for (i64 i = threadIdx.x; i < stored; i += THREADS) z[i] = 0;
            continue;
        }
        __syncthreads();
        bool is_taught = partner != NO_PARTNER;
        Teacher told;
        if (is_taught && known) {
            told.known_count = (int)(starts[partner + 1] - starts[partner]);
            told.columns = (u32)teacher_valid;
            told.count = told.known_count + (goes_on && told.columns > (u32)told.known_count);
        } else if (is_taught) {
            // The student's runs have the same bins next.
            told.runs = {own, own + 3 * BINS, own + 4 * BINS, 0};
            count_runs(teacher + partner * teacher_stored, teacher_valid, told.runs, counts);
            told.type = type;
            told.count = told.runs.count;
            told.most = number_of(told.runs.bins[0], type);
        }
        told.goes_on = !known || goes_on;
        count_runs(z, valid, runs, counts);
        float most = number_of(runs.bins[0], 2), of_its_label = number_of(bin_of(z[label]), 2);
        float cross_entropy = logf(sum_of_runs(runs, 2, most, 1.0f, room)) + most - of_its_label;
        u64 first = ~0ull;
        for (int i = threadIdx.x; i < valid; i += THREADS) {
            u64 place = (u64)bin_of(z[i]) << 32 | (u32)i;
            first = place < first ? place : first;
        }
        for (int step = 16; step > 0; step >>= 1) {
            u64 other = __shfl_xor_sync(0xffffffffu, first, step);
            first = other < first ? other : first;
        }
        if ((threadIdx.x & 31) == 0) firsts[threadIdx.x >> 5] = first;
        for (int run = threadIdx.x; run < runs.count; run += THREADS) gradients[run] = 0.0f;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 1; i < THREADS / 32; i++) first = firsts[i] < first ? firsts[i] : first;
            value[term_count] = cross_entropy;
            value[term_count + 1] = (u32)first == label ? 1.0f : 0.0f;
        }
        for (int t = 0; is_taught && t < term_count; t++) {
            Term term = terms[t];
            float share = 1.0f / sum_of_runs(runs, 2, most, term.inverse, room);
            told.known = known ? known + t * known_total + starts[partner] : nullptr;
            if (known) {
                told.rest = rests[(i64)t * known_rows + partner];
            } else {
                told.inverse = term.inverse;
                told.share = 1.0f / sum_of_runs(told.runs, type, told.most, term.inverse, room);
            }
            float sum = 0.0f, mean = 0.0f;
            for (int run = threadIdx.x; run < runs.count; run += THREADS) {
                u32 begin = begin_of(runs, run), end = runs.ends[run], rank = begin;
                float q = expf((number_of(runs.bins[run], 2) - most) * term.inverse) * share, slope = 0.0f;
                // The first run of the teacher that ends after this rank.
                int low = 0, high = told.count;
                while (low < high) {
                    int middle = (low + high) / 2;
                    if (told.end(middle) > rank) high = middle;
                    else low = middle + 1;
                }
                for (int other = low; rank < end && other < told.count; other++) {
                    u32 stop = told.end(other) < end ? told.end(other) : end;
                    float d = q - told.p(other), n = (float)(stop - rank);
                    sum += n * fabsf(d);
                    slope += d > 0.0f ? n : d < 0.0f ? -n : d == 0.0f ? 0.0f : d;
                    rank = stop;
                }
                if (rank < end && told.goes_on) {
                    float n = (float)(end - rank);
                    sum += n * q;
                    slope += q > 0.0f ? n : 0.0f;
                }
                mean += slope * q;
                slopes[run] = slope / (float)(end - begin);
            }
            // What the teacher has beyond the student's columns.
            for (int other = threadIdx.x; other < told.count; other += THREADS) {
                u32 end = told.end(other), begin = other ? told.end(other - 1) : 0;
                begin = begin < (u32)valid ? (u32)valid : begin;
                if (end > begin) sum += (float)(end - begin) * told.p(other);
            }
            sum = sum_of_block(sum, room);
            mean = sum_of_block(mean, room);
            if (threadIdx.x == 0) value[t] = sum * term.value_factor;
            for (int run = threadIdx.x; run < runs.count; run += THREADS) {
                float q = expf((number_of(runs.bins[run], 2) - most) * term.inverse) * share;
                gradients[run] += term.gradient_factor * q * (slopes[run] - mean);
            }
        }
        if (!is_gradient) continue;
        float most_log = cross_entropy + of_its_label;
        u32 run_of_label = runs.of_bin[bin_of(z[label])];
        for (int run = threadIdx.x; run < runs.count; run += THREADS) {
            float x = number_of(runs.bins[run], 2), back = 1.0f;
            if (soft_cap > 0.0f) back -= (x / soft_cap) * (x / soft_cap);
            if (run == (int)run_of_label) of_label = (gradients[run] + label_factor * expm1f(-cross_entropy)) * back;
            gradients[run] = (gradients[run] + label_factor * expf(x - most_log)) * back;
        }
        __syncthreads();
        for (i64 i = threadIdx.x; i < stored; i += THREADS) {
            float g = i >= valid ? 0.0f : i == label ? of_label : gradients[runs.of_bin[bin_of(z[i])]];
            z[i] = to_bf16(g);
        }
        __syncthreads();
    }
}
