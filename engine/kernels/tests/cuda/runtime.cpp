// A libamdhip64 over NVIDIA's driver: the calls that the engine makes, one for one, so that the same kernels and the
// same `selftest` run on an NVIDIA card. For checks and measurements only.
//
// Code objects of AMD cards are taken and set aside; a kernel is looked for by its name in the *.cubin files beside
// this library, which nvcc made of the same sources. The card's address is that of the tests' folder of driver files.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

using Handle = void *;
using Address = unsigned long long;
constexpr int NO_DRIVER = 100, NOT_FOUND = 500;

// The driver's functions, by their own names; they answer CUresult, whose codes are HIP's where the engine looks.
#define FUNCTIONS(F)                                                                                                  \
    F(cuInit, unsigned)                                                                                               \
    F(cuDriverGetVersion, int *)                                                                                      \
    F(cuDeviceGetName, char *, int, int)                                                                              \
    F(cuDeviceGetCount, int *)                                                                                        \
    F(cuDevicePrimaryCtxRetain, Handle *, int)                                                                        \
    F(cuCtxSetCurrent, Handle)                                                                                        \
    F(cuMemGetInfo_v2, size_t *, size_t *)                                                                            \
    F(cuMemAlloc_v2, Address *, size_t)                                                                               \
    F(cuMemFree_v2, Address)                                                                                          \
    F(cuMemHostAlloc, void **, size_t, unsigned)                                                                      \
    F(cuMemFreeHost, void *)                                                                                          \
    F(cuMemcpyAsync, Address, Address, size_t, Handle)                                                                \
    F(cuMemsetD8Async, Address, unsigned char, size_t, Handle)                                                        \
    F(cuStreamCreate, Handle *, unsigned)                                                                             \
    F(cuStreamDestroy_v2, Handle)                                                                                     \
    F(cuEventCreate, Handle *, unsigned)                                                                              \
    F(cuEventDestroy_v2, Handle)                                                                                      \
    F(cuEventRecord, Handle, Handle)                                                                                  \
    F(cuEventQuery, Handle)                                                                                           \
    F(cuEventElapsedTime, float *, Handle, Handle)                                                                    \
    F(cuModuleLoadData, Handle *, const void *)                                                                       \
    F(cuModuleGetFunction, Handle *, Handle, const char *)                                                            \
    F(cuLaunchKernel, Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **,  \
      void **)                                                                                                        \
    F(cuStreamBeginCapture_v2, Handle, int)                                                                           \
    F(cuStreamEndCapture, Handle, Handle *)                                                                           \
    F(cuGraphInstantiateWithFlags, Handle *, Handle, unsigned long long)                                              \
    F(cuGraphLaunch, Handle, Handle)                                                                                  \
    F(cuGraphDestroy, Handle)                                                                                         \
    F(cuGraphExecDestroy, Handle)                                                                                     \
    F(cuGetErrorName, int, const char **)

struct Driver {
#define DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    FUNCTIONS(DECLARE)
    bool found = true;
    Handle context = nullptr;
    std::vector<Handle> modules;

    Driver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library) {
            fprintf(stderr, "no NVIDIA driver: %s\n", dlerror());
            found = false;
            return;
        }
