// Stands in for libcuda: a device whose memory is the host's and whose kernels run on the CPU. Everything that is submitted to a stream is done as late
// as it may be, so that what is not waited for is missed; memory is full of bytes that are no number, and watched at both ends.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "blocks.h"

namespace {

using namespace soft_cuda;

// As the driver numbers them.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
    NOT_READY = 600,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

const size_t GUARD = 256;
const unsigned char NO_NUMBER = 0xff, WATCHED = 0x5a;

std::recursive_mutex everything;
#define LOCKED std::lock_guard<std::recursive_mutex> locked(everything)

[[noreturn]] void misused(const char* what) {
    fprintf(stderr, "soft-cuda: %s\n", what);
    abort();
}

size_t setting(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// ---------------------------------------------------------------- memory

struct Range {
    size_t bytes;
    bool of_pool;
};
std::map<uintptr_t, Range> device_memory;
std::map<uintptr_t, size_t> pinned_memory;
size_t used = 0, used_of_pool = 0, most_of_pool = 0;

size_t total_memory() { return setting("SOFT_CUDA_MEMORY", (size_t)8 << 30); }

Result allocate(uintptr_t* address, size_t bytes, bool of_pool) {
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > total_memory()) return OUT_OF_MEMORY;
    size_t whole = (bytes + GUARD - 1) / GUARD * GUARD + 2 * GUARD;
    unsigned char* start = (unsigned char*)aligned_alloc(GUARD, whole);
    if (!start) return OUT_OF_MEMORY;
    memset(start, WATCHED, GUARD);
    memset(start + GUARD, NO_NUMBER, bytes);
    memset(start + GUARD + bytes, WATCHED, whole - GUARD - bytes);
    *address = (uintptr_t)start + GUARD;
    device_memory[*address] = {bytes, of_pool};
    used += bytes;
    if (of_pool) used_of_pool += bytes;
    most_of_pool = std::max(most_of_pool, used_of_pool);
    return SUCCESS;
}

void watch(uintptr_t address, size_t bytes) {
    const unsigned char* start = (const unsigned char*)address;
    for (size_t i = 0; i < GUARD; i++)
        if (start[-1 - (ptrdiff_t)i] != WATCHED) misused("something has written before the beginning of a memory");
    for (size_t i = bytes; i < (bytes + GUARD - 1) / GUARD * GUARD + GUARD; i++)
        if (start[i] != WATCHED) misused("something has written past the end of a memory");
}

void release(uintptr_t address) {
    auto found = device_memory.find(address);
    if (found == device_memory.end()) misused("memory is freed that is not there");
    Range range = found->second;
    watch(address, range.bytes);
    memset((void*)address, NO_NUMBER, range.bytes);
    used -= range.bytes;
    if (range.of_pool) used_of_pool -= range.bytes;
    device_memory.erase(found);
    free((void*)(address - GUARD));
}

template <typename Ranges> bool is_within(const Ranges& ranges, uintptr_t address, size_t bytes, size_t (*length)(const typename Ranges::mapped_type&)) {
    auto next = ranges.upper_bound(address);
    if (next == ranges.begin()) return false;
    auto own = std::prev(next);
    return address + bytes <= own->first + length(own->second);
}

void hold(uintptr_t address, size_t bytes) {
    if (!is_within(device_memory, address, bytes, +[](const Range& range) { return range.bytes; })) misused("a copy leaves the device's memory");
}

bool is_pinned(const void* at, size_t bytes) {
    return is_within(pinned_memory, (uintptr_t)at, bytes, +[](const size_t& length) { return length; });
}

// ---------------------------------------------------------------- streams

typedef std::function<void()> Work;

// What a device may refuse of graphs.
enum Refusal { MAKING = 1, TELLING = 2, LAUNCHING = 3 };
bool refuses(Refusal refusal) { return setting("SOFT_CUDA_REFUSES_GRAPHS", 0) == (size_t)refusal; }

// Nodes come one after another. A handle of one is its number, from 1 on, so that it is the same in what is made of the graph.
struct Graph {
    std::vector<std::vector<Work>> nodes;
};

struct Stream {
    std::deque<Work> queue;
    size_t submitted = 0, done = 0;
    std::shared_ptr<Graph> graph;
    bool is_origin = false;
};

struct Event {
    std::shared_ptr<Stream> stream;
    size_t at = 0;
    std::shared_ptr<Graph> graph;
    bool is_timed = false;
    std::shared_ptr<double> time;
};

// Milliseconds that everything would have taken: a thousandth for each block of a launch, and what products say.
double spent = 0;

std::map<void*, std::shared_ptr<Stream>> streams;

std::shared_ptr<Stream> of(void* handle) {
    auto& stream = streams[handle];
    if (!stream) {
        if (handle != nullptr) misused("a stream is used that is not there");
        stream = std::make_shared<Stream>();
    }
    return stream;
}

void run_until(Stream& stream, size_t at) {
    while (stream.done < at) {
        Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        work();
        stream.done++;
    }
}

void run_all(Stream& stream) { run_until(stream, stream.submitted); }

void run_everything() {
    for (auto& [handle, stream] : streams) run_all(*stream);
}

void submit(Stream& stream, Work work) {
    if (stream.graph) {
        stream.graph->nodes.push_back({std::move(work)});
        return;
    }
    stream.queue.push_back(std::move(work));
    stream.submitted++;
}

bool is_capturing() {
    for (auto& [handle, stream] : streams)
        if (stream->graph) return true;
    return false;
}

// ---------------------------------------------------------------- modules

struct Module {
    void* library;
};

struct Function {
    std::string name;
    const Kernel* kernel;
    unsigned allowed = 48 << 10;
};

// What a node of a graph is told, as the driver has it.
struct Told {
    Function* function;
    unsigned x, y, z, tx, ty, tz, shared_bytes;
    void** arguments;
};

// A launch as work; none where it is refused. Arguments are copied now, and kept where they lie.
Work launch_of(const Told& told) {
    auto& [function, x, y, z, tx, ty, tz, shared_bytes, arguments] = told;
    bool fits = x > 0 && y > 0 && z > 0 && x <= 0x7fffffff && y <= 65535 && z <= 65535 && tx * ty * tz > 0 && tx * ty * tz <= 1024;
    if (!fits || shared_bytes > function->allowed || x % function->kernel->blocks_of_cluster != 0) return nullptr;
    if (function->kernel->blocks_of_cluster > 1 && setting("SOFT_CUDA_CLUSTERS", 1) == 0) return nullptr;
    auto launch = std::make_shared<Launch>();
    auto values = std::make_shared<std::vector<std::string>>();
    *launch = {function->name, function->kernel, {x, y, z}, {tx, ty, tz}, shared_bytes, {}};
    for (unsigned i = 0; i < function->kernel->count; i++) values->emplace_back((const char*)arguments[i], function->kernel->sizes[i]);
    for (std::string& value : *values) launch->arguments.push_back(value.data());
    return [launch, values] {
        run(*launch);
        spent += 1e-3 * launch->blocks.x * launch->blocks.y * launch->blocks.z;
        for (auto& [address, range] : device_memory) watch(address, range.bytes);
    };
}

thread_local void* current = nullptr;
char context;
char pool;

}  // namespace

