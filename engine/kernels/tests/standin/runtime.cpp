// A stand-in for libamdhip64: the calls that the engine makes, on host memory, with kernels run as fibers.
//
// It is as strict as it can be: memory is checked to be the device's, launches are checked against the kernel's own
// workgroup and arguments, and device memory begins as NaNs. ATLAS_STANDIN in the environment, or else a file
// standin.conf beside the library, a list of key=value parted by semicolons, chooses what a real card would:
//   order=forward|reverse|shuffled   seed=N   threads=N   vram=BYTES   pci=0000:03:00.0
//   fault=CALL:N:CODE[:M]   the N-th call of CALL and the M-1 after it (every later one) answer CODE; may be repeated
//   hang=N                  from the N-th launch on, nothing ever becomes ready
//   arm=file                faults and hangs wait, and count, from when a file named armed stands beside the library
#include "../../hip/device.h"
#include "standin.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
              NOT_FOUND = 500, NOT_READY = 600;

struct Fault {
    std::string call;
    uint64_t from, count;
    int code;
};

struct Launch {
    const fibers::Kernel *kernel;
    u32 grid[3];
    std::vector<char> args;
};

// What a graph repeats: a launch, or a copy.
struct Node {
    Launch launch;
    void *to = nullptr;
    const void *from = nullptr;
    size_t bytes = 0;
};

struct Stream {
    bool capturing = false;
    std::vector<Node> graph;
};

struct Event {
    std::chrono::steady_clock::time_point at;
};

struct State {
    fibers::Settings settings;
    uint64_t vram = 24ull << 30, used = 0, launches = 0, hang_from = ~0ull;
    std::string pci = "0000:03:00.0", arm_file;
    std::vector<Fault> faults;
    std::map<std::string, uint64_t> calls;
    std::map<char *, size_t> memory;
    std::mutex mutex;

    // Where the library lies.
    static std::string folder() {
        Dl_info info;
        static const char here = 0;
        if (!dladdr(&here, &info)) return "";
        const std::string library = info.dli_fname;
        return library.substr(0, library.rfind('/') + 1);
    }

    static std::string configuration() {
        if (const char *text = getenv("ATLAS_STANDIN")) return text;
        std::ifstream file(folder() + "standin.conf");
        std::stringstream text;
        text << file.rdbuf();
        return text.str();
    }

    State() {
        settings.helpers = 1;
        std::stringstream list(configuration());
        for (std::string item; std::getline(list, item, ';');) {
            const size_t equals = item.find('=');
            if (equals == std::string::npos) continue;
            const std::string key = item.substr(0, equals), value = item.substr(equals + 1);
            if (key == "order") {
                settings.order = value == "reverse"    ? fibers::Order::Reverse
                                 : value == "shuffled" ? fibers::Order::Shuffled
                                                       : fibers::Order::Forward;
            } else if (key == "seed") {
                settings.seed = strtoull(value.c_str(), nullptr, 10);
            } else if (key == "threads") {
                settings.helpers = static_cast<unsigned>(strtoul(value.c_str(), nullptr, 10)) - 1;
            } else if (key == "vram") {
                vram = strtoull(value.c_str(), nullptr, 10);
            } else if (key == "pci") {
                pci = value;
            } else if (key == "hang") {
                hang_from = strtoull(value.c_str(), nullptr, 10);
            } else if (key == "arm") {
                arm_file = folder() + "armed";
            } else if (key == "fault") {
                const size_t first = value.find(':'), second = value.find(':', first + 1);
                const size_t third = value.find(':', second + 1);
                const bool counted = third != std::string::npos;
                faults.push_back({value.substr(0, first), strtoull(value.c_str() + first + 1, nullptr, 10),
                                  counted ? strtoull(value.c_str() + third + 1, nullptr, 10) : ~0ull >> 1,
                                  atoi(value.c_str() + second + 1)});
            } else {
                fprintf(stderr, "stand-in: unknown setting %s\n", key.c_str());
                abort();
            }
        }
    }

    // Counts the call; the code it shall answer.
    int enter(const char *call) {
        if (faults.empty() || !armed()) return SUCCESS;
        std::lock_guard<std::mutex> lock(mutex);
        const uint64_t count = ++calls[call];
        for (const Fault &fault : faults) {
            if (fault.call == call && count >= fault.from && count - fault.from < fault.count) return fault.code;
        }
        return SUCCESS;
    }