#define FIND(name, ...)                                                                                               \
    if (!(name = reinterpret_cast<int (*)(__VA_ARGS__)>(dlsym(library, #name)))) {                                    \
        fprintf(stderr, "the NVIDIA driver lacks %s\n", #name);                                                       \
        found = false;                                                                                                \
    }
        FUNCTIONS(FIND)
    }

    // Every cubin beside this library, once.
    int load_modules() {
        if (!modules.empty()) return 0;
        Dl_info info;
        static const char here = 0;
        if (!dladdr(&here, &info)) return NOT_FOUND;
        const std::string library = info.dli_fname, folder = library.substr(0, library.rfind('/') + 1);
        DIR *files = opendir(folder.c_str());
        if (!files) return NOT_FOUND;
        int code = 0;
        while (const dirent *file = readdir(files)) {
            const std::string name = file->d_name;
            if (name.size() < 6 || name.compare(name.size() - 6, 6, ".cubin") != 0) continue;
            std::ifstream stream(folder + name, std::ios::binary);
            const std::vector<char> image{std::istreambuf_iterator<char>(stream), {}};
            Handle module = nullptr;
            if ((code = cuModuleLoadData(&module, image.data()))) {
                fprintf(stderr, "%s cannot be loaded: %d\n", name.c_str(), code);
                break;
            }
            modules.push_back(module);
        }
        closedir(files);
        return code ? code : modules.empty() ? NOT_FOUND : 0;
    }
};

Driver &driver() {
    static Driver *one = new Driver;
    return *one;
}

Address address(const void *at) { return reinterpret_cast<Address>(at); }

} // namespace

API hipInit(unsigned flags) { return driver().found ? driver().cuInit(flags) : NO_DRIVER; }
API hipRuntimeGetVersion(int *version) { return driver().cuDriverGetVersion(version); }
API hipGetDeviceCount(int *count) { return driver().cuDeviceGetCount(count); }
API hipDeviceGetName(char *name, int length, int device) { return driver().cuDeviceGetName(name, length, device); }

API hipSetDevice(int device) {
    Driver &d = driver();
    if (!d.context) {
        if (const int code = d.cuDevicePrimaryCtxRetain(&d.context, device)) return code;
    }
    return d.cuCtxSetCurrent(d.context);
}

API hipDeviceGetPCIBusId(char *id, int length, int) {
    snprintf(id, static_cast<size_t>(length), "0000:03:00.0");
    return 0;
}

API hipMemGetInfo(size_t *available, size_t *total) { return driver().cuMemGetInfo_v2(available, total); }

API hipMalloc(void **at, size_t bytes) {
    Address found = 0;
    const int code = driver().cuMemAlloc_v2(&found, bytes);
    *at = reinterpret_cast<void *>(found);
    return code;
}

API hipFree(void *at) { return driver().cuMemFree_v2(address(at)); }
API hipHostMalloc(void **at, size_t bytes, unsigned) { return driver().cuMemHostAlloc(at, bytes, 0); }
API hipHostFree(void *at) { return driver().cuMemFreeHost(at); }

API hipMemcpyAsync(void *to, const void *from, size_t bytes, int, Handle stream) {
    return driver().cuMemcpyAsync(address(to), address(from), bytes, stream);
}

API hipMemsetAsync(void *to, int value, size_t bytes, Handle stream) {
    return driver().cuMemsetD8Async(address(to), static_cast<unsigned char>(value), bytes, stream);
}

API hipStreamCreateWithFlags(Handle *stream, unsigned flags) { return driver().cuStreamCreate(stream, flags); }
API hipStreamDestroy(Handle stream) { return driver().cuStreamDestroy_v2(stream); }
API hipEventCreateWithFlags(Handle *event, unsigned flags) { return driver().cuEventCreate(event, flags); }
API hipEventDestroy(Handle event) { return driver().cuEventDestroy_v2(event); }
API hipEventRecord(Handle event, Handle stream) { return driver().cuEventRecord(event, stream); }
API hipEventQuery(Handle event) { return driver().cuEventQuery(event); }

API hipEventElapsedTime(float *milliseconds, Handle from, Handle to) {
    return driver().cuEventElapsedTime(milliseconds, from, to);
}

API hipModuleLoadData(Handle *module, const void *image) {
    *module = const_cast<void *>(image);
    return driver().load_modules();
}

API hipModuleUnload(Handle) { return 0; }

API hipModuleGetFunction(Handle *function, Handle, const char *name) {
    for (Handle module : driver().modules) {
        const int code = driver().cuModuleGetFunction(function, module, name);
        if (code != NOT_FOUND) return code;
    }
    return NOT_FOUND;
}

API hipModuleLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, Handle stream, void **, void **extra) {
    // The tags of pointer and size are the same; the one that ends the list is 0 here.
    void *list[] = {extra[0], extra[1], extra[2], extra[3], nullptr};
    return driver().cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, nullptr, list);
}

API hipStreamBeginCapture(Handle stream, int mode) { return driver().cuStreamBeginCapture_v2(stream, mode); }
API hipStreamEndCapture(Handle stream, Handle *graph) { return driver().cuStreamEndCapture(stream, graph); }

API hipGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long flags) {
    return driver().cuGraphInstantiateWithFlags(executable, graph, flags);
}

API hipGraphLaunch(Handle executable, Handle stream) { return driver().cuGraphLaunch(executable, stream); }
API hipGraphDestroy(Handle graph) { return driver().cuGraphDestroy(graph); }
API hipGraphExecDestroy(Handle executable) { return driver().cuGraphExecDestroy(executable); }

extern "C" __attribute__((visibility("default"))) const char *hipGetErrorName(int code) {
    const char *name = nullptr;
    if (!driver().found) return "no NVIDIA driver";
    return driver().cuGetErrorName(code, &name) == 0 && name ? name : "unknown";
}
