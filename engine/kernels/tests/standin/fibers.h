// The host's body of hip/device.h: every thread of a workgroup is a fiber, every workgroup runs on one OS thread.
//
// What a GPU leaves open is chosen badly on purpose: threads run in an order of the test's choice (forward, reverse,
// shuffled anew in every turn), and LDS holds NaNs before the kernel writes it. Lanes that part at a wave operation,
// and threads that part at a barrier, end the process with the kernel's name.
#pragma once
#include <cstddef>

#define DEVICE static inline
#define KERNEL(name, Args, threads)                                                                                   \
    static void name##_body(const Args &);                                                                            \
    static void name##_enter(const void *a) { name##_body(*static_cast<const Args *>(a)); }                           \
    static const fibers::Registration name##_registration{#name, threads, sizeof(Args), name##_enter};                \
    static void name##_body([[maybe_unused]] const Args &a)
#define SHARED(T, name, count)                                                                                        \
    static const char name##_key = 0;                                                                                 \
    T *const name = static_cast<T *>(fibers::shared(&name##_key, sizeof(T) * (count)))

static constexpr int WAVE = 32, PIECES_AHEAD = 1;

namespace fibers {

struct Kernel {
    const char *name;
    unsigned threads;
    size_t args_bytes;
    void (*enter)(const void *);
};

struct Registration {
    Registration(const char *name, unsigned threads, size_t args_bytes, void (*enter)(const void *));
};

// What all lanes of a wave give to one operation; results replace the inputs.
struct Exchange {
    float value[WAVE];
    f16x16 a[WAVE], b[WAVE];
    f32x8 c[WAVE];
};

enum class Operation { Barrier, WaveBarrier, Shuffle, Sum, Max, Wmma };

struct Place {
    int thread;
    u32 block[3];
    Exchange *exchange; // of the wave
};

extern thread_local Place *here __attribute__((tls_model("initial-exec")));

// Hands over until all that take part in the operation have come.
void meet(Operation operation);
void *shared(const void *key, size_t bytes);

} // namespace fibers

DEVICE int thread() { return fibers::here->thread; }
DEVICE u32 block_x() { return fibers::here->block[0]; }
DEVICE u32 block_y() { return fibers::here->block[1]; }
DEVICE u32 block_z() { return fibers::here->block[2]; }
DEVICE void barrier() { fibers::meet(fibers::Operation::Barrier); }
DEVICE void wave_barrier() { fibers::meet(fibers::Operation::WaveBarrier); }
DEVICE void hold() {}

DEVICE float wave_operation(float value, fibers::Operation operation) {
    float &slot = fibers::here->exchange->value[thread() % WAVE];
    slot = value;
    fibers::meet(operation);
    return slot;
}

#define OWN_WAVE_OPERATIONS
DEVICE float wave_sum(float value) { return wave_operation(value, fibers::Operation::Sum); }
DEVICE float wave_max(float value) { return wave_operation(value, fibers::Operation::Max); }

DEVICE float shuffle_xor(float value, int mask) {
    fibers::Exchange &exchange = *fibers::here->exchange;
    exchange.value[thread() % WAVE] = value;
    fibers::meet(fibers::Operation::Shuffle);
    const float other = exchange.value[(thread() % WAVE) ^ mask];
    // Nobody writes before all have read.
    fibers::meet(fibers::Operation::WaveBarrier);
    return other;
}

template <bool SIGNED> DEVICE i32 dot4(u32 weights, u32 x, i32 acc) {
    for (int i = 0; i < 4; i++) {
        const u8 byte = (u8)(weights >> (8 * i));
        acc += (SIGNED ? (i32)(i8)byte : (i32)byte) * (i32)(i8)(x >> (8 * i));
    }
    return acc;
}

DEVICE f32x8 wmma(f16x16 a, f16x16 b, f32x8 c) {
    fibers::Exchange &exchange = *fibers::here->exchange;
    const int lane = thread() % WAVE;
    exchange.a[lane] = a;
    exchange.b[lane] = b;
    exchange.c[lane] = c;
    fibers::meet(fibers::Operation::Wmma);
    return exchange.c[lane];
}