#define API extern "C" __attribute__((visibility("default")))
typedef uintptr_t Address;

API Result cuInit(unsigned) { return SUCCESS; }
API Result cuGetErrorName(Result, const char** name) { return *name = "SOFT_CUDA", SUCCESS; }
API Result cuGetErrorString(Result result, const char** text) {
    *text = result == OUT_OF_MEMORY ? "out of memory" : result == INVALID_VALUE ? "invalid value" : "refused by the stand-in";
    return SUCCESS;
}

API Result cuDeviceGetCount(int* count) { return *count = (int)setting("SOFT_CUDA_DEVICES", 1), SUCCESS; }
API Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
API Result cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "software"), SUCCESS; }
API Result cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = total_memory(), SUCCESS; }
API Result cuDeviceGetAttribute(int* value, int attribute, int) {
    int architecture = (int)setting("SOFT_CUDA_ARCHITECTURE", 90);
    switch (attribute) {
        case 16: *value = 2; break;                    // multiprocessors
        case 75: *value = architecture / 10; break;    // the architecture
        case 76: *value = architecture % 10; break;
        case 115: *value = 1; break;                   // pools of memory
        default: *value = 0;
    }
    return SUCCESS;
}
API Result cuDeviceGetDefaultMemPool(void** handle, int) { return *handle = &pool, SUCCESS; }
API Result cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API Result cuMemPoolGetAttribute(void*, int attribute, void* value) {
    LOCKED;
    if (attribute != 8) return INVALID_VALUE;  // the most that was used
    *(uint64_t*)value = most_of_pool;
    return SUCCESS;
}

