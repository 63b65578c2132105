// Root-mean-square norms. Rows are shared out to groups of threads, 32 or all 256 of a block; a row's eight elements to a thread at once
// where its width is a multiple of eight.

__device__ __forceinline__ float sum_of_group(float x, int group, float* room) {
    return group == 32 ? sum_of_warp(x) : sum_of_block(x, room);
}

template <typename F>
__device__ __forceinline__ void each8(i64 width, int lane, int group, F f) {
    for (i64 at = 8 * lane; at < width; at += 8 * group) f(at);
}

__device__ __forceinline__ void some8(const half_bits* x, i64 at, i64 width, float v[8]) {
    if ((width & 7) == 0) { load8(x, at, 2, v); return; }
    for (int i = 0; i < 8; i++) v[i] = at + i < width ? from_bf16(x[at + i]) : 0.0f;
}

__device__ __forceinline__ void weights8(const void* w, int type, int one_plus, i64 at, i64 width, float v[8]) {
    if ((width & 7) == 0) load8(w, at, type, v);
    else for (int i = 0; i < 8; i++) v[i] = at + i < width ? load(w, at + i, type) : 0.0f;
    if (one_plus) for (int i = 0; i < 8; i++) v[i] += 1.0f;
}

__device__ __forceinline__ void put8(half_bits* y, i64 at, i64 width, const float v[8]) {
    if ((width & 7) == 0) { store8(y, at, 2, v); return; }
    for (int i = 0; i < 8; i++) if (at + i < width) y[at + i] = to_bf16(v[i]);
}

extern "C" __global__ void rms_norm(
    const half_bits* x, const void* weight, int type, half_bits* y, float* rstd, i64 rows, i64 width, float epsilon, int one_plus, int group
) {
    __shared__ float room[32];
    int lane = threadIdx.x % group;
    i64 row = (i64)blockIdx.x * (blockDim.x / group) + threadIdx.x / group;
    if (row >= rows) return;
    x += row * width;
    y += row * width;
    float sum = 0.0f;
    each8(width, lane, group, [&](i64 at) {
        float v[8];
        some8(x, at, width, v);
        for (int i = 0; i < 8; i++) sum += v[i] * v[i];
    });
    sum = sum_of_group(sum, group, room);
    float r = 1.0f / sqrtf(sum / (float)width + epsilon);
    if (lane == 0) rstd[row] = r;
    each8(width, lane, group, [&](i64 at) {
        float v[8], g[8];
        some8(x, at, width, v);
        weights8(weight, type, one_plus, at, width, g);
        for (int i = 0; i < 8; i++) v[i] *= r * g[i];
        put8(y, at, width, v);
    });
}

extern "C" __global__ void rms_norm_backward(
    const half_bits* x, const void* weight, int type, const float* rstd, const half_bits* dy, half_bits* dx,
    i64 rows, i64 width, int one_plus, int group, int adds
) {
    __shared__ float room[32];
    int lane = threadIdx.x % group;
    i64 row = (i64)blockIdx.x * (blockDim.x / group) + threadIdx.x / group;
    if (row >= rows) return;
    x += row * width;
    dy += row * width;
    dx += row * width;
    float sum = 0.0f;
    each8(width, lane, group, [&](i64 at) {
        float v[8], d[8], g[8];
        some8(x, at, width, v);
        some8(dy, at, width, d);
        weights8(weight, type, one_plus, at, width, g);
        for (int i = 0; i < 8; i++) sum += d[i] * g[i] * v[i];
    });
    sum = sum_of_group(sum, group, room);
    float r = rstd[row], k = r * r * sum / (float)width;
    each8(width, lane, group, [&](i64 at) {
        float v[8], d[8], g[8];
        some8(x, at, width, v);
        some8(dy, at, width, d);
        weights8(weight, type, one_plus, at, width, g);
        for (int i = 0; i < 8; i++) v[i] = r * (d[i] * g[i] - v[i] * k);
        if (adds) {
            some8(dx, at, width, d);
            for (int i = 0; i < 8; i++) v[i] += d[i];
        }
        put8(dx, at, width, v);
    });
}
