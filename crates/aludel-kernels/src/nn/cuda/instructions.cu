// Types, and instructions that C++ has no words for, that all kernels begin with; those of the units for matrices stand beside attention. Who compiles
// this for something else than a device has all of it under the same names.
#ifdef __CUDACC__
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

__device__ __forceinline__ half_bits to_bf16(float x) {
    half_bits y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float from_f16(half_bits x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

__device__ __forceinline__ half_bits to_f16(float x) {
    half_bits y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Two bf16 in a word, the first in its lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// Two f16 likewise.
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// Each of two f16, no farther from zero than the largest of them that is finite.
__device__ __forceinline__ u32 finite_f16(u32 x) {
    u32 y;
    asm("{ .reg .b32 most, least; mov.b32 most, 0x7bff7bff; mov.b32 least, 0xfbfffbff; min.f16x2 %0, %1, most; max.f16x2 %0, %0, least; }" : "=r"(y) : "r"(x));
    return y;
}

// The greater of each of two bf16; of a NaN and a number the number.
__device__ __forceinline__ u32 greater_bf16(u32 x, u32 y) {
    u32 z;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
    return z;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float sqrt_fast(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float divide_fast(float x, float by) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(by));
    return y;
}

// An address as instructions for shared memory take it.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Sixteen bytes on their way into shared memory, both places being multiples of sixteen.
__device__ __forceinline__ void bring16(uint4* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from));
}

// As above, and zeros instead of what is past the first `bytes`; eight bytes likewise.
__device__ __forceinline__ void bring16_of(u32 to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void bring8_of(u32 to, const void* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" :: "r"(to), "l"(from), "r"(bytes));
}

// The end of a group of what is on its way, and the wait for all but the last N groups.
__device__ __forceinline__ void fetched() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N)); }

// Of blocks of a cluster: which one this is; that a thread has come so far, and its wait until all have: what they have written before is seen.
__device__ __forceinline__ u32 place_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where another block has its own of something in shared memory, and a word that is written there.
typedef u32 place_there;

__device__ __forceinline__ place_there there(const void* here, u32 block) {
    u32 place;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"((u32)__cvta_generic_to_shared(here)), "r"(block));
    return place;
}

__device__ __forceinline__ void put_there(place_there place, u32 word, u32 x) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" :: "r"(place + 4 * word), "r"(x) : "memory");
}
#endif