API Result cuDevicePrimaryCtxRetain(void** handle, int) { return *handle = &context, SUCCESS; }
API Result cuDevicePrimaryCtxRelease_v2(int) {
    LOCKED;
    run_everything();
    return SUCCESS;
}
API Result cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API Result cuCtxSetCurrent(void* handle) { return current = handle, SUCCESS; }
API Result cuCtxGetCurrent(void** handle) { return *handle = current, SUCCESS; }
API Result cuCtxSetFlags(unsigned) { return SUCCESS; }
API Result cuCtxSynchronize() {
    LOCKED;
    if (is_capturing()) return CAPTURE_UNSUPPORTED;
    run_everything();
    return SUCCESS;
}

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    LOCKED;
    *total = total_memory(), *free = *total - used;
    return SUCCESS;
}
API Result cuMemAlloc_v2(Address* address, size_t bytes) {
    LOCKED;
    return allocate(address, bytes, false);
}
API Result cuMemFree_v2(Address address) {
    LOCKED;
    if (is_capturing()) return CAPTURE_UNSUPPORTED;
    run_everything();
    release(address);
    return SUCCESS;
}
API Result cuMemAllocAsync(Address* address, size_t bytes, void* handle) {
    LOCKED;
    if (of(handle)->graph) return CAPTURE_UNSUPPORTED;
    Result result = allocate(address, bytes, true);
    if (result != OUT_OF_MEMORY) return result;
    // What is still to be given back may be enough.
    run_everything();
    return allocate(address, bytes, true);
}
API Result cuMemFreeAsync(Address address, void* handle) {
    LOCKED;
    auto stream = of(handle);
    if (stream->graph) return CAPTURE_UNSUPPORTED;
    submit(*stream, [address] { release(address); });
    return SUCCESS;
}
API Result cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    LOCKED;
    *at = aligned_alloc(4096, (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096);
    if (!*at) return OUT_OF_MEMORY;
    pinned_memory[(uintptr_t)*at] = bytes;
    return SUCCESS;
}
API Result cuMemFreeHost(void* at) {
    LOCKED;
    run_everything();
    if (pinned_memory.erase((uintptr_t)at) == 0) misused("pinned memory is freed that is not there");
    free(at);
    return SUCCESS;
}

API Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* handle) {
    LOCKED;
    hold(to, bytes);
    if (is_pinned(from, bytes) || of(handle)->graph) {
        submit(*of(handle), [=] { memcpy((void*)to, from, bytes); });
    } else {
        auto copy = std::make_shared<std::string>((const char*)from, bytes);
        submit(*of(handle), [=] { memcpy((void*)to, copy->data(), bytes); });
    }
    return SUCCESS;
}
API Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* handle) {
    LOCKED;
    hold(from, bytes);
    auto stream = of(handle);
    submit(*stream, [=] { memcpy(to, (const void*)from, bytes); });
    if (!is_pinned(to, bytes) && !stream->graph) run_all(*stream);
    return SUCCESS;
}
API Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* handle) {
    LOCKED;
    hold(from, bytes), hold(to, bytes);
    submit(*of(handle), [=] { memcpy((void*)to, (const void*)from, bytes); });
    return SUCCESS;
}
API Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* handle) {
    LOCKED;
    if (bytes > 0) hold(to, bytes);
    submit(*of(handle), [=] { memset((void*)to, value, bytes); });
    return SUCCESS;
}

