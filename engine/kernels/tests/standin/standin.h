// What the stand-in's parts share: how kernels are found and run (fibers.cpp) for the HIP calls (runtime.cpp).
#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace fibers {

// In which order threads and workgroups run.
enum class Order { Forward, Reverse, Shuffled };

struct Settings {
    Order order = Order::Forward;
    uint64_t seed = 1;
    unsigned helpers = 1; // OS threads besides the caller's
};

const Kernel *find(const char *name);
void launch(const Kernel &kernel, const u32 *grid, const void *args, const Settings &settings);

// OS threads that work on one launch together.
class Helpers {
  public:
    static Helpers &instance(unsigned count);
    explicit Helpers(unsigned count);
    void run(const std::function<void()> &work);

  private:
    std::mutex mutex;
    std::condition_variable begin, end;
    std::function<void()> task;
    uint64_t round = 0;
    unsigned busy = 0, count = 0;
};

} // namespace fibers
