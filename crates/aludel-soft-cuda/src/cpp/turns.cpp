// Part of the driver: runs the blocks of a launch.
#include "turns.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "blocks.h"

namespace soft_cuda {

thread_local Here here;
alignas(1024) thread_local unsigned char shared[MOST_SHARED];

namespace {

#if defined(__x86_64__)
// Keeps what a function must leave as it was, and goes on where `to` has stopped.
extern "C" void soft_cuda_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden soft_cuda_switch
    .globl soft_cuda_switch
    .type soft_cuda_switch, @function
soft_cuda_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size soft_cuda_switch, . - soft_cuda_switch
)");
#else
#error "coroutines are written for x86-64"
#endif

const size_t STACK = 128 << 10;

// Where threads wait until all that are still there have come.
struct Meeting {
    int here = 0;
    unsigned round = 0;
};

struct Copy {
    void* to;
    const void* from;
    unsigned bytes, size;
};

struct Coroutine {
    std::unique_ptr<unsigned char[]> stack;
    void* stopped = nullptr;
    bool is_over = true;
    unsigned phase = 0;
    // Groups of copies, of which the last is open.
    std::deque<std::vector<Copy>> copies;
};

struct Warp {
    Meeting meeting;
    int there = 0;
    uint64_t said[32];
};

// The blocks that run at once: one, or those of a cluster.
struct Cluster {
    const Launch* launch;
    unsigned threads;
    std::atomic<unsigned> begun{0}, arrived{0}, phase{0};
    std::vector<char*> anchors;
    std::vector<unsigned char*> shared;
};

struct Block {
    std::vector<Coroutine> threads;
    std::vector<Warp> warps;
    Meeting meeting;
    int there = 0, current = 0;
    void* turns = nullptr;
    Cluster* cluster = nullptr;
    bool has_shared = false;
};
thread_local Block block;

Coroutine& own() { return block.threads[block.current]; }
Warp& own_warp() { return block.warps[block.current / 32]; }

void give_way() { soft_cuda_switch(&own().stopped, block.turns); }

void wait_for_all(Meeting& meeting, const int& there) {
    unsigned round = meeting.round;
    meeting.here++;
    while (meeting.round == round) {
        if (meeting.here >= there) meeting.here = 0, meeting.round++;
        else give_way();
    }
}

void finish(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
        if (copy.bytes > 0) memcpy(copy.to, copy.from, copy.bytes);
        memset((char*)copy.to + copy.bytes, 0, copy.size - copy.bytes);
    }
}

void run_thread() {
    const Launch& launch = *block.cluster->launch;
    launch.kernel->body(launch.arguments.data());
    // Copies that nobody waits for come at some time.
    close_copies();
    wait_for_copies(0);
    Coroutine& thread = own();
    thread.is_over = true;
    block.there--;
    own_warp().there--;
    give_way();
    abort();
}

void begin(Coroutine& thread) {
    if (!thread.stack) thread.stack.reset(new unsigned char[STACK]);
    uintptr_t top = (uintptr_t)(thread.stack.get() + STACK) & ~(uintptr_t)63;
    void** frame = (void**)top;
    // As after a call: the place to return to lies where the stack is a multiple of sixteen and eight more.
    *--frame = nullptr;
    *--frame = (void*)run_thread;
    for (int i = 0; i < 6; i++) *--frame = nullptr;
    thread.stopped = frame;
    thread.is_over = false;
    thread.copies.assign(1, {});
}

const unsigned char UNTOUCHED = 0xa5;

void run_block(Cluster& cluster, Place place, unsigned rank) {
    const Launch& launch = *cluster.launch;
    int count = (int)(launch.threads.x * launch.threads.y * launch.threads.z);
    if (!block.has_shared) memset(shared, UNTOUCHED, MOST_SHARED);
    block.has_shared = true;
    cluster.shared[rank] = shared;
    cluster.anchors[rank] = (char*)launch.kernel->anchor();
    cluster.begun++;
    while (cluster.begun.load() < cluster.shared.size()) std::this_thread::yield();
    here = {{0, 0, 0}, place, launch.threads, launch.blocks, rank};
    block.cluster = &cluster;
    block.meeting = {};
    block.there = count;
    if ((int)block.threads.size() < count) block.threads.resize(count);
    block.warps.assign((count + 31) / 32, {});
    for (int i = 0; i < count; i++) {
        begin(block.threads[i]);
        block.warps[i / 32].there++;
    }
    while (block.there > 0) {
        for (int i = 0; i < count; i++) {
            if (block.threads[i].is_over) continue;
            block.current = i;
            here.thread = {i % launch.threads.x, i / launch.threads.x % launch.threads.y, i / launch.threads.x / launch.threads.y};
            soft_cuda_switch(&block.turns, block.threads[i].stopped);
        }
        if (cluster.shared.size() > 1) std::this_thread::yield();
    }
    for (size_t i = launch.shared; i < MOST_SHARED; i++) {
        if (shared[i] == UNTOUCHED) continue;
        fprintf(stderr, "soft-cuda: %s writes at %zu of %u bytes of shared memory\n", launch.name.c_str(), i, launch.shared);
        abort();
    }
    memset(shared, UNTOUCHED, launch.shared);
}

}  // namespace

void wait_for_block() { wait_for_all(block.meeting, block.there); }

const uint64_t* said(uint64_t own) {
    Warp& warp = own_warp();
    warp.said[block.current % 32] = own;
    wait_for_all(warp.meeting, warp.there);
    return warp.said;
}

void heard() { wait_for_all(own_warp().meeting, own_warp().there); }

void arrive_in_cluster() {
    Cluster& cluster = *block.cluster;
    own().phase = cluster.phase.load();
    if (cluster.arrived.fetch_add(1) + 1 == cluster.threads) {
        cluster.arrived.store(0);
        cluster.phase.fetch_add(1);
    }
}

void wait_for_cluster() {
    while (block.cluster->phase.load() == own().phase) give_way();
}

void* there(const void* at, unsigned rank) {
    if (at >= shared && at < shared + MOST_SHARED) return block.cluster->shared[rank] + ((const unsigned char*)at - shared);
    return block.cluster->anchors[rank] + ((const char*)at - block.cluster->anchors[here.rank_in_cluster]);
}

void copy_later(void* to, const void* from, unsigned bytes, unsigned size) {
    own().copies.back().push_back({to, from, bytes, size});
}

void close_copies() { own().copies.emplace_back(); }

void wait_for_copies(unsigned rest) {
    auto& copies = own().copies;
    while (copies.size() > 1 + rest) {
        finish(copies.front());
        copies.pop_front();
    }
}

void run(const Launch& launch) {
    Cluster cluster;
    unsigned blocks = launch.kernel->blocks_of_cluster;
    cluster.launch = &launch;
    cluster.threads = blocks * launch.threads.x * launch.threads.y * launch.threads.z;
    cluster.shared.resize(blocks), cluster.anchors.resize(blocks);
    for (unsigned z = 0; z < launch.blocks.z; z++)
        for (unsigned y = 0; y < launch.blocks.y; y++)
            for (unsigned x = 0; x < launch.blocks.x; x += blocks) {
                cluster.begun = cluster.arrived = 0;
                std::vector<std::thread> others;
                for (unsigned rank = 1; rank < blocks; rank++)
                    others.emplace_back([&, rank] { run_block(cluster, {x + rank, y, z}, rank); });
                run_block(cluster, {x, y, z}, 0);
                for (std::thread& other : others) other.join();
            }
}

}  // namespace soft_cuda