API Result cuStreamCreate(void** handle, unsigned) {
    LOCKED;
    auto stream = std::make_shared<Stream>();
    *handle = stream.get();
    streams[*handle] = stream;
    return SUCCESS;
}
API Result cuStreamDestroy_v2(void* handle) {
    LOCKED;
    run_all(*of(handle));
    streams.erase(handle);
    return SUCCESS;
}
API Result cuStreamSynchronize(void* handle) {
    LOCKED;
    if (of(handle)->graph) return CAPTURE_UNSUPPORTED;
    run_all(*of(handle));
    return SUCCESS;
}
API Result cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    LOCKED;
    auto stream = of(handle);
    Event event = *(Event*)event_handle;
    if (event.graph) {
        if (stream->graph && stream->graph != event.graph) return CAPTURE_INVALIDATED;
        stream->graph = event.graph;
        return SUCCESS;
    }
    if (stream->graph) return CAPTURE_INVALIDATED;
    // A stream that waits for itself has nothing to wait for.
    if (event.stream && event.stream != stream) submit(*stream, [event] { run_until(*event.stream, event.at); });
    return SUCCESS;
}

API Result cuEventCreate(void** handle, unsigned flags) {
    auto event = new Event;
    event->is_timed = !(flags & 2);
    return *handle = event, SUCCESS;
}
API Result cuEventDestroy_v2(void* handle) {
    LOCKED;
    delete (Event*)handle;
    return SUCCESS;
}
API Result cuEventRecord(void* handle, void* stream_handle) {
    LOCKED;
    auto stream = of(stream_handle);
    auto time = std::make_shared<double>(0.0);
    bool is_timed = ((Event*)handle)->is_timed;
    if (is_timed && !stream->graph) submit(*stream, [time] { *time = spent; });
    *(Event*)handle = {stream, stream->submitted, stream->graph, is_timed, time};
    return SUCCESS;
}
API Result cuEventSynchronize(void* handle) {
    LOCKED;
    Event* event = (Event*)handle;
    if (event->graph) return CAPTURE_UNSUPPORTED;
    if (event->stream) run_until(*event->stream, event->at);
    return SUCCESS;
}
API Result cuEventQuery(void* handle) {
    LOCKED;
    Event* event = (Event*)handle;
    return !event->stream || event->stream->done >= event->at ? SUCCESS : NOT_READY;
}
API Result cuEventElapsedTime_v2(float* milliseconds, void* begin, void* end) {
    if (!((Event*)begin)->is_timed || !((Event*)end)->is_timed) return INVALID_VALUE;
    cuEventSynchronize(begin), cuEventSynchronize(end);
    *milliseconds = (float)(*((Event*)end)->time - *((Event*)begin)->time);
    return SUCCESS;
}

