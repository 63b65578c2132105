// AdamW: four elements to a thread. `stored` may be missing.
extern "C" __global__ void adamw(
    const float* gradient, float* master, float* first, float* second, void* stored, int type, i64 n,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float keep, float rate, float correction, float epsilon
) {
    i64 at = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    int count = (int)min((i64)4, n - at);
    __align__(16) float g[4], w[4], m[4], v[4];
    if (count == 4) {
        *(float4*)g = *(const float4*)(gradient + at);
        *(float4*)w = *(const float4*)(master + at);
        *(float4*)m = *(const float4*)(first + at);
        *(float4*)v = *(const float4*)(second + at);
    } else {
        for (int i = 0; i < count; i++) {
            g[i] = gradient[at + i]; w[i] = master[at + i]; m[i] = first[at + i]; v[i] = second[at + i];
        }
    }
    for (int i = 0; i < count; i++) {
        float x = g[i] * gradient_scale;
        m[i] = beta1 * m[i] + rest1 * x;
        v[i] = beta2 * v[i] + rest2 * x * x;
        w[i] = w[i] * keep - rate * m[i] / (sqrtf(v[i]) * correction + epsilon);
    }
    if (count == 4) {
        *(float4*)(master + at) = *(float4*)w;
        *(float4*)(first + at) = *(float4*)m;
        *(float4*)(second + at) = *(float4*)v;
        if (stored && type == 2) *(uint2*)((half_bits*)stored + at) = make_uint2(pack(w[0], w[1]), pack(w[2], w[3]));
        else if (stored) for (int i = 0; i < 4; i++) store(stored, at + i, type, w[i]);
    } else {
        for (int i = 0; i < count; i++) {
            master[at + i] = w[i]; first[at + i] = m[i]; second[at + i] = v[i];
            if (stored) store(stored, at + i, type, w[i]);
        }
    }
}

// AdamW with moments in eight bits: a block of 256 threads to 256 elements that share a scale. What a code is stands in `blockwise.rs`.
#define LOST 20
#define ONE (0x3f800000u >> LOST)

__device__ __forceinline__ u32 mix(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

__device__ __forceinline__ float decode(u32 code, u32 largest, float scale) {
    u32 magnitude = code & largest;
    u32 bits = magnitude == 0 ? 0 : (magnitude + (ONE - largest)) << LOST;
    return __uint_as_float(bits | (code & ~largest) << 24) * scale;
}

__device__ __forceinline__ u32 encode(float share, u32 noise, u32 largest) {
    u32 kept = (__float_as_uint(share) + noise) >> LOST;
    return kept < ONE - largest ? 0 : min(kept - (ONE - largest), largest);
}

__device__ __forceinline__ float greatest(float x, float* room) {
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
    __syncthreads();
    x = room[0];
    for (int i = 1; i < 8; i++) x = fmaxf(x, room[i]);
    __syncthreads();
    return x;
}

extern "C" __global__ void adamw8(
    const float* gradient, float* master, unsigned char* first, float* first_scales, unsigned char* second, float* second_scales,
    void* stored, int type, i64 n, int seed,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float keep, float rate, float correction, float epsilon
) {
    __shared__ float room[8];
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    bool is_there = at < n;
    float m = 0.0f, v = 0.0f;
    if (is_there) {
        float x = gradient[at] * gradient_scale;
        m = beta1 * decode(first[at], 127, first_scales[blockIdx.x]) + rest1 * x;
        v = beta2 * decode(second[at], 255, second_scales[blockIdx.x]) + rest2 * x * x;
        float w = master[at] * keep - rate * m / (sqrtf(v) * correction + epsilon);
        master[at] = w;
        if (stored) store(stored, at, type, w);
    }
    float most_m = greatest(fabsf(m), room), most_v = greatest(v, room);
    if (is_there) {
        u32 noise = mix((u32)seed ^ (u32)at);
        float m_factor = most_m > 0.0f ? 1.0f / most_m : 0.0f, v_factor = most_v > 0.0f ? 1.0f / most_v : 0.0f;
        u32 code = encode(fabsf(m * m_factor), noise & ((1u << LOST) - 1), 127);
        first[at] = (unsigned char)(code | (__float_as_uint(m) >> 31) << 7);
        code = encode(v * v_factor, noise >> (32 - LOST), 255);
        second[at] = (unsigned char)max(code, (u32)(v > 0.0f));
        if (threadIdx.x == 0) {
            first_scales[blockIdx.x] = most_m;
            second_scales[blockIdx.x] = most_v;
        }
    }
}
