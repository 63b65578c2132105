// Stands in for libnvrtc: compiles kernels as C++ behind `kernel.h`, each once: what is compiled stays beside this library.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cctype>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Result { SUCCESS = 0, COMPILATION = 6 };

struct Program {
    std::string source, log, image;
};

std::string content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

// The folder of this library, which has the headers and the driver.
std::string own_folder() {
    Dl_info info;
    dladdr((void*)own_folder, &info);
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Past what a parenthesis encloses.
size_t past(const std::string& text, size_t at) {
    for (int depth = 0; at < text.size(); at++) {
        if (text[at] == '(') depth++;
        if (text[at] == ')' && --depth == 0) return at + 1;
    }
    return at;
}

// Kernels of a preprocessed text, with the blocks of their clusters: the last name before a body, and a mark that may stand among those before it.
std::vector<std::pair<std::string, std::string>> kernels(const std::string& text) {
    const std::string begins = "__global__", mark = "SOFT_CUDA_CLUSTER";
    std::vector<std::pair<std::string, std::string>> found;
    for (size_t at = text.find(begins); at != std::string::npos; at = text.find(begins, at)) {
        std::string name, cluster = "1";
        at += begins.size();
        while (at < text.size() && text[at] != '{') {
            if (is_word(text[at])) {
                size_t start = at;
                while (is_word(text[at])) at++;
                name = text.substr(start, at - start);
            } else if (text[at] == '(') {
                size_t end = past(text, at);
                if (name == mark) cluster = text.substr(at, end - at);
                at = end;
            } else {
                at++;
            }
        }
        found.emplace_back(name, cluster);
    }
    return found;
}

// Memory that a launch sizes is the driver's.
std::string with_shared(std::string text) {
    const std::string begins = "extern __shared__ ";
    size_t at = text.find(begins);
    if (at == std::string::npos) return text;
    size_t open = text.find('[', at), end = text.find(';', at);
    std::string declared = text.substr(at + begins.size(), open - at - begins.size());
    size_t name = declared.rfind(' ');
    std::string type = declared.substr(0, name);
    if (type.compare(0, 9, "__align__") == 0) type = type.substr(past(type, 0));
    return text.replace(at, end + 1 - at, "\n#define " + declared.substr(name + 1) + " ((" + type + "*)soft_cuda::shared)\n");
}

bool run(const std::string& command) { return system(command.c_str()) == 0; }

// Compiles to a file, which is there whole or not at all.
bool compile(Program& program, const std::string& own, const std::string& architecture, const std::string& to) {
    char folder[] = "/tmp/soft-cuda-XXXXXX";
    if (!mkdtemp(folder)) return false;
    std::string here = folder, flags = " -std=c++17 -D__CUDA_ARCH__=" + architecture + " -w ";
    std::ofstream(here + "/text.cpp") << program.source;
    const char* mark = "'-D__cluster_dims__(x,y,z)=SOFT_CUDA_CLUSTER(x)'";
    bool is_done = run("c++ -E -P" + flags + mark + " -o " + here + "/text.i " + here + "/text.cpp 2> " + here + "/log");
    if (is_done) {
        std::ofstream file(here + "/kernels.cpp");
        file << "#include \"kernel.h\"\n" << with_shared(program.source) << "\n";
        for (auto& [name, cluster] : kernels(content(here + "/text.i"))) file << "SOFT_CUDA_KERNEL(" << name << ", " << cluster << ")\n";
        file.close();
        std::string part = to + "." + std::to_string(getpid());
        is_done = run(
            "c++ -O1 -shared -fPIC -ffp-contract=off" + flags + "-I " + own + " -o " + part + " " + here + "/kernels.cpp " + own + "/libcuda.so 2>> " + here + "/log"
        ) && rename(part.c_str(), to.c_str()) == 0;
    }
    program.log = content(here + "/log");
    run("rm -rf " + here);
    return is_done;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API Result nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*, const char* const*) {
    *program = new Program{source, "", ""};
    return SUCCESS;
}

API Result nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

API Result nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::string own = own_folder(), architecture = "0";
    for (int i = 0; i < count; i++) {
        const char* digits = strstr(options[i], "architecture=sm_");
        if (digits) architecture = std::to_string(atoi(digits + strlen("architecture=sm_")) * 10);
    }
    std::stringstream name;
    name << own << "/kernels-" << std::hex << std::hash<std::string>()(architecture + program->source) << ".so";
    std::string compiled = content(name.str());
    if (compiled.empty()) {
        bool is_compiled = compile(*program, own, architecture, name.str());
        if (!is_compiled) return COMPILATION;
        compiled = content(name.str());
    }
    uint64_t length = compiled.size();
    program->image = SOFT_CUDA_VERSION + std::string((const char*)&length, 8) + compiled;
    return SUCCESS;
}

API Result nvrtcGetCUBINSize(Program* program, size_t* bytes) { return *bytes = program->image.size(), SUCCESS; }
API Result nvrtcGetCUBIN(Program* program, char* image) { return memcpy(image, program->image.data(), program->image.size()), SUCCESS; }
API Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) { return *bytes = program->log.size() + 1, SUCCESS; }
API Result nvrtcGetProgramLog(Program* program, char* log) { return memcpy(log, program->log.c_str(), program->log.size() + 1), SUCCESS; }
API const char* nvrtcGetErrorString(Result result) { return result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }
