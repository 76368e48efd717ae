// Fibers: threads of a workgroup that hand over to each other at barriers and wave operations. See fibers.h.
#include "../../hip/device.h"
#include "standin.h"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fibers {

thread_local Place *here = nullptr;

namespace {

constexpr int MAX_THREADS = 512;
constexpr size_t STACK_BYTES = 128 << 10, LDS_BYTES = 64 << 10;

std::map<std::string, Kernel> &registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

#if defined(__x86_64__)
using Context = void *;

// Saves what a call must keep, and the stack, and takes the other's.
__attribute__((naked, noinline)) void swap(Context *, Context) {
    asm volatile("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
                 "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
                 "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

void prepare(Context *context, char *stack, void (*enter)()) {
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    // Aligned as after a call: the entry finds a return address that it never uses.
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(enter);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    *context = top;
}
void swap_to(Context *from, Context *to) { swap(from, *to); }
#else
using Context = ucontext_t;
void prepare(Context *context, char *stack, void (*enter)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK_BYTES;
    context->uc_link = nullptr;
    makecontext(context, enter, 0);
}
void swap_to(Context *from, Context *to) { swapcontext(from, to); }
#endif

enum class State { Ready, InWave, InBlock, Done };

struct Fiber {
    Context context;
    Place place;
    State state;
    Operation operation;
};

// Runs workgroups, one after the other, on the OS thread that owns it.
struct Runner {
    Fiber fiber[MAX_THREADS];
    Exchange exchange[MAX_THREADS / WAVE];
    Context scheduler;
    char *stacks;
    char *lds;
    size_t lds_used = 0;
    std::vector<std::pair<const void *, void *>> lds_places;
    const Kernel *kernel = nullptr;
    const void *args = nullptr;
    Fiber *running = nullptr;
    uint64_t random = 0;

    Runner() {
        void *memory = mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks = static_cast<char *>(memory);
        lds = static_cast<char *>(aligned_alloc(64, LDS_BYTES));
    }

    [[noreturn]] void fail(const char *what) {
        fprintf(stderr, "stand-in: kernel %s: %s\n", kernel->name, what);
        abort();
    }

    uint64_t next() {
        random = random * 6364136223846793005u + 1442695040888963407u;
        return random >> 33;
    }

    void order(int *list, int count, Order how) {
        for (int i = 0; i < count; i++) list[i] = how == Order::Reverse ? count - 1 - i : i;
        if (how != Order::Shuffled) return;
        for (int i = count - 1; i > 0; i--) std::swap(list[i], list[next() % (i + 1)]);
    }

    void finish(int wave, int lanes) {
        Exchange &x = exchange[wave];
        const Fiber *first = fiber + wave * WAVE;
        for (int i = 0; i < lanes; i++) {
            if (first[i].state != State::InWave) fail("some lanes left before a wave operation");
            if (first[i].operation != first[0].operation) fail("lanes met in different wave operations");
        }
        if (lanes != WAVE) fail("a wave operation of an incomplete wave");
        switch (first[0].operation) {
        case Operation::Sum:
        case Operation::Max:
            // The order of the butterfly of device.h.
            for (int mask = WAVE / 2; mask > 0; mask /= 2) {
                float now[WAVE];
                for (int i = 0; i < WAVE; i++) {
                    const float a = x.value[i], b = x.value[i ^ mask];
                    now[i] = first[0].operation == Operation::Sum ? a + b : __builtin_fmaxf(a, b);
                }
                memcpy(x.value, now, sizeof now);
            }
            break;
        case Operation::Wmma: multiply(x); break;
        case Operation::Shuffle:
        case Operation::WaveBarrier: break;
        case Operation::Barrier: fail("a barrier among wave operations");
        }
    }

    void multiply(Exchange &x) {
        float a[16][16], b[16][16], c[16][16] = {};
        for (int lane = 0; lane < 16; lane++) {
            if (memcmp(&x.a[lane], &x.a[lane + 16], sizeof(f16x16)) || memcmp(&x.b[lane], &x.b[lane + 16], sizeof(f16x16))) {
                fail("the halves of a wave hold different tiles");
            }
            for (int k = 0; k < 16; k++) {
                a[lane][k] = static_cast<float>(x.a[lane][k]);
                b[k][lane] = static_cast<float>(x.b[lane][k]);
            }
        }
        for (int row = 0; row < 16; row++) {
            for (int k = 0; k < 16; k++) {
                for (int column = 0; column < 16; column++) c[row][column] += a[row][k] * b[k][column];
            }
        }
        for (int lane = 0; lane < WAVE; lane++) {
            for (int v = 0; v < 8; v++) x.c[lane][v] += c[2 * v + lane / 16][lane % 16];
        }
    }

    void run(const Kernel &which, const void *arguments, const u32 *block, const Settings &settings) {
        kernel = &which;
        args = arguments;
        lds_used = 0;
        lds_places.clear();
        random = settings.seed + block[0] * 7919u + block[1] * 104729u + block[2] * 1299709u;
        const int count = static_cast<int>(which.threads), waves = (count + WAVE - 1) / WAVE;
        for (int i = 0; i < count; i++) {
            fiber[i].place = {i, {block[0], block[1], block[2]}, &exchange[i / WAVE]};
            fiber[i].state = State::Ready;
            prepare(&fiber[i].context, stacks + i * STACK_BYTES, enter);
        }
        int wave_order[MAX_THREADS / WAVE], lane_order[WAVE];
        for (;;) {
            order(wave_order, waves, settings.order);
            int done = 0;
            for (int w = 0; w < waves; w++) {
                const int wave = wave_order[w], lanes = std::min(WAVE, count - wave * WAVE);
                for (;;) {
                    order(lane_order, lanes, settings.order);
                    int in_wave = 0, finished = 0;
                    for (int l = 0; l < lanes; l++) {
                        Fiber &one = fiber[wave * WAVE + lane_order[l]];
                        if (one.state == State::Ready) {
                            running = &one;
                            here = &one.place;
                            swap_to(&scheduler, &one.context);
                        }
                        in_wave += one.state == State::InWave;
                        finished += one.state == State::Done;
                    }
                    if (in_wave == 0) {
                        if (finished != 0 && finished != lanes) fail("some lanes left before a barrier");
                        done += finished;
                        break;
                    }
                    finish(wave, lanes);
                    for (int l = 0; l < lanes; l++) fiber[wave * WAVE + l].state = State::Ready;
                }
            }
            if (done == count) return;
            // Waves that ended no longer count at a barrier, as on the card.
            for (int i = 0; i < count; i++) {
                if (fiber[i].state == State::InBlock) fiber[i].state = State::Ready;
            }
        }
    }

    static void enter();
};

thread_local std::unique_ptr<Runner> runner;

void Runner::enter() {
    Runner &self = *runner;
    self.kernel->enter(self.args);
    self.running->state = State::Done;
    swap_to(&self.running->context, &self.scheduler);
    abort();
}

} // namespace

Registration::Registration(const char *name, unsigned threads, size_t args_bytes, void (*enter)(const void *)) {
    registry()[name] = Kernel{name, threads, args_bytes, enter};
}

void meet(Operation operation) {
    Runner &self = *runner;
    Fiber &me = *self.running;
    me.operation = operation;
    me.state = operation == Operation::Barrier ? State::InBlock : State::InWave;
    swap_to(&me.context, &self.scheduler);
}

void *shared(const void *key, size_t bytes) {
    Runner &self = *runner;
    for (const auto &[known, place] : self.lds_places) {
        if (known == key) return place;
    }
    bytes = (bytes + 63) / 64 * 64;
    if (self.lds_used + bytes > LDS_BYTES) self.fail("more LDS than there is");
    char *place = self.lds + self.lds_used;
    self.lds_used += bytes;
    // NaNs, whether they are read as f32 or f16.
    memset(place, 0xff, bytes);
    self.lds_places.emplace_back(key, place);
    return place;
}

const Kernel *find(const char *name) {
    const auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

void launch(const Kernel &kernel, const u32 *grid, const void *args, const Settings &settings) {
    const uint64_t total = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    std::atomic<uint64_t> next{0};
    auto work = [&] {
        if (!runner) runner = std::make_unique<Runner>();
        for (;;) {
            // Several at a time: a workgroup is often short.
            const uint64_t begin = next.fetch_add(8);
            if (begin >= total) return;
            for (uint64_t i = begin; i < std::min(total, begin + 8); i++) {
                const uint64_t at = settings.order == Order::Reverse ? total - 1 - i : i;
                const u32 block[3] = {static_cast<u32>(at % grid[0]), static_cast<u32>(at / grid[0] % grid[1]),
                                      static_cast<u32>(at / grid[0] / grid[1])};
                runner->run(kernel, args, block, settings);
            }
        }
    };
    if (total < 64 || settings.helpers == 0) return work();
    // The helpers live as long as the process: their fibers' stacks stay warm.
    static std::mutex one_launch;
    std::lock_guard<std::mutex> lock(one_launch);
    Helpers::instance(settings.helpers).run(work);
}

Helpers &Helpers::instance(unsigned count) {
    static Helpers *helpers = new Helpers(count);
    return *helpers;
}

Helpers::Helpers(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        std::thread([this] {
            uint64_t seen = 0;
            for (;;) {
                std::unique_lock<std::mutex> lock(mutex);
                begin.wait(lock, [&] { return round != seen; });
                seen = round;
                lock.unlock();
                task();
                lock.lock();
                if (--busy == 0) end.notify_one();
            }
        }).detach();
    }
    this->count = count;
}

void Helpers::run(const std::function<void()> &work) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        task = work;
        busy = count;
        round++;
    }
    begin.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex);
    end.wait(lock, [&] { return busy == 0; });
}

} // namespace fibers
