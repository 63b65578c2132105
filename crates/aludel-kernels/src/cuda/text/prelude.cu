// What every kernel begins with: how elements are loaded, decoded, encoded and stored, and the numbers of random streams.
// V elements are computed at once by a thread. Compiled without fused multiplication, so that the bits are the CPU's.

typedef unsigned int u32;
typedef unsigned long long u64;

#define CHUNK 65536ULL
#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

// Words that describe a tensor: its elements, its output, its cuts, the keys of its streams, then its inputs.
#define ELEMENTS 0
#define OUTPUT 1
#define CUTS 2
#define KEYS 3
#define INPUTS 4

struct Cut {
    u64 threshold;
    u64 ties_end;
};

__device__ __forceinline__ u64 least(u64 a, u64 b) {
    return a < b ? a : b;
}

__device__ __forceinline__ void load16(u32 (&raw)[V], const u64 from, const u64 base, const u64 elements) {
    const unsigned short* at = (const unsigned short*)from + base;
    if (base + V <= elements) {
        const uint2* words = (const uint2*)at;
#if V % 8 == 0
        const uint4* wide = (const uint4*)at;
#pragma unroll
        for (int q = 0; q < V / 8; q++) {
            const uint4 w = __ldg(wide + q);
            const u32 pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int p = 0; p < 4; p++) {
                raw[8 * q + 2 * p] = pairs[p] & 0xffffu;
                raw[8 * q + 2 * p + 1] = pairs[p] >> 16;
            }
        }
#else
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            const uint2 w = __ldg(words + q);
            raw[4 * q] = w.x & 0xffffu;
            raw[4 * q + 1] = w.x >> 16;
            raw[4 * q + 2] = w.y & 0xffffu;
            raw[4 * q + 3] = w.y >> 16;
        }
#endif
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) raw[j] = base + j < elements ? at[j] : 0;
    }
}

__device__ __forceinline__ void load32(u32 (&raw)[V], const u64 from, const u64 base, const u64 elements) {
    const u32* at = (const u32*)from + base;
    if (base + V <= elements) {
        const uint4* words = (const uint4*)at;
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            const uint4 w = __ldg(words + q);
            raw[4 * q] = w.x;
            raw[4 * q + 1] = w.y;
            raw[4 * q + 2] = w.z;
            raw[4 * q + 3] = w.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) raw[j] = base + j < elements ? at[j] : 0;
    }
}

__device__ __forceinline__ float decode_f32(u32 raw) {
    return __uint_as_float(raw);
}

__device__ __forceinline__ float decode_bf16(u32 raw) {
    return __uint_as_float(raw << 16);
}

__device__ __forceinline__ float decode_f16(u32 raw) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)raw));
    return value;
}

__device__ __forceinline__ u32 encode_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    return (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
}

__device__ __forceinline__ u32 encode_f16(float value) {
    unsigned short raw;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(raw) : "f"(value));
    return raw;
}

__device__ __forceinline__ void store16(const u32 (&raw)[V], const u64 to, const u64 base, const u64 elements) {
    unsigned short* at = (unsigned short*)to + base;
    if (base + V <= elements) {
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            uint2 w;
            w.x = raw[4 * q] | raw[4 * q + 1] << 16;
            w.y = raw[4 * q + 2] | raw[4 * q + 3] << 16;
#if V % 8 == 0
            if (q % 2 == 0) {
                uint4 wide;
                wide.x = w.x;
                wide.y = w.y;
                wide.z = raw[4 * q + 4] | raw[4 * q + 5] << 16;
                wide.w = raw[4 * q + 6] | raw[4 * q + 7] << 16;
                ((uint4*)at)[q / 2] = wide;
            }
#else
            ((uint2*)at)[q] = w;
#endif
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (base + j < elements) at[j] = (unsigned short)raw[j];
        }
    }
}

__device__ __forceinline__ void store32(const u32 (&raw)[V], const u64 to, const u64 base, const u64 elements) {
    u32* at = (u32*)to + base;
    if (base + V <= elements) {
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            ((uint4*)at)[q] = make_uint4(raw[4 * q], raw[4 * q + 1], raw[4 * q + 2], raw[4 * q + 3]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (base + j < elements) at[j] = raw[j];
        }
    }
}

// The words of V elements of a random stream: Philox4x32 of seven rounds, four elements to a block. The base is a multiple
// of four.
__device__ __forceinline__ void draw(u32 (&words)[V], const u64 key, const u64 base) {
#pragma unroll
    for (int q = 0; q < V / 4; q++) {
        const u64 block = base / 4 + q;
        u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = 0, c3 = 0;
        u32 k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
        for (int round = 0; round < 7; round++) {
            const u32 high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
            const u32 high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
            c0 = high1 ^ c1 ^ k0;
            c1 = low1;
            c2 = high0 ^ c3 ^ k1;
            c3 = low0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[4 * q] = c0;
        words[4 * q + 1] = c1;
        words[4 * q + 2] = c2;
        words[4 * q + 3] = c3;
    }
}

__device__ __forceinline__ float unit(u32 word) {
    return (float)(word >> 8) * (1.0f / 16777216.0f);
}

__device__ __forceinline__ float number(bool condition) {
    return condition ? 1.0f : 0.0f;
}

// 1 where the magnitude is above the cut's threshold, or equal to it before the end of the ties that are kept.
__device__ __forceinline__ bool kept(float x, u32 threshold, u64 ties_end, u64 index) {
    const u32 magnitude = __float_as_uint(x) & MAGNITUDE;
    return magnitude > threshold || (magnitude == threshold && index < ties_end);
}
