// What every kernel begins with: how elements are loaded, decoded, encoded and stored, and the numbers of random streams.
// V elements are computed at once by a thread. Compiled without fused multiplication, so that the bits are the CPU's.

// Types, and instructions that C++ has no words for. Who compiles this for something else than a device has them under the same names.
#ifdef __CUDACC__
typedef unsigned int u32;
typedef unsigned long long u64;

// Two values of 16 bits in a word, the first in its lower half. What is stored is rounded to nearest, ties to even; a NaN comes out as one.
__device__ __forceinline__ void unpack_f16(float* low, float* high, u32 words) {
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(*low), "=f"(*high)
        : "r"(words));
}

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 words;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words) : "f"(high), "f"(low));
#else
    const u32 a = __float_as_uint(low), b = __float_as_uint(high);
    words = (a + (0x7fffu + (a >> 16 & 1u))) >> 16 | ((b + (0x7fffu + (b >> 16 & 1u))) & 0xffff0000u);
#endif
    return words;
}

__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 words;
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(words)
        : "f"(low), "f"(high));
    return words;
}

// What the compiler then knows nothing of.
__device__ __forceinline__ void hide(float* x) { asm("" : "+f"(*x)); }
#endif

#define CHUNK 65536ULL
#define MAGNITUDE 0x7fffffffu
#define NOT_FINITE 0x80008000u

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

// Two stored elements of 16 bits, or one of 32, of V that begin at the base; 0 past the end.
__device__ __forceinline__ void load16(u32 (&words)[V / 2], const u64 from, const u64 base, const u64 elements) {
    const unsigned short* at = (const unsigned short*)from + base;
    if (base + V <= elements) {
#if V % 8 == 0
#pragma unroll
        for (int q = 0; q < V / 8; q++) {
            const uint4 w = __ldg((const uint4*)at + q);
            words[4 * q] = w.x;
            words[4 * q + 1] = w.y;
            words[4 * q + 2] = w.z;
            words[4 * q + 3] = w.w;
        }
#else
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            const uint2 w = __ldg((const uint2*)at + q);
            words[2 * q] = w.x;
            words[2 * q + 1] = w.y;
        }
#endif
    } else {
#pragma unroll
        for (int p = 0; p < V / 2; p++) {
            const u32 low = base + 2 * p < elements ? at[2 * p] : 0;
            const u32 high = base + 2 * p + 1 < elements ? at[2 * p + 1] : 0;
            words[p] = low | high << 16;
        }
    }
}

__device__ __forceinline__ void load32(u32 (&words)[V], const u64 from, const u64 base, const u64 elements) {
    const u32* at = (const u32*)from + base;
    if (base + V <= elements) {
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            const uint4 w = __ldg((const uint4*)at + q);
            words[4 * q] = w.x;
            words[4 * q + 1] = w.y;
            words[4 * q + 2] = w.z;
            words[4 * q + 3] = w.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) words[j] = base + j < elements ? at[j] : 0;
    }
}

// Decoded elements. Where they are watched, the uppermost bit of a half of `met` is set by one that is not finite: its
// exponent is all ones, so that adding to the lowest bit of it carries into the sign's place.
template <bool WATCHED>
__device__ __forceinline__ void load_bf16(float (&x)[V], const u64 from, const u64 base, const u64 elements, u32& met) {
    u32 words[V / 2];
    load16(words, from, base, elements);
#pragma unroll
    for (int p = 0; p < V / 2; p++) {
        if (WATCHED) met |= (words[p] & 0x7f807f80u) + 0x00800080u;
        x[2 * p] = __uint_as_float(words[p] << 16);
        x[2 * p + 1] = __uint_as_float(words[p] & 0xffff0000u);
    }
}

template <bool WATCHED>
__device__ __forceinline__ void load_f16(float (&x)[V], const u64 from, const u64 base, const u64 elements, u32& met) {
    u32 words[V / 2];
    load16(words, from, base, elements);
#pragma unroll
    for (int p = 0; p < V / 2; p++) {
        if (WATCHED) met |= (words[p] & 0x7c007c00u) + 0x04000400u;
        unpack_f16(&x[2 * p], &x[2 * p + 1], words[p]);
    }
}

