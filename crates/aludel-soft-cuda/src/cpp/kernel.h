// What a kernel's text is compiled behind: what CUDA C++ has beside C++, and, for texts that hide them where `__CUDACC__` is not defined, the device's own
// instructions (`instructions.h`).
#pragma once
#include <math.h>
#include <string.h>

#include <utility>

#include "turns.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx soft_cuda::here.thread
#define blockIdx soft_cuda::here.block
#define blockDim soft_cuda::here.threads
#define gridDim soft_cuda::here.blocks

struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define SOFT_CUDA_EXTREMES(T) \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
SOFT_CUDA_EXTREMES(int)
SOFT_CUDA_EXTREMES(unsigned)
SOFT_CUDA_EXTREMES(long long)
SOFT_CUDA_EXTREMES(unsigned long long)
inline long long min(long long a, int b) { return min(a, (long long)b); }
inline long long min(int a, long long b) { return min((long long)a, b); }
inline long long max(long long a, int b) { return max(a, (long long)b); }
inline long long max(int a, long long b) { return max((long long)a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

namespace soft_cuda {
template <typename To, typename From> To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
}  // namespace soft_cuda

inline float __uint_as_float(unsigned x) { return soft_cuda::bits<float>(x); }
inline float __int_as_float(int x) { return soft_cuda::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return soft_cuda::bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return soft_cuda::bits<double>(x); }
inline long long __double_as_longlong(double x) { return soft_cuda::bits<long long>(x); }
inline float __expf(float x) { return expf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((unsigned long long)x * y >> 32); }
template <typename T> T __ldg(const T* x) { return *x; }
template <typename T> T __ldcs(const T* x) { return *x; }
template <typename T> void __stcs(T* y, T x) { *y = x; }

inline unsigned atomicAdd(unsigned* x, unsigned y) { return __atomic_fetch_add(x, y, __ATOMIC_SEQ_CST); }
inline int atomicAdd(int* x, int y) { return __atomic_fetch_add(x, y, __ATOMIC_SEQ_CST); }
inline unsigned long long atomicAdd(unsigned long long* x, unsigned long long y) { return __atomic_fetch_add(x, y, __ATOMIC_SEQ_CST); }
// Blocks that are not of a cluster run one after another.
inline float atomicAdd(float* x, float y) { float old = *x; return *x = old + y, old; }
inline double atomicAdd(double* x, double y) { double old = *x; return *x = old + y, old; }
inline unsigned atomicOr(unsigned* x, unsigned y) { return __atomic_fetch_or(x, y, __ATOMIC_SEQ_CST); }

inline void __syncthreads() { soft_cuda::wait_for_block(); }

namespace soft_cuda {
inline unsigned lane() { return here.thread.x % 32; }

// What the thread of the warp at `from` says.
template <typename T> T said_by(T own, unsigned from) {
    uint64_t word = 0;
    static_assert(sizeof own <= sizeof word);
    memcpy(&word, &own, sizeof own);
    word = said(word)[from % 32];
    memcpy(&own, &word, sizeof own);
    return own;
}
}  // namespace soft_cuda

// A thread may find itself alone, though others are beside it.
inline unsigned __activemask() { return 1u << soft_cuda::lane(); }
template <typename T> T __shfl_sync(unsigned, T x, int from) { return soft_cuda::said_by(x, from); }
template <typename T> T __shfl_xor_sync(unsigned, T x, int steps) { return soft_cuda::said_by(x, soft_cuda::lane() ^ steps); }
template <typename T> T __shfl_up_sync(unsigned, T x, unsigned steps) {
    unsigned lane = soft_cuda::lane();
    return soft_cuda::said_by(x, lane < steps ? lane : lane - steps);
}
template <typename T> T __shfl_down_sync(unsigned, T x, unsigned steps) {
    unsigned lane = soft_cuda::lane();
    return soft_cuda::said_by(x, lane + steps > 31 ? lane : lane + steps);
}
inline unsigned __ballot_sync(unsigned mask, int x) {
    unsigned own = 1u << soft_cuda::lane(), all = 0;
    if (mask == own) return x ? own : 0;
    const uint64_t* said = soft_cuda::said(x != 0);
    for (int i = 0; i < 32; i++) all |= (mask >> i & 1 & (unsigned)said[i]) << i;
    return all;
}
template <typename T> unsigned __match_any_sync(unsigned mask, T x) {
    unsigned own = 1u << soft_cuda::lane(), all = 0;
    if (mask == own) return own;
    const uint64_t* said = soft_cuda::said((uint64_t)x);
    for (int i = 0; i < 32; i++) all |= (mask >> i & 1 & (unsigned)(said[i] == (uint64_t)x)) << i;
    return all;
}
inline int __reduce_min_sync(unsigned, int x) {
    for (int step = 16; step > 0; step >>= 1) x = min(x, soft_cuda::said_by(x, soft_cuda::lane() ^ step));
    return x;
}

namespace soft_cuda {
static thread_local char anchor;
inline void* own_anchor() { return &anchor; }

// How a kernel is called with arguments that lie somewhere. The names are such as no text defines.
template <typename F, F kernel> struct Called;
template <typename... A, void (*kernel)(A...)> struct Called<void (*)(A...), kernel> {
    static constexpr unsigned soft_cuda_count = sizeof...(A);
    static constexpr unsigned soft_cuda_sizes[] = {sizeof(A)...};
    template <size_t... I> static void soft_cuda_with(void* const* arguments, std::index_sequence<I...>) { kernel(*(A*)arguments[I]...); }
    static void soft_cuda_body(void* const* arguments) { soft_cuda_with(arguments, std::index_sequence_for<A...>()); }
};
}  // namespace soft_cuda

// A constant is seen from outside only where it is declared to be.
#define SOFT_CUDA_KERNEL(name, cluster) \
    extern "C" { \
    extern const soft_cuda::Kernel soft_cuda_kernel_##name; \
    __attribute__((visibility("default"))) const soft_cuda::Kernel soft_cuda_kernel_##name = { \
        soft_cuda::Called<decltype(&name), name>::soft_cuda_body, soft_cuda::Called<decltype(&name), name>::soft_cuda_count, \
        soft_cuda::Called<decltype(&name), name>::soft_cuda_sizes, cluster, soft_cuda::own_anchor}; \
    }

#include "instructions.h"