API Result cuStreamBeginCapture_v2(void* handle, int) {
    LOCKED;
    auto stream = of(handle);
    if (stream->graph) return INVALID_VALUE;
    stream->graph = std::make_shared<Graph>(), stream->is_origin = true;
    return SUCCESS;
}
API Result cuStreamEndCapture(void* handle, void** graph) {
    LOCKED;
    auto stream = of(handle);
    if (!stream->graph || !stream->is_origin) return INVALID_VALUE;
    auto own = stream->graph;
    for (auto& [_, other] : streams)
        if (other->graph == own) other->graph = nullptr, other->is_origin = false;
    *graph = new Graph(*own);
    return SUCCESS;
}
API Result cuGraphCreate(void** graph, unsigned) { return *graph = new Graph, SUCCESS; }
// Nodes are done in the order in which they were added, so that each has to come after the last.
static Result add_node(void** node, Graph& graph, void* const* before, size_t count, std::vector<Work> works) {
    if (count != (graph.nodes.empty() ? 0 : 1) || (count == 1 && (size_t)before[0] != graph.nodes.size())) return INVALID_VALUE;
    graph.nodes.push_back(std::move(works));
    *node = (void*)graph.nodes.size();
    return SUCCESS;
}
API Result cuGraphAddKernelNode_v2(void** node, void* graph, void* const* before, size_t count, const Told* told) {
    LOCKED;
    Work work = launch_of(*told);
    return work ? add_node(node, *(Graph*)graph, before, count, {work}) : INVALID_VALUE;
}
API Result cuGraphAddChildGraphNode(void** node, void* graph, void* const* before, size_t count, void* part) {
    LOCKED;
    std::vector<Work> works;
    for (auto& own : ((Graph*)part)->nodes) works.insert(works.end(), own.begin(), own.end());
    return add_node(node, *(Graph*)graph, before, count, works);
}
// What has been launched keeps what it was told.
API Result cuGraphExecKernelNodeSetParams_v2(void* executable, void* node, const Told* told) {
    LOCKED;
    if (refuses(TELLING)) return INVALID_VALUE;
    auto& nodes = ((Graph*)executable)->nodes;
    Work work = launch_of(*told);
    if (!work || (size_t)node == 0 || (size_t)node > nodes.size()) return INVALID_VALUE;
    nodes[(size_t)node - 1] = {work};
    return SUCCESS;
}
API Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    if (refuses(MAKING)) return OUT_OF_MEMORY;
    return *executable = new Graph(*(Graph*)graph), SUCCESS;
}
API Result cuGraphLaunch(void* executable, void* handle) {
    LOCKED;
    if (refuses(LAUNCHING)) return OUT_OF_MEMORY;
    for (auto& node : ((Graph*)executable)->nodes)
        for (const Work& work : node) submit(*of(handle), work);
    return SUCCESS;
}
API Result cuGraphDestroy(void* graph) { return delete (Graph*)graph, SUCCESS; }
API Result cuGraphExecDestroy(void* executable) { return delete (Graph*)executable, SUCCESS; }

API Result cuModuleLoadData(void** handle, const void* image) {
    // The compiler has put its version before the image, and the length.
    uint64_t length;
    const size_t version = strlen(SOFT_CUDA_VERSION);
    if (memcmp(image, SOFT_CUDA_VERSION, version) != 0) return INVALID_IMAGE;
    const char* after = (const char*)image + version;
    memcpy(&length, after, 8);
    char path[] = "/tmp/soft-cuda-XXXXXX";
    int file = mkstemp(path);
    bool is_written = file >= 0 && write(file, after + 8, length) == (ssize_t)length;
    if (file >= 0) close(file);
    void* library = is_written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) fprintf(stderr, "soft-cuda: %s\n", dlerror());
    unlink(path);
    if (!library) return INVALID_IMAGE;
    *handle = new Module{library};
    return SUCCESS;
}
API Result cuModuleUnload(void* handle) {
    LOCKED;
    run_everything();
    dlclose(((Module*)handle)->library);
    delete (Module*)handle;
    return SUCCESS;
}
API Result cuModuleGetFunction(void** handle, void* module, const char* name) {
    void* found = dlsym(((Module*)module)->library, (std::string("soft_cuda_kernel_") + name).c_str());
    if (!found) return NOT_FOUND;
    *handle = new Function{name, (const Kernel*)found};
    return SUCCESS;
}
API Result cuFuncSetAttribute(void* handle, int attribute, int value) {
    if (attribute != 8 || value < 0 || (size_t)value > MOST_SHARED) return INVALID_VALUE;  // the most of shared memory
    ((Function*)handle)->allowed = (unsigned)value;
    return SUCCESS;
}
API Result cuFuncGetAttribute(int* value, int attribute, void*) {
    return *value = attribute == 4 ? 32 : 0, SUCCESS;  // registers
}

API Result cuLaunchKernel(
    void* handle, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared_bytes, void* stream, void** arguments, void**
) {
    LOCKED;
    Work work = launch_of({(Function*)handle, x, y, z, tx, ty, tz, shared_bytes, arguments});
    if (!work) return INVALID_VALUE;
    submit(*of(stream), work);
    return SUCCESS;
}

// What work of another library would have taken; called by it.
API void soft_cuda_spend(double milliseconds) { spent += milliseconds; }

// Work of another library, in the order of a stream.
API void soft_cuda_submit(void* stream, void (*work)(void*), void (*drop)(void*), void* what) {
    LOCKED;
    std::shared_ptr<void> kept(what, drop);
    submit(*of(stream), [work, kept] { work(kept.get()); });
}
