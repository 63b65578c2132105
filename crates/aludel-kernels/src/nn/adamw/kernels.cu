// AdamW over pieces of parameters, a block of 256 threads to each; pieces are multiples of 256. What a half of a master is stands in `split.rs`.
#define PIECE (128 * 256)

// Words of `Place::words`.
struct Place {
    const void* gradient;
    float* master;
    half_bits* weights;
    half_bits* remainders;
    void* first;
    void* second;
    float* first_scales;
    float* second_scales;
    i64 len, first_piece, number, decays, gradient_type;
};

// The norm of gradients, and what clips them, which is not a number where the norm is not finite: of sums of squares, by one block.
struct Clip {
    double norm;
    float scale;
};

extern "C" __global__ void clip(const double* sums, int count, i64 limit, Clip* to) {
    __shared__ double room[256];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    room[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
    }
    if (threadIdx.x == 0) {
        double norm = sqrt(room[0]), scale = __longlong_as_double(limit) / (norm + 1e-6);
        to->norm = norm;
        // A difference of an infinity from itself is no number.
        to->scale = norm - norm == 0.0 ? (float)(scale < 1.0 ? scale : 1.0) : __int_as_float(0x7fc00000);
    }
}

struct Factors { float gradient_scale, beta1, rest1, beta2, rest2, keep, rate, correction, epsilon; };

__device__ __forceinline__ void renew(const Factors& f, float g, float& w, float& m, float& v) {
    float x = g * f.gradient_scale;
    m = f.beta1 * m + f.rest1 * x;
    v = f.beta2 * v + f.rest2 * x * x;
    // Both within two units of the last place, and nothing below 2^-126: exact ones would take longer than memory does.
    w = w * f.keep - divide_fast(f.rate * m, sqrt_fast(v) * f.correction + f.epsilon);
}

__device__ __forceinline__ float gradient_at(const Place& p, i64 at) { return load(p.gradient, at, (int)p.gradient_type); }

__device__ __forceinline__ float4 gradient4(const Place& p, i64 at) {
    if (p.gradient_type == 0) return __ldcs((const float4*)((const float*)p.gradient + at));
    return four_halves(__ldcs((const uint2*)((const half_bits*)p.gradient + at)));
}

__device__ __forceinline__ half_bits nearest(float x) { return (half_bits)((__float_as_uint(x) + 0x8000u) >> 16); }
__device__ __forceinline__ float joined(u32 weight, u32 remainder) { return __uint_as_float(((weight - (remainder >> 15)) << 16) | remainder); }

__device__ __forceinline__ float master_at(const Place& p, i64 at) { return p.master ? p.master[at] : joined(p.weights[at], p.remainders[at]); }

__device__ __forceinline__ void put_master(const Place& p, i64 at, float w) {
    if (p.master) p.master[at] = w;
    else p.remainders[at] = (half_bits)__float_as_uint(w);
    if (p.weights) p.weights[at] = nearest(w);
}

__device__ __forceinline__ float4 joined4(uint2 weights, uint2 remainders) {
    return make_float4(
        joined(weights.x & 0xffffu, remainders.x & 0xffffu), joined(weights.x >> 16, remainders.x >> 16),
        joined(weights.y & 0xffffu, remainders.y & 0xffffu), joined(weights.y >> 16, remainders.y >> 16)
    );
}

__device__ __forceinline__ u32 two(u32 low, u32 high) { return low | high << 16; }

__device__ __forceinline__ uint2 nearest4(float4 w) {
    return make_uint2(two(nearest(w.x), nearest(w.y)), two(nearest(w.z), nearest(w.w)));
}

__device__ __forceinline__ u32 low16(float x) { return __float_as_uint(x) & 0xffffu; }

extern "C" __global__ void __launch_bounds__(256) adamw(
    const Place* places, const u32* owners, const Clip* norm,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float keep, float rate, float correction, float epsilon
) {
    const Place p = places[owners[blockIdx.x]];
    if (norm) gradient_scale *= norm->scale;
    if (gradient_scale != gradient_scale) return;
    Factors f = {gradient_scale, beta1, rest1, beta2, rest2, p.decays ? keep : 1.0f, rate, correction, epsilon};
    i64 start = ((i64)blockIdx.x - p.first_piece) * PIECE, end = min(start + PIECE, p.len);
    float *first = (float*)p.first, *second = (float*)p.second;
    for (i64 at = start + 4 * threadIdx.x; at < end; at += 4 * 256) {
        if (at + 4 <= end) {
            // Nothing of it is looked at again before the next step.
            float4 g = gradient4(p, at), w;
            if (p.master) w = __ldcs((const float4*)(p.master + at));
            else w = joined4(__ldcs((const uint2*)(p.weights + at)), __ldcs((const uint2*)(p.remainders + at)));
            float4 m = __ldcs((const float4*)(first + at)), v = __ldcs((const float4*)(second + at));
            renew(f, g.x, w.x, m.x, v.x);
            renew(f, g.y, w.y, m.y, v.y);
            renew(f, g.z, w.z, m.z, v.z);
            renew(f, g.w, w.w, m.w, v.w);
            __stcs((float4*)(first + at), m);
            __stcs((float4*)(second + at), v);
            if (p.master) __stcs((float4*)(p.master + at), w);
            else __stcs((uint2*)(p.remainders + at), make_uint2(two(low16(w.x), low16(w.y)), two(low16(w.z), low16(w.w))));
            if (p.weights) __stcs((uint2*)(p.weights + at), nearest4(w));
            continue;
        }
        for (i64 i = at; i < end; i++) {
            float w = master_at(p, i);
            renew(f, gradient_at(p, i), w, first[i], second[i]);
            put_master(p, i, w);
        }
    }
}