template <bool WATCHED>
__device__ __forceinline__ void load_f32(float (&x)[V], const u64 from, const u64 base, const u64 elements, u32& met) {
    u32 words[V];
    load32(words, from, base, elements);
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (WATCHED) met |= (words[j] & 0x7f800000u) + 0x00800000u;
        x[j] = __uint_as_float(words[j]);
    }
}

__device__ __forceinline__ void store16(const u32 (&words)[V / 2], const u64 to, const u64 base, const u64 elements) {
    unsigned short* at = (unsigned short*)to + base;
    if (base + V <= elements) {
#if V % 8 == 0
#pragma unroll
        for (int q = 0; q < V / 8; q++) {
            ((uint4*)at)[q] = make_uint4(words[4 * q], words[4 * q + 1], words[4 * q + 2], words[4 * q + 3]);
        }
#else
#pragma unroll
        for (int q = 0; q < V / 4; q++) ((uint2*)at)[q] = make_uint2(words[2 * q], words[2 * q + 1]);
#endif
    } else {
#pragma unroll
        for (int p = 0; p < V / 2; p++) {
            if (base + 2 * p < elements) at[2 * p] = (unsigned short)words[p];
            if (base + 2 * p + 1 < elements) at[2 * p + 1] = (unsigned short)(words[p] >> 16);
        }
    }
}

__device__ __forceinline__ void store32(const u32 (&words)[V], const u64 to, const u64 base, const u64 elements) {
    u32* at = (u32*)to + base;
    if (base + V <= elements) {
#pragma unroll
        for (int q = 0; q < V / 4; q++) {
            ((uint4*)at)[q] = make_uint4(words[4 * q], words[4 * q + 1], words[4 * q + 2], words[4 * q + 3]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (base + j < elements) at[j] = words[j];
        }
    }
}

__device__ __forceinline__ void store_bf16(const float (&x)[V], const u64 to, const u64 base, const u64 elements) {
    u32 words[V / 2];
#pragma unroll
    for (int p = 0; p < V / 2; p++) words[p] = pack_bf16(x[2 * p], x[2 * p + 1]);
    store16(words, to, base, elements);
}

__device__ __forceinline__ void store_f16(const float (&x)[V], const u64 to, const u64 base, const u64 elements) {
    u32 words[V / 2];
#pragma unroll
    for (int p = 0; p < V / 2; p++) words[p] = pack_f16(x[2 * p], x[2 * p + 1]);
    store16(words, to, base, elements);
}

__device__ __forceinline__ void store_f32(const float (&x)[V], const u64 to, const u64 base, const u64 elements) {
    u32 words[V];
#pragma unroll
    for (int j = 0; j < V; j++) words[j] = __float_as_uint(x[j]);
    store32(words, to, base, elements);
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

// A quotient whose divisor is not 0. Where all that could be divided was masked out there is 0 to divide, which takes the
// compiler's slow path for a whole warp: another number goes that way, and the product has the quotient's sign.
__device__ __forceinline__ float divided(float x, float divisor) {
    const bool is_nothing = x == 0.0f;
    // The compiler does not see what is chosen: it would find that no quotient of 0 is wanted, and divide it all the same.
    float dividend = is_nothing ? 1.0f : x;
    hide(&dividend);
    const float quotient = dividend / divisor;
    return is_nothing ? x * divisor : quotient;
}

__device__ __forceinline__ float number(bool condition) {
    return condition ? 1.0f : 0.0f;
}

// How many of V elements come before the end of the ties that a cut keeps.
__device__ __forceinline__ int before(u64 ties_end, u64 base) {
    return ties_end > base ? (int)least(ties_end - base, V) : 0;
}

// Whether a magnitude is above the cut's threshold, or equal to it where ties are kept. As signed numbers: no magnitude has
// the uppermost bit, and one below 0 is -1.
__device__ __forceinline__ bool kept(float x, int threshold, bool is_early) {
    return (int)(__float_as_uint(x) & MAGNITUDE) > threshold - (int)is_early;
}
