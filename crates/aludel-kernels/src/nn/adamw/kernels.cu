// AdamW: four elements to a thread. `stored` may be missing.
struct Factors { float gradient_scale, beta1, rest1, beta2, rest2, keep, rate, correction, epsilon; };

__device__ __forceinline__ void renew(const Factors& f, float g, float& w, float& m, float& v) {
    float x = g * f.gradient_scale;
    m = f.beta1 * m + f.rest1 * x;
    v = f.beta2 * v + f.rest2 * x * x;
    w = w * f.keep - f.rate * m / (sqrtf(v) * f.correction + f.epsilon);
}

extern "C" __global__ void adamw(
    const float* gradient, float* master, float* first, float* second, void* stored, int type, i64 n,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float keep, float rate, float correction, float epsilon
) {
    Factors f = {gradient_scale, beta1, rest1, beta2, rest2, keep, rate, correction, epsilon};
    i64 at = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 4 <= n) {
        // Nothing of it is looked at again before the next step.
        float4 g = __ldcs((const float4*)(gradient + at)), w = __ldcs((const float4*)(master + at));
        float4 m = __ldcs((const float4*)(first + at)), v = __ldcs((const float4*)(second + at));
        renew(f, g.x, w.x, m.x, v.x);
        renew(f, g.y, w.y, m.y, v.y);
        renew(f, g.z, w.z, m.z, v.z);
        renew(f, g.w, w.w, m.w, v.w);
        __stcs((float4*)(master + at), w);
        __stcs((float4*)(first + at), m);
        __stcs((float4*)(second + at), v);
        if (stored && type == 2) {
            __stcs((uint2*)((half_bits*)stored + at), make_uint2(pack(w.x, w.y), pack(w.z, w.w)));
        } else if (stored) {
            store(stored, at, type, w.x);
            store(stored, at + 1, type, w.y);
            store(stored, at + 2, type, w.z);
            store(stored, at + 3, type, w.w);
        }
        return;
    }
    for (; at < n; at++) {
        renew(f, gradient[at], master[at], first[at], second[at]);
        if (stored) store(stored, at, type, master[at]);
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
