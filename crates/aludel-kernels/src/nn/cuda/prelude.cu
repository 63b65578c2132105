// What all kernels of this folder begin with, after `instructions.cu`. Elements are 0 for f32, 1 for f16, 2 for bf16.
__device__ __forceinline__ float from_bf16(half_bits x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ float low(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }

__device__ __forceinline__ float4 four_halves(uint2 x) { return make_float4(low(x.x), high(x.x), low(x.y), high(x.y)); }

__device__ __forceinline__ float load(const void* from, i64 at, int type) {
    if (type == 0) return ((const float*)from)[at];
    half_bits x = ((const half_bits*)from)[at];
    return type == 1 ? from_f16(x) : from_bf16(x);
}

__device__ __forceinline__ void store(void* to, i64 at, int type, float x) {
    if (type == 0) ((float*)to)[at] = x;
    else ((half_bits*)to)[at] = type == 1 ? to_f16(x) : to_bf16(x);
}

__device__ __forceinline__ void unpack8(uint4 x, float v[8]) {
    v[0] = low(x.x); v[1] = high(x.x); v[2] = low(x.y); v[3] = high(x.y);
    v[4] = low(x.z); v[5] = high(x.z); v[6] = low(x.w); v[7] = high(x.w);
}

__device__ __forceinline__ uint4 pack8(const float v[8]) {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

// Eight elements from a multiple of eight on, in memory that is aligned for it.
__device__ __forceinline__ void load8(const void* from, i64 at, int type, float v[8]) {
    if (type == 2) {
        unpack8(*(const uint4*)((const half_bits*)from + at), v);
    } else if (type == 0) {
        const float4* x = (const float4*)((const float*)from + at);
        float4 a = x[0], b = x[1];
        v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w;
        v[4] = b.x; v[5] = b.y; v[6] = b.z; v[7] = b.w;
    } else {
        for (int i = 0; i < 8; i++) v[i] = load(from, at + i, 1);
    }
}

__device__ __forceinline__ void store8(void* to, i64 at, int type, const float v[8]) {
    if (type == 2) {
        *(uint4*)((half_bits*)to + at) = pack8(v);
    } else if (type == 0) {
        float4* y = (float4*)((float*)to + at);
        y[0] = make_float4(v[0], v[1], v[2], v[3]);
        y[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        for (int i = 0; i < 8; i++) store(to, at + i, 1, v[i]);
    }
}

__device__ __forceinline__ float sum_of_warp(float x) {
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float greatest_of_warp(float x) {
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Of all threads of a block, which are a multiple of 32; every thread has the sum. `room` has 32 floats, and is free again.
__device__ __forceinline__ float sum_of_block(float x, float* room) {
    x = sum_of_warp(x);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    if (lane == 0) room[warp] = x;
    __syncthreads();
    x = sum_of_warp(lane < warps ? room[lane] : 0.0f);
    __syncthreads();
    return x;
}
