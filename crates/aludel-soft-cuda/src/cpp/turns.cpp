// Part of the driver: runs the blocks of a launch.
#include "turns.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "blocks.h"

#if !defined(__x86_64__)
#error "coroutines are written for x86-64"
#endif

// Keeps what a function must leave as it was, and goes on where `to` has stopped: by a jump, as where that is is guessed better than to whom a call returns.
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
    popq %rcx
    jmpq *%rcx
    .size soft_cuda_switch, . - soft_cuda_switch
)");

namespace soft_cuda {

thread_local Here here SOFT_CUDA_NEAR;
thread_local unsigned char* shared SOFT_CUDA_NEAR = nullptr;

namespace {

const size_t STACK = 128 << 10;

// What shared memory holds where nothing has written, and how much of it is looked at behind what a launch has.
const unsigned char UNTOUCHED = 0xa5;
const size_t WATCHED_SHARED = 1024;

struct Copy {
    void* to;
    const void* from;
    unsigned bytes, size;
};

struct Coroutine {
    std::unique_ptr<unsigned char[]> stack;
    void* stopped = nullptr;
    Place place;
    unsigned phase = 0;
    // Groups of copies, of which the last is open.
    std::deque<std::vector<Copy>> copies;
};

// Where threads wait until all that have not ended have come.
struct Meeting {
    int there = 0;
    unsigned round = 0;
    std::vector<int> waiting;
};

// What is said in one round is looked at until the end of the next, in which others say something else.
struct Warp {
    Meeting meeting;
    uint64_t said[2][32];
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
    Meeting meeting, waits_for_cluster;
    // Threads that can go on, in their order.
    std::deque<int> ready;
    int current = 0;
    // Where the block is started from, and goes back to when all its threads have ended.
    void* start = nullptr;
    Cluster* cluster = nullptr;
    std::unique_ptr<unsigned char, decltype(&free)> shared{nullptr, free};
};
thread_local Block* block SOFT_CUDA_NEAR = nullptr;

Coroutine& own() { return block->threads[block->current]; }
Warp& own_warp() { return block->warps[block->current / 32]; }

void release(Meeting& meeting) {
    block->ready.insert(block->ready.end(), meeting.waiting.begin(), meeting.waiting.end());
    meeting.waiting.clear();
    meeting.round++;
}

// Goes on with the next thread that can; where there is none, waits for the cluster if threads do, or else goes back to the start.
void go_on(void** from) {
    Block& all = *block;
    if (all.ready.empty() && !all.waits_for_cluster.waiting.empty()) {
        unsigned phase = all.threads[all.waits_for_cluster.waiting.front()].phase;
        all.cluster->phase.wait(phase);
        release(all.waits_for_cluster);
    }
    if (all.ready.empty()) {
        soft_cuda_switch(from, all.start);
        return;
    }
    all.current = all.ready.front();
    all.ready.pop_front();
    here.thread = all.threads[all.current].place;
    soft_cuda_switch(from, all.threads[all.current].stopped);
}

void wait_for_all(Meeting& meeting) {
    if ((int)meeting.waiting.size() + 1 == meeting.there) {
        release(meeting);
        return;
    }
    meeting.waiting.push_back(block->current);
    if (block->ready.empty() && block->waits_for_cluster.waiting.empty()) {
        fprintf(stderr, "soft-cuda: %s waits for threads that wait for something else\n", block->cluster->launch->name.c_str());
        abort();
    }
    go_on(&own().stopped);
}

void leave(Meeting& meeting) {
    meeting.there--;
    if (!meeting.waiting.empty() && (int)meeting.waiting.size() == meeting.there) release(meeting);
}

void finish(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
        if (copy.bytes > 0) memcpy(copy.to, copy.from, copy.bytes);
        memset((char*)copy.to + copy.bytes, 0, copy.size - copy.bytes);
    }
}

void run_thread() {
    const Launch& launch = *block->cluster->launch;
    launch.kernel->body(launch.arguments.data());
    // Copies that nobody waits for come at some time.
    close_copies();
    wait_for_copies(0);
    leave(own_warp().meeting);
    leave(block->meeting);
    go_on(&own().stopped);
    abort();
}

void begin(Coroutine& thread, int number) {
    if (!thread.stack) thread.stack.reset(new unsigned char[STACK]);
    // Stacks that end at the same place of a page would share few lines of the cache.
    uintptr_t top = (uintptr_t)(thread.stack.get() + STACK - number % 64 * 320) & ~(uintptr_t)63;
    void** frame = (void**)top;
    // As after a call: the place to return to lies where the stack is a multiple of sixteen and eight more.
    *--frame = nullptr;
    *--frame = (void*)run_thread;
    for (int i = 0; i < 6; i++) *--frame = nullptr;
    thread.stopped = frame;
    if (thread.copies.size() != 1 || !thread.copies.front().empty()) thread.copies.assign(1, {});
}

void run_block(Cluster& cluster, Place place, unsigned rank) {
    static thread_local Block own_block;
    Block& own = own_block;
    block = &own;
    if (!own.shared) {
        own.shared.reset((unsigned char*)aligned_alloc(1024, MOST_SHARED));
        memset(own.shared.get(), UNTOUCHED, MOST_SHARED);
    }
    shared = own.shared.get();
    const Launch& launch = *cluster.launch;
    int count = (int)(launch.threads.x * launch.threads.y * launch.threads.z);
    cluster.shared[rank] = shared;
    cluster.anchors[rank] = (char*)launch.kernel->anchor();
    cluster.begun++;
    cluster.begun.notify_all();
    for (unsigned begun; (begun = cluster.begun.load()) < cluster.shared.size();) cluster.begun.wait(begun);
    here = {{0, 0, 0}, place, launch.threads, launch.blocks, rank};
    own.cluster = &cluster;
    own.meeting.there = count;
    if ((int)own.threads.size() < count) own.threads.resize(count);
    if ((int)own.warps.size() < (count + 31) / 32) own.warps.resize((count + 31) / 32);
    for (int i = 0; i < count; i++) {
        Coroutine& thread = own.threads[i];
        begin(thread, i);
        thread.place = {i % launch.threads.x, i / launch.threads.x % launch.threads.y, i / launch.threads.x / launch.threads.y};
        own.warps[i / 32].meeting.there++;
        own.ready.push_back(i);
    }
    go_on(&own.start);
    unsigned char* bytes = shared;
    for (size_t i = launch.shared; i < std::min(MOST_SHARED, (size_t)launch.shared + WATCHED_SHARED); i++) {
        if (bytes[i] == UNTOUCHED) continue;
        fprintf(stderr, "soft-cuda: %s writes at %zu of %u bytes of shared memory\n", launch.name.c_str(), i, launch.shared);
        abort();
    }
    memset(bytes, UNTOUCHED, launch.shared);
}

}  // namespace

void wait_for_block() { wait_for_all(block->meeting); }

const uint64_t* said(uint64_t own) {
    Warp& warp = own_warp();
    uint64_t* all = warp.said[warp.meeting.round % 2];
    all[block->current % 32] = own;
    wait_for_all(warp.meeting);
    return all;
}

void arrive_in_cluster() {
    Cluster& cluster = *block->cluster;
    own().phase = cluster.phase.load();
    if (cluster.arrived.fetch_add(1) + 1 == cluster.threads) {
        cluster.arrived.store(0);
        cluster.phase.fetch_add(1);
        cluster.phase.notify_all();
    }
}

void wait_for_cluster() {
    // Others of the block may wait for an earlier phase, and all of them are woken at once.
    while (block->cluster->phase.load() == own().phase) {
        block->waits_for_cluster.waiting.push_back(block->current);
        go_on(&own().stopped);
    }
}

void* there(const void* at, unsigned rank) {
    if (at >= shared && at < shared + MOST_SHARED) return block->cluster->shared[rank] + ((const unsigned char*)at - shared);
    return block->cluster->anchors[rank] + ((const char*)at - block->cluster->anchors[here.rank_in_cluster]);
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
