// The device's own instructions, under the names that the texts of this project give them; in the texts they stand behind `__CUDACC__`.
#pragma once

typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// ---------------------------------------------------------------- elements

inline half_bits to_bf16(float x) {
    u32 y = __float_as_uint(x);
    // Any other NaN could come out as an infinity.
    if (x != x) return 0x7fff;
    return (y + 0x7fff + (y >> 16 & 1)) >> 16;
}
inline float from_f16(half_bits x) {
    int exponent = x >> 10 & 31, fraction = x & 1023;
    float y = exponent == 0 ? ldexpf(fraction, -24) : ldexpf(1024 + fraction, exponent - 25);
    if (exponent == 31) y = fraction == 0 ? INFINITY : NAN;
    return x >> 15 ? -y : y;
}
inline half_bits to_f16(float x) {
    half_bits sign = __float_as_uint(x) >> 16 & 0x8000;
    float size = fabsf(x);
    if (size != size) return 0x7fff;
    if (size == 0.0f) return sign;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    frexpf(size, &exponent);
    // The last place; a fraction that is rounded up to the next power of two carries into the exponent.
    int last = max(exponent - 11, -24);
    return sign | (half_bits)(((last + 24) << 10) + (int)nearbyintf(ldexpf(size, -last)));
}
inline u32 pack(float low, float high) { return (u32)to_bf16(high) << 16 | to_bf16(low); }
inline u32 pack_bf16(float low, float high) { return pack(low, high); }
inline u32 pack_f16(float low, float high) { return (u32)to_f16(high) << 16 | to_f16(low); }
inline void unpack_f16(float* low, float* high, u32 words) { *low = from_f16(words), *high = from_f16(words >> 16); }
inline void hide(float*) {}
inline half_bits finite_f16_of(half_bits x) { return (x & 0x7fff) > 0x7bff ? (x & 0x8000) | 0x7bff : x; }
inline u32 finite_f16(u32 x) { return (u32)finite_f16_of(x >> 16) << 16 | finite_f16_of(x); }
inline u32 greater_bf16(u32 x, u32 y) {
    float low = fmaxf(__uint_as_float(x << 16), __uint_as_float(y << 16));
    return pack(low, fmaxf(__uint_as_float(x & 0xffff0000u), __uint_as_float(y & 0xffff0000u)));
}

inline float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? 0.0f : x; }
inline float exp2_fast(float x) { return flushed(exp2f(x)); }
inline float log2_fast(float x) { return log2f(x); }
inline float sqrt_fast(float x) { return sqrtf(flushed(x)); }
inline float divide_fast(float x, float by) { return flushed(flushed(x) / flushed(by)); }

// ---------------------------------------------------------------- copies into shared memory

// Addresses are those in the memory that a launch sizes.
inline u32 shared_address(const void* at) { return (u32)((const unsigned char*)at - soft_cuda::shared); }
inline unsigned char* at_shared(u32 address) { return soft_cuda::shared + (int)address; }

inline void bring16(uint4* to, const void* from) { soft_cuda::copy_later(to, from, 16, 16); }
inline void bring16_of(u32 to, const void* from, int bytes) { soft_cuda::copy_later(at_shared(to), from, bytes, 16); }
inline void bring8_of(u32 to, const void* from, int bytes) { soft_cuda::copy_later(at_shared(to), from, bytes, 8); }
inline void fetched() { soft_cuda::close_copies(); }
template <int N> inline void wait() { soft_cuda::wait_for_copies(N); }

// ---------------------------------------------------------------- clusters

inline u32 place_in_cluster() { return soft_cuda::here.rank_in_cluster; }
inline void cluster_arrive() { soft_cuda::arrive_in_cluster(); }
inline void cluster_wait() { soft_cuda::wait_for_cluster(); }
typedef char* place_there;
inline place_there there(const void* here, u32 block) { return (char*)soft_cuda::there(here, block); }
inline void put_there(place_there place, u32 word, u32 x) { memcpy(place + 4 * word, &x, 4); }

// ---------------------------------------------------------------- matrices, a warp's