    bool is_device(const void *at, size_t bytes) {
        std::lock_guard<std::mutex> lock(mutex);
        const char *from = static_cast<const char *>(at);
        auto after = memory.upper_bound(const_cast<char *>(from));
        if (after == memory.begin()) return false;
        --after;
        return from + bytes <= after->first + after->second;
    }

    bool armed() const { return arm_file.empty() || access(arm_file.c_str(), F_OK) == 0; }
    bool hangs() const { return launches >= hang_from && armed(); }
};

State &state() {
    static State *one = new State;
    return *one;
}

#define ENTER()                                                                                                       \
    if (const int code = state().enter(__func__)) return code

int repeat(const Node &node) {
    if (node.to) {
        memmove(node.to, node.from, node.bytes);
        return SUCCESS;
    }
    state().launches++;
    if (!state().hangs()) fibers::launch(*node.launch.kernel, node.launch.grid, node.launch.args.data(), state().settings);
    return SUCCESS;
}

} // namespace

API hipInit(unsigned) {
    ENTER();
    return SUCCESS;
}

API hipRuntimeGetVersion(int *version) {
    ENTER();
    *version = 60032830;
    return SUCCESS;
}

API hipGetDeviceCount(int *count) {
    ENTER();
    *count = 1;
    return SUCCESS;
}

API hipSetDevice(int device) {
    ENTER();
    return device == 0 ? SUCCESS : INVALID_DEVICE;
}

API hipDeviceGetPCIBusId(char *id, int length, int device) {
    ENTER();
    if (device != 0) return INVALID_DEVICE;
    snprintf(id, length, "%s", state().pci.c_str());
    return SUCCESS;
}

API hipMemGetInfo(size_t *available, size_t *total) {
    ENTER();
    *available = state().vram - state().used;
    *total = state().vram;
    return SUCCESS;
}

API hipMalloc(void **at, size_t bytes) {
    ENTER();
    State &s = state();
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > s.vram - s.used) return OUT_OF_MEMORY;
    char *memory = static_cast<char *>(aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
    if (!memory) return OUT_OF_MEMORY;
    // Small allocations begin as NaNs; whole arenas would cost real memory for nothing.
    if (bytes <= (64u << 20)) memset(memory, 0xff, bytes);
    std::lock_guard<std::mutex> lock(s.mutex);
    s.memory[memory] = bytes;
    s.used += bytes;
    *at = memory;
    return SUCCESS;
}

API hipFree(void *at) {
    ENTER();
    State &s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    const auto found = s.memory.find(static_cast<char *>(at));
    if (found == s.memory.end()) return INVALID_VALUE;
    s.used -= found->second;
    s.memory.erase(found);
    free(at);
    return SUCCESS;
}

API hipHostMalloc(void **at, size_t bytes, unsigned) {
    ENTER();
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}

API hipHostFree(void *at) {
    ENTER();
    free(at);
    return SUCCESS;
}

API hipMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    ENTER();
    enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };
    if (kind == HOST_TO_DEVICE && !state().is_device(to, bytes)) return INVALID_VALUE;
    if (kind == DEVICE_TO_HOST && !state().is_device(from, bytes)) return INVALID_VALUE;
    Node node;
    node.to = to;
    node.from = from;
    node.bytes = bytes;
    Stream *on = static_cast<Stream *>(stream);
    if (on && on->capturing) {
        on->graph.push_back(node);
        return SUCCESS;
    }
    return repeat(node);
}

API hipMemsetAsync(void *to, int value, size_t bytes, void *) {
    ENTER();
    if (!state().is_device(to, bytes)) return INVALID_VALUE;
    memset(to, value, bytes);
    return SUCCESS;
}

API hipStreamCreateWithFlags(void **stream, unsigned) {
    ENTER();
    *stream = new Stream;
    return SUCCESS;
}

API hipStreamDestroy(void *stream) {
    ENTER();
    delete static_cast<Stream *>(stream);
    return SUCCESS;
}

API hipEventCreateWithFlags(void **event, unsigned) {
    ENTER();
    *event = new Event;
    return SUCCESS;
}

