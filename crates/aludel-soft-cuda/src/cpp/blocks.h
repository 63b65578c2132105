// What the driver hands to who runs the blocks of a launch.
#pragma once
#include <string>
#include <vector>

#include "turns.h"

namespace soft_cuda {

struct Launch {
    std::string name;
    const Kernel* kernel;
    Place blocks, threads;
    unsigned shared;
    // Where each argument lies.
    std::vector<void*> arguments;
};

// Runs all blocks, one after another; those of a cluster side by side.
void run(const Launch& launch);

}  // namespace soft_cuda