namespace soft_cuda {

inline float of_bf16(half_bits x) { return __uint_as_float((u32)x << 16); }
inline float half_of(u32 words, int which) { return of_bf16((half_bits)(words >> 16 * which)); }

// What two words of every lane are.
struct Words {
    u32 first[32], second[32];
    Words(u32 a, u32 b) {
        const uint64_t* all = said((uint64_t)b << 32 | a);
        for (int i = 0; i < 32; i++) first[i] = (u32)all[i], second[i] = (u32)(all[i] >> 32);
    }
};

// Four matrices of 8 x 8, each lane having one row's address.
inline void load_matrices(u32 r[4], u32 at, bool turned) {
    Words rows(at, 0);
    for (int i = 0; i < 4; i++) {
        half_bits pair[2];
        for (int j = 0; j < 2; j++) {
            int row = turned ? 2 * (lane() % 4) + j : lane() / 4, column = turned ? lane() / 4 : 2 * (lane() % 4) + j;
            memcpy(&pair[j], at_shared(rows.first[8 * i + row]) + 2 * column, 2);
        }
        r[i] = (u32)pair[1] << 16 | pair[0];
    }
}

// 16 rows of 16 columns of a left operand, of which a lane has four words: element (row, column) of the two rows that this lane's sums are of.
struct Left {
    Words upper, lower;
    explicit Left(const u32 a[4]) : upper(a[0], a[2]), lower(a[1], a[3]) {}
    float at(int half, int k) const {
        const Words& words = half ? lower : upper;
        int from = lane() / 4 * 4 + k % 8 / 2;
        return half_of(k < 8 ? words.first[from] : words.second[from], k % 2);
    }
};

}  // namespace soft_cuda

inline void load_pieces(u32 r[4], u32 at) { soft_cuda::load_matrices(r, at, false); }
inline void load_turned(u32 r[4], u32 at) { soft_cuda::load_matrices(r, at, true); }

inline void multiply(float d[4], const u32 a[4], u32 b0, u32 b1) {
    soft_cuda::Left left(a);
    soft_cuda::Words right(b0, b1);
    for (int i = 0; i < 4; i++) {
        int column = 2 * (soft_cuda::lane() % 4) + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            int from = 4 * column + k % 8 / 2;
            sum += left.at(i / 2, k) * soft_cuda::half_of(k < 8 ? right.first[from] : right.second[from], k % 2);
        }
        d[i] = sum;
    }
}

// ---------------------------------------------------------------- matrices, a warpgroup's

namespace soft_cuda {

// A matrix in shared memory as a descriptor tells it: 128 bytes to a row, swizzled.
struct Described {
    u32 start, leading, stride;
    explicit Described(u64 words)
        : start((words & 0x3fff) << 4), leading((words >> 16 & 0x3fff) << 4), stride((words >> 32 & 0x3fff) << 4) {
        if (words >> 62 != 1) __builtin_trap();
    }
    static float at(u32 address) {
        half_bits x;
        memcpy(&x, at_shared(address ^ (address >> 7 & 7) << 4), 2);
        return of_bf16(x);
    }
    // Where what is summed over lies side by side, and where rows are summed over.
    float along(int row, int k) const { return at(start + row / 8 * stride + row % 8 * 128 + 2 * k); }
    float across(int k, int column) const { return at(start + column / 64 * leading + k / 8 * stride + k % 8 * 128 + 2 * (column % 64)); }
};

// Which of 64 rows, and of columns, a thread's sum is.
inline int row_of(int i) { return here.thread.x / 32 % 4 * 16 + lane() / 4 + i % 4 / 2 * 8; }
inline int column_of(int i) { return i / 4 * 8 + 2 * (lane() % 4) + i % 2; }

}  // namespace soft_cuda

inline void products_begin() {}
inline void products_end() {}
inline void handed_over() {}
template <int N, int COUNT> inline void products_done(float (&)[COUNT]) {}

template <int COUNT> inline void multiply_rows(float (&d)[COUNT], u64 a, u64 b, int adds) {
    soft_cuda::Described left(a), right(b);
    for (int i = 0; i < COUNT; i++) {
        float sum = adds ? d[i] : 0.0f;
        for (int k = 0; k < 16; k++) sum += left.along(soft_cuda::row_of(i), k) * right.along(soft_cuda::column_of(i), k);
        d[i] = sum;
    }
}

template <int COUNT> inline void add_product(float (&d)[COUNT], const u32 a[4], u64 b) {
    soft_cuda::Left left(a);
    soft_cuda::Described right(b);
    for (int i = 0; i < COUNT; i++)
        for (int k = 0; k < 16; k++) d[i] += left.at(i % 4 / 2, k) * right.across(k, soft_cuda::column_of(i));
}
