// Runs a kernel's text on a CPU. Blocks come one after another, those of a cluster side by side, each in a thread of the system's; the threads of a
// block are coroutines that take turns wherever they wait for one another. Before the text: what CUDA gives it, and `instructions.cu` in C++. After
// the text: `main`, which reads arguments and writes buffers. Races that a device could lose are not found so.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __cluster_dims__(...)

using std::max;
using std::min;

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename To, typename From> To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) { return bits<float>(x); }
inline float __int_as_float(int x) { return bits<float>(x); }
inline unsigned __float_as_uint(float x) { return bits<unsigned>(x); }
inline float __expf(float x) { return expf(x); }
template <typename T> T __ldcs(const T* x) { return *x; }
template <typename T> void __stcs(T* y, T x) { *y = x; }

struct Place { unsigned x, y, z; };
static thread_local Place threadIdx, blockIdx;
static Place blockDim, gridDim;

// Where threads wait until all that are still there have come.
struct Meeting {
    int here = 0;
    unsigned round = 0;
};

struct Coroutine {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    unsigned phase;
    bool is_over;
};

struct Warp {
    Meeting meeting;
    int there;
    uint64_t said[32];
};

struct Block {
    std::vector<Coroutine> threads;
    std::vector<Warp> warps;
    Meeting meeting;
    int there, current;
    ucontext_t turns;
};
static thread_local Block* block;

static void give_way() { swapcontext(&block->threads[block->current].context, &block->turns); }

static void wait_for_all(Meeting& meeting, const int& there) {
    unsigned round = meeting.round;
    meeting.here++;
    while (meeting.round == round) {
        if (meeting.here >= there) meeting.here = 0, meeting.round++;
        else give_way();
    }
}

inline void __syncthreads() { wait_for_all(block->meeting, block->there); }

// What the thread of the warp at `lane` says.
template <typename T> T said_by(T own, int lane) {
    Warp& warp = block->warps[block->current / 32];
    memcpy(&warp.said[block->current % 32], &own, sizeof own);
    wait_for_all(warp.meeting, warp.there);
    T other;
    memcpy(&other, &warp.said[lane], sizeof other);
    wait_for_all(warp.meeting, warp.there);
    return other;
}

template <typename T> T __shfl_xor_sync(unsigned, T x, int steps) { return said_by(x, block->current % 32 ^ steps); }

inline int __reduce_min_sync(unsigned mask, int x) {
    for (int step = 16; step > 0; step >>= 1) x = min(x, __shfl_xor_sync(mask, x, step));
    return x;
}

// `instructions.cu`.
typedef unsigned short half_bits;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

inline half_bits to_bf16(float x) {
    u32 y = __float_as_uint(x);
    if (x == x) y += 0x7fff + (y >> 16 & 1);
    return y >> 16;
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
    return sign | (half_bits)((last + 24 << 10) + (int)nearbyintf(ldexpf(size, -last)));
}
inline u32 pack(float low, float high) { return (u32)to_bf16(high) << 16 | to_bf16(low); }
inline float exp2_fast(float x) {
    float y = exp2f(x);
    return fabsf(y) < 1.17549435e-38f ? 0.0f : y;
}
inline float log2_fast(float x) { return log2f(x); }
inline void bring16(uint4* to, const void* from) { memcpy(to, from, 16); }
inline void brought() {}

static unsigned cluster_size = 1, cluster_threads;
static thread_local u32 own_place;
static std::atomic<unsigned> arrived, phase;
inline u32 place_in_cluster() { return own_place; }

inline void cluster_arrive() {
    block->threads[block->current].phase = phase.load();
    if (arrived.fetch_add(1) + 1 == cluster_threads) {
        arrived.store(0);
        phase.fetch_add(1);
    }
}

inline void cluster_wait() {
    while (phase.load() == block->threads[block->current].phase) give_way();
}

// What is thread_local lies as far from this in every thread of the system's.
static thread_local char anchor;
static char* anchors[16];
typedef char* place_there;
inline place_there there(const void* here, u32 block) { return anchors[block] + ((const char*)here - &anchor); }
inline void put_there(place_there place, u32 word, u32 x) { memcpy(place + 4 * word, &x, 4); }

static std::function<void()> body;

static void run_thread() {
    body();
    block->threads[block->current].is_over = true;
    block->there--;
    block->warps[block->current / 32].there--;
    give_way();
}

static std::atomic<unsigned> begun;

static void run_block(Place place, u32 rank) {
    anchors[rank] = &anchor;
    begun++;
    while (begun.load() < cluster_size) std::this_thread::yield();
    own_place = rank;
    blockIdx = place;
    int count = blockDim.x;
    Block own;
    block = &own;
    own.threads.resize(count);
    own.warps.resize((count + 31) / 32);
    for (size_t i = 0; i < own.warps.size(); i++) own.warps[i].there = min(32, count - 32 * (int)i);
    own.there = count;
    const size_t STACK = 1 << 18;
    for (Coroutine& thread : own.threads) {
        getcontext(&thread.context);
        thread.stack.reset(new char[STACK]);
        thread.is_over = false;
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, run_thread, 0);
    }
    while (own.there > 0) {
        for (int i = 0; i < count; i++) {
            if (own.threads[i].is_over) continue;
            own.current = i;
            threadIdx = {(unsigned)i, 0, 0};
            swapcontext(&own.turns, &own.threads[i].context);
        }
        std::this_thread::yield();
    }
}

struct Given {
    std::unique_ptr<char[]> memory;
    char* start;
    size_t length;
};
static std::vector<Given> buffers;

static void fail(const char* reason) {
    fprintf(stderr, "%s\n", reason);
    exit(1);
}

template <typename T> T take() {
    T x;
    if (fread(&x, sizeof x, 1, stdin) != 1) fail("an argument is missing");
    return x;
}

// A number after its length, or a buffer after its own; a buffer of no length is none.
template <typename A> A argument() {
    uint64_t length = take<uint64_t>();
    if constexpr (std::is_pointer_v<A>) {
        if (length == 0) return nullptr;
        Given given{std::unique_ptr<char[]>(new char[length + 256]), nullptr, length};
        given.start = (char*)(((uintptr_t)given.memory.get() + 255) / 256 * 256);
        if (fread(given.start, 1, length, stdin) != length) fail("a buffer is missing");
        buffers.push_back(std::move(given));
        return (A)buffers.back().start;
    } else {
        if (length != sizeof(A)) fail("an argument has another size than the kernel's");
        return take<A>();
    }
}

// Words: blocks in three directions, threads, blocks of a cluster.
template <typename... A> int run(void (*kernel)(A...), char** words) {
    unsigned numbers[5];
    for (int i = 0; i < 5; i++) numbers[i] = (unsigned)atoi(words[1 + i]);
    gridDim = {numbers[0], numbers[1], numbers[2]};
    blockDim = {numbers[3], 1, 1};
    cluster_size = numbers[4];
    cluster_threads = cluster_size * blockDim.x;
    std::tuple<A...> arguments{argument<A>()...};
    body = [&] { std::apply(kernel, arguments); };
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x += cluster_size) {
                begun = arrived = 0;
                std::vector<std::thread> cluster;
                for (u32 rank = 0; rank < cluster_size; rank++)
                    cluster.emplace_back(run_block, Place{x + rank, y, z}, rank);
                for (std::thread& one : cluster) one.join();
            }
    for (Given& given : buffers) fwrite(given.start, 1, given.length, stdout);
    return 0;
}