// AdamW with moments in eight bits: 256 elements share a scale. What a code is stands in `blockwise.rs`.
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

// Eight elements of a parameter: four that stand together, and the four that stand 128 after them.
struct Eight {
    float g[8], w[8], m[8], v[8];
};

__device__ __forceinline__ void four(float* to, float4 x) { to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w; }
__device__ __forceinline__ float4 four(const float* x) { return make_float4(x[0], x[1], x[2], x[3]); }
__device__ __forceinline__ int place_of(int i) { return i / 4 * 128 + i % 4; }
__device__ __forceinline__ u32 byte_of(const u32* codes, int i) { return codes[i / 4] >> 8 * (i % 4) & 0xffu; }

__device__ __forceinline__ void read4(const Place& p, i64 at, float* g, float* w) {
    four(g, gradient4(p, at));
    if (p.master) four(w, __ldcs((const float4*)(p.master + at)));
    else four(w, joined4(__ldcs((const uint2*)(p.weights + at)), __ldcs((const uint2*)(p.remainders + at))));
}

__device__ __forceinline__ void put4(const Place& p, i64 at, float4 w) {
    if (p.master) __stcs((float4*)(p.master + at), w);
    else __stcs((uint2*)(p.remainders + at), make_uint2(two(low16(w.x), low16(w.y)), two(low16(w.z), low16(w.w))));
    if (p.weights) __stcs((uint2*)(p.weights + at), nearest4(w));
}

// A warp to the elements that share a scale, eight to a thread.
extern "C" __global__ void __launch_bounds__(256) adamw8(
    const Place* places, const u32* owners, int seed, const Clip* norm,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float keep, float rate, float correction, float epsilon
) {
    const Place p = places[owners[blockIdx.x]];
    if (norm) gradient_scale *= norm->scale;
    if (gradient_scale != gradient_scale) return;
    Factors f = {gradient_scale, beta1, rest1, beta2, rest2, p.decays ? keep : 1.0f, rate, correction, epsilon};
    i64 start = ((i64)blockIdx.x - p.first_piece) * PIECE, end = min(start + PIECE, p.len);
    unsigned char *first = (unsigned char*)p.first, *second = (unsigned char*)p.second;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (i64 begin = start + 256 * warp; begin < end; begin += 256 * 8) {
        // A whole block has no conditions. What a loop is unrolled for stays in registers.
        i64 at = begin + 4 * lane, scale = begin / 256;
        bool is_whole = begin + 256 <= end;
        float m_scale = p.first_scales[scale], v_scale = p.second_scales[scale];
        Eight e = {};
        u32 m_codes[2] = {0, 0}, v_codes[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            i64 own = at + place_of(i);
            if (is_whole) {
                if (i % 4 != 0) continue;
                read4(p, own, e.g + i, e.w + i);
                m_codes[i / 4] = __ldcs((const u32*)(first + own));
                v_codes[i / 4] = __ldcs((const u32*)(second + own));
            } else if (own < end) {
                e.g[i] = gradient_at(p, own);
                e.w[i] = master_at(p, own);
                m_codes[i / 4] |= (u32)first[own] << 8 * (i % 4);
                v_codes[i / 4] |= (u32)second[own] << 8 * (i % 4);
            }
        }
        float most_m = 0.0f, most_v = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            e.m[i] = decode(byte_of(m_codes, i), 127, m_scale);
            e.v[i] = decode(byte_of(v_codes, i), 255, v_scale);
            // Beyond the end all are zero, and stay so.
            renew(f, e.g[i], e.w[i], e.m[i], e.v[i]);
            most_m = fmaxf(most_m, fabsf(e.m[i]));
            most_v = fmaxf(most_v, e.v[i]);
        }
        most_m = greatest_of_warp(most_m);
        most_v = greatest_of_warp(most_v);
        float m_factor = most_m > 0.0f ? 1.0f / most_m : 0.0f, v_factor = most_v > 0.0f ? 1.0f / most_v : 0.0f;
        u32 m_bytes[2] = {0, 0}, v_bytes[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 noise = mix((u32)seed ^ (u32)(p.number + at + place_of(i)));
            u32 code = encode(fabsf(e.m[i] * m_factor), noise & ((1u << LOST) - 1), 127);
            m_bytes[i / 4] |= (code | (__float_as_uint(e.m[i]) >> 31) << 7) << 8 * (i % 4);
            code = encode(e.v[i] * v_factor, noise >> (32 - LOST), 255);
            v_bytes[i / 4] |= max(code, (u32)(e.v[i] > 0.0f)) << 8 * (i % 4);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            i64 own = at + place_of(i);
            if (is_whole) {
                if (i % 4 != 0) continue;
                put4(p, own, four(e.w + i));
                __stcs((u32*)(first + own), m_bytes[i / 4]);
                __stcs((u32*)(second + own), v_bytes[i / 4]);
            } else if (own < end) {
                put_master(p, own, e.w[i]);
                first[own] = (unsigned char)byte_of(m_bytes, i);
                second[own] = (unsigned char)byte_of(v_bytes, i);
            }
        }
        if (lane == 0) {
            p.first_scales[scale] = most_m;
            p.second_scales[scale] = most_v;
        }
    }
}