API hipEventDestroy(void *event) {
    ENTER();
    delete static_cast<Event *>(event);
    return SUCCESS;
}

API hipEventRecord(void *event, void *) {
    ENTER();
    static_cast<Event *>(event)->at = std::chrono::steady_clock::now();
    return SUCCESS;
}

API hipEventQuery(void *) {
    ENTER();
    return state().hangs() ? NOT_READY : SUCCESS;
}

API hipEventElapsedTime(float *milliseconds, void *from, void *to) {
    ENTER();
    const auto time = static_cast<Event *>(to)->at - static_cast<Event *>(from)->at;
    *milliseconds = std::chrono::duration<float, std::milli>(time).count();
    return SUCCESS;
}

API hipModuleLoadData(void **module, const void *image) {
    ENTER();
    if (memcmp(image, "\177ELF", 4) != 0) return INVALID_IMAGE;
    *module = const_cast<void *>(image);
    return SUCCESS;
}

API hipModuleUnload(void *) {
    ENTER();
    return SUCCESS;
}

API hipModuleGetFunction(void **function, void *, const char *name) {
    ENTER();
    *function = const_cast<fibers::Kernel *>(fibers::find(name));
    return *function ? SUCCESS : NOT_FOUND;
}

API hipModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned lds, void *stream, void **, void **extra) {
    ENTER();
    Node node;
    node.launch.kernel = static_cast<const fibers::Kernel *>(function);
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535) return INVALID_VALUE;
    if (bx != node.launch.kernel->threads || by != 1 || bz != 1 || lds != 0) return INVALID_VALUE;
    // HIP_LAUNCH_PARAM_BUFFER_POINTER, the buffer, _BUFFER_SIZE, its size, _END.
    if (!extra || extra[0] != reinterpret_cast<void *>(1) || extra[2] != reinterpret_cast<void *>(2)) return INVALID_VALUE;
    const size_t bytes = *static_cast<size_t *>(extra[3]);
    if (bytes != node.launch.kernel->args_bytes) return INVALID_VALUE;
    const char *args = static_cast<const char *>(extra[1]);
    node.launch.args.assign(args, args + bytes);
    node.launch.grid[0] = gx;
    node.launch.grid[1] = gy;
    node.launch.grid[2] = gz;
    Stream *on = static_cast<Stream *>(stream);
    if (on && on->capturing) {
        on->graph.push_back(node);
        return SUCCESS;
    }
    return repeat(node);
}

API hipStreamBeginCapture(void *stream, int) {
    ENTER();
    Stream *on = static_cast<Stream *>(stream);
    on->capturing = true;
    on->graph.clear();
    return SUCCESS;
}

API hipStreamEndCapture(void *stream, void **graph) {
    ENTER();
    Stream *on = static_cast<Stream *>(stream);
    on->capturing = false;
    *graph = new std::vector<Node>(std::move(on->graph));
    return SUCCESS;
}

API hipGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    ENTER();
    *executable = new std::vector<Node>(*static_cast<std::vector<Node> *>(graph));
    return SUCCESS;
}

API hipGraphLaunch(void *executable, void *) {
    ENTER();
    for (const Node &node : *static_cast<std::vector<Node> *>(executable)) {
        if (const int code = repeat(node)) return code;
    }
    return SUCCESS;
}

API hipGraphDestroy(void *graph) {
    ENTER();
    delete static_cast<std::vector<Node> *>(graph);
    return SUCCESS;
}

API hipGraphExecDestroy(void *executable) {
    ENTER();
    delete static_cast<std::vector<Node> *>(executable);
    return SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char *hipGetErrorName(int code) {
    switch (code) {
    case SUCCESS: return "hipSuccess";
    case INVALID_VALUE: return "hipErrorInvalidValue";
    case OUT_OF_MEMORY: return "hipErrorOutOfMemory";
    case INVALID_DEVICE: return "hipErrorInvalidDevice";
    case INVALID_IMAGE: return "hipErrorInvalidImage";
    case NOT_FOUND: return "hipErrorNotFound";
    case NOT_READY: return "hipErrorNotReady";
    case 700: return "hipErrorIllegalAddress";
    case 719: return "hipErrorLaunchFailure";
    default: return "hipErrorUnknown";
    }
}
