// Reduces chunks to partial results as the CPU does: sixteen lanes of f64, each adding every sixteenth element in order,
// joined neighbour by neighbour. A block takes one chunk.

#define SUM 0
#define DOT 1
#define MAGNITUDES 2
#define LARGEST 3
#define GREATEST 4
#define LANES 16
#define STEP (THREADS * V)

__device__ __forceinline__ double join(int fold, double a, double b) {
    return fold >= LARGEST ? (b > a ? b : a) : a + b;
}

__device__ __forceinline__ double taken(int fold, double folded, float x, float y) {
    if (fold == SUM) return folded + (double)x;
    if (fold == DOT) return folded + (double)x * (double)y;
    if (fold == MAGNITUDES) return folded + (double)fabsf(x);
    return join(fold, folded, (double)(fold == LARGEST ? fabsf(x) : x));
}

extern "C" __global__ void __launch_bounds__(THREADS)
reduce_chunks(const u64* tensors, const uint2* blocks, const float* scalars, double* partials, u32* flags) {
    __shared__ float staged[OUT][STEP];
    __shared__ double lanes[REDUCTIONS][LANES];
    const int folds[REDUCTIONS] = FOLDS;
    const int xs[REDUCTIONS] = FOLD_X;
    const int ys[REDUCTIONS] = FOLD_Y;
    const uint2 at = blocks[blockIdx.x];
    const u64* tensor = tensors + (u64)at.x * WORDS;
    const Known known = known_of(tensor, scalars + (u64)at.x * SCALARS);
    const u64 elements = tensor[ELEMENTS];
    const u64 start = at.y * CHUNK, end = least(start + CHUNK, elements);
    const int reduction = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    int fold = SUM, x = 0, y = 0;
#pragma unroll
    for (int r = 0; r < REDUCTIONS; r++) {
        if (r == reduction) { fold = folds[r]; x = xs[r]; y = ys[r]; }
    }
    double folded = fold == GREATEST ? __longlong_as_double(0xfff0000000000000LL) : 0.0;
    u32 met = 0;
    for (u64 step = start; step < end; step += STEP) {
        const u64 base = step + (u64)threadIdx.x * V;
        float out[OUT][V];
        values(known, base, elements, out, met);
#pragma unroll
        for (int k = 0; k < OUT; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) staged[k][threadIdx.x * V + j] = out[k][j];
        }
        __syncthreads();
        if (reduction < REDUCTIONS) {
            const int length = (int)least(STEP, end - step);
#pragma unroll 8
            for (int i = lane; i < length; i += LANES) folded = taken(fold, folded, staged[x][i], staged[y][i]);
        }
        __syncthreads();
    }
    if (reduction < REDUCTIONS) lanes[reduction][lane] = folded;
    __syncthreads();
    if (threadIdx.x < REDUCTIONS) {
        double* of = lanes[threadIdx.x];
        int of_fold = SUM;
#pragma unroll
        for (int r = 0; r < REDUCTIONS; r++) {
            if (r == threadIdx.x) of_fold = folds[r];
        }
        for (int length = LANES / 2; length >= 1; length /= 2) {
            for (int i = 0; i < length; i++) of[i] = join(of_fold, of[2 * i], of[2 * i + 1]);
        }
        partials[(u64)blockIdx.x * REDUCTIONS + threadIdx.x] = of[0];
    }
    if (met & NOT_FINITE) atomicOr(flags + at.x, 1u);
}
