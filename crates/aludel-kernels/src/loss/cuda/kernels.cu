// What losses ask for beside their rows.

// z = cap tanh(z / cap)
extern "C" __global__ void soft_cap(half_bits* z, float cap, i64 n) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) z[at] = to_bf16(cap * tanhf(from_bf16(z[at]) / cap));
}

// Distances of rows from a target, and their gradient in place; a block to a row. Kind 0 is the mean square, 1 the cosine.
extern "C" __global__ void distance_rows(
    int kind, float factor, const u32* labels, const void* target, int type, half_bits* x, i64 width, float* values
) {
    __shared__ float room[32];
    i64 row = blockIdx.x;
    x += row * width;
    if (labels[row] == 0xffffffffu) {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) x[i] = 0;
        if (threadIdx.x == 0) values[row] = 0.0f;
        return;
    }
    float ss = 0.0f, tt = 0.0f, st = 0.0f, dd = 0.0f;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float s = from_bf16(x[i]), t = load(target, row * width + i, type), d = s - t;
        ss += s * s; tt += t * t; st += s * t; dd += d * d;
    }
    ss = sum_of_block(ss, room); tt = sum_of_block(tt, room); st = sum_of_block(st, room); dd = sum_of_block(dd, room);
    float norms = sqrtf(ss) * sqrtf(tt), cosine = norms > 0.0f ? st / norms : 0.0f;
    if (threadIdx.x == 0) values[row] = kind == 0 ? dd / (float)width : 1.0f - cosine;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float s = from_bf16(x[i]), t = load(target, row * width + i, type);
        float g = kind == 0 ? 2.0f * (s - t) / (float)width : norms > 0.0f ? cosine * s / ss - t / norms : 0.0f;
        x[i] = to_bf16(factor * g);
    }
}
