// What a kernel asks of its processor, in three bodies: RDNA3 (clang as HIP compiler, without any ROCm header), the
// host, where the same source becomes the CPU twin that the stand-in runtime runs (tests/standin/fibers.h), and NVIDIA
// cards (tests/cuda/device.h), where it is compiled as a check and runs for real where such a card is at hand.
//
// Kernels take one struct by value, so that the host side fills one #[repr(C)] struct and twins are called alike.
// Nothing here relies on fast-math: products and sums are written as fma where they should be one, and the compiler
// is told not to contract the others, so that a row's bits do not depend on which kernel variant computed it.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;

#if defined(__CUDACC__)
#include "../tests/cuda/device.h"
#else

typedef _Float16 f16;
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef f16 f16x8 __attribute__((ext_vector_type(8)));
typedef f16 f16x16 __attribute__((ext_vector_type(16)));
typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef float f32x8 __attribute__((ext_vector_type(8)));

#if defined(__AMDGCN__) || defined(__HIP_DEVICE_COMPILE__)

#define DEVICE __attribute__((device)) __attribute__((always_inline)) static inline
#define KERNEL(name, Args, threads)                                                            \
    extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(threads, threads))) void name( \
        const Args a)
// Memory of the workgroup (LDS), of a fixed size.
#define SHARED(T, name, count) __attribute__((shared)) T name[count]

// Lanes a wave, from the target. Compilers spell it in two ways, and the newest no longer tell it; the test of the
// code objects' metadata (tests/hip_isa.rs) sees what was really built.
#if defined(__AMDGCN_WAVEFRONT_SIZE__)
static constexpr int WAVE = __AMDGCN_WAVEFRONT_SIZE__;
#elif defined(__AMDGCN_WAVEFRONT_SIZE)
static constexpr int WAVE = __AMDGCN_WAVEFRONT_SIZE;
#else
static constexpr int WAVE = 32;
#endif

// Passes of a matrix-vector loop whose reads are under way at once: here as many waves are resident as hide them.
static constexpr int PIECES_AHEAD = 1;

DEVICE int thread() { return (int)__builtin_amdgcn_workitem_id_x(); }
DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }

// All threads of the workgroup arrive, and see what the others wrote to LDS.
DEVICE void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// All lanes of the wave see what the others wrote to LDS; lanes run in lockstep, so only the compiler must hold still.
DEVICE void wave_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

DEVICE int lane_id() { return (int)__builtin_amdgcn_mbcnt_lo(~0u, 0u); }

// The compiler moves nothing across: keeps it from loading far ahead into registers that it has not got.
DEVICE void hold() { __builtin_amdgcn_sched_barrier(0); }

// The value of the lane whose number differs in the bits of `mask`.
DEVICE float shuffle_xor(float value, int mask) {
    const int bits = __builtin_bit_cast(int, value);
    return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((lane_id() ^ mask) << 2, bits));
}

// acc + the dot product of four weights (signed or unsigned bytes) with four signed bytes.
template <bool SIGNED> DEVICE i32 dot4(u32 weights, u32 x, i32 acc) {
    return __builtin_amdgcn_sudot4(SIGNED, (int)weights, true, (int)x, acc, false);
}

// c + a b, 16 x 16 x 16. Lane l and l + 16 hold row l of a and column l of b; element v of lane l of c is row
// 2 v + (l >> 4), column l & 15.
DEVICE f32x8 wmma(f16x16 a, f16x16 b, f32x8 c) { return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, c); }

#else
#include "fibers.h"
#endif

DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float exp2(float x) { return __builtin_exp2f(x); }
DEVICE u32 min(u32 a, u32 b) { return a < b ? a : b; }

// A value at any address, which is a multiple of ALIGN; RDNA3 reads unaligned words in one instruction.
template <class T, int ALIGN = 2> DEVICE T load(const void *from) {
    T value;
    __builtin_memcpy(&value, from, sizeof(T));
    return value;
}

// The sixteen halves of two registers' eight.
DEVICE f16x16 join(f16x8 low, f16x8 high) {
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

#endif

// Over the lanes of a wave, in the same order on every card; the twin does it in one operation of its own.
#if !defined(OWN_WAVE_OPERATIONS)
DEVICE float wave_sum(float value) {
#pragma unroll
    for (int mask = WAVE / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE float wave_max(float value) {
#pragma unroll
    for (int mask = WAVE / 2; mask > 0; mask /= 2) value = __builtin_fmaxf(value, shuffle_xor(value, mask));
    return value;
}

#endif

static_assert(WAVE == 32, "the kernels map 32 lanes; a target with other waves needs its own build");

static constexpr float LOG2_E = 1.44269504088896341f;
static constexpr float LOWEST = -3.0e38f;

template <class T> DEVICE void store(void *to, T value) { __builtin_memcpy(to, &value, sizeof(T)); }

// A value at an address that is a multiple of its size.
template <class T> DEVICE T load_aligned(const void *from) { return *(const T *)from; }

DEVICE float half_at(const u8 *from) { return (float)load<f16>(from); }

// The half in the low 16 bits.
DEVICE f16 half_bits(u32 word) { return __builtin_bit_cast(f16, (u16)word); }

DEVICE float bf16(u16 bits) { return __builtin_bit_cast(float, (u32)bits << 16); }

// Sum over the workgroup of THREADS threads, the same bits in every thread.
template <int THREADS> DEVICE float block_sum(float value) {
    SHARED(float, partial, THREADS / WAVE);
    value = wave_sum(value);
    if (thread() % WAVE == 0) partial[thread() / WAVE] = value;
    barrier();
    float sum = 0.0f;
#pragma unroll
    for (int wave = 0; wave < THREADS / WAVE; wave++) sum += partial[wave];
    barrier();
    return sum;
}
