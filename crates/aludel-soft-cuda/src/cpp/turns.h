// How threads of a block run on a CPU: as coroutines of one thread of the system, which take turns wherever they wait for one another. Shared by the driver,
// which runs blocks, and by the kernels that it loads.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace soft_cuda {

struct Place { unsigned x, y, z; };

// Where the running thread is, and what it knows of the launch.
struct Here {
    Place thread, block, threads, blocks;
    unsigned rank_in_cluster;
};
// Few bytes, which lie where a thread finds them at once.
#define SOFT_CUDA_NEAR __attribute__((tls_model("initial-exec")))
extern thread_local Here here SOFT_CUDA_NEAR;

// Shared memory that a launch sizes; the most that a block can have.
const size_t MOST_SHARED = 227 << 10;
extern thread_local unsigned char* shared SOFT_CUDA_NEAR;

// Until all threads of the block that have not ended are here.
void wait_for_block();

// What each thread of the warp says, by its lane, until it says something again. All that have not ended take part.
const uint64_t* said(uint64_t own);

// Of a cluster: that a thread has come so far; until all have; where another block has its own of something in shared memory.
void arrive_in_cluster();
void wait_for_cluster();
void* there(const void* here, unsigned rank);

// A copy into shared memory that is done no sooner than the thread waits for it; what `bytes` leaves of `size` becomes zeros.
void copy_later(void* to, const void* from, unsigned bytes, unsigned size);
void close_copies();
// Until all but the last `rest` groups of the thread's copies are done.
void wait_for_copies(unsigned rest);

// A kernel, as the driver finds it in what was compiled.
struct Kernel {
    void (*body)(void* const* arguments);
    unsigned count;
    const unsigned* sizes;
    unsigned blocks_of_cluster;
    // A place that lies as far from shared memory of a known length in every block.
    void* (*anchor)();
};

}  // namespace soft_cuda
