// The NVIDIA body of hip/device.h, for nvcc: the same kernels, lane for lane, on cards whose warps are 32 lanes too.
//
// It is for checks, not for serving: products of tiles go through shared memory, so that fragments, whose layout
// NVIDIA leaves open, can be given and taken in RDNA3's lane layout.
#pragma once
#include <cuda_fp16.h>
#include <mma.h>

typedef __half f16;

// Clang's vectors as the kernels use them: elements by index, braces, conversions of elements.
template <class T, int N, int ALIGN> struct alignas(ALIGN) Vector {
    T at[N];
    __device__ __forceinline__ T &operator[](int i) { return at[i]; }
    __device__ __forceinline__ const T &operator[](int i) const { return at[i]; }
};

typedef Vector<u32, 4, 16> u32x4;
typedef Vector<f16, 8, 16> f16x8;
typedef Vector<f16, 16, 16> f16x16;
typedef Vector<float, 2, 8> f32x2;
typedef Vector<float, 4, 16> f32x4;
typedef Vector<float, 8, 16> f32x8;

#define DEVICE __device__ __forceinline__ static
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args a)
#define SHARED(T, name, count) __shared__ T name[count]

#define __builtin_fabsf fabsf
#define __builtin_fmaxf fmaxf
#define __builtin_rintf rintf
#define __builtin_sqrtf sqrtf
#define __builtin_inff() __int_as_float(0x7f800000)

// A larger machine has fewer warps for the same matrix, so each reads further ahead.
static constexpr int WAVE = 32, PIECES_AHEAD = 2;
static constexpr u32 EVERY_LANE = 0xffffffffu;

DEVICE int thread() { return (int)threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE void barrier() { __syncthreads(); }
DEVICE void wave_barrier() { __syncwarp(); }
DEVICE void hold() {}
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(EVERY_LANE, value, mask); }

template <bool SIGNED> DEVICE i32 dot4(u32 weights, u32 x, i32 acc) {
    i32 sum;
    if (SIGNED) {
        asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(x), "r"(acc));
    } else {
        asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(x), "r"(acc));
    }
    return sum;
}

// Blocks of weights begin at even addresses, and this processor reads whole words at their own multiples only: words
// that straddle two of these are put together from both. Nothing beyond the value is read.
template <class T, int ALIGN = 2> DEVICE T load(const void *from) {
    T value;
    if constexpr (ALIGN == 2 && sizeof(T) % 4 == 0) {
        constexpr int COUNT = sizeof(T) / 4;
        const u32 odd = (u32)(u64)from & 2u;
        const u32 *words = (const u32 *)((u64)from & ~3ull);
        u32 low = words[0], out[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const u32 high = i + 1 < COUNT ? words[i + 1] : odd ? *(const u16 *)(words + COUNT) : 0;
            out[i] = __funnelshift_r(low, high, odd * 8);
            low = high;
        }
        __builtin_memcpy(&value, out, sizeof(T));
    } else {
        __builtin_memcpy(&value, __builtin_assume_aligned(from, ALIGN), sizeof(T));
    }
    return value;
}

DEVICE f16x16 join(const f16x8 &low, const f16x8 &high) {
    f16x16 both;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        both[i] = low[i];
        both[i + 8] = high[i];
    }
    return both;
}

// c + a b: as hip/device.h says, the halves of a wave holding the same rows of a and columns of b.
DEVICE f32x8 wmma(const f16x16 &a, const f16x16 &b, f32x8 c) {
    using namespace nvcuda;
    constexpr int MOST_WAVES = 4;
    __shared__ alignas(32) f16 rows[MOST_WAVES][256], columns[MOST_WAVES][256];
    __shared__ alignas(32) float products[MOST_WAVES][256];
    const int wave = thread() / WAVE, lane = thread() % WAVE;
    // Half a row each.
    const int from = lane / 16 * 8, to = lane % 16 * 16 + from;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        rows[wave][to + i] = from ? a[i + 8] : a[i];
        columns[wave][to + i] = from ? b[i + 8] : b[i];
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, f16, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, f16, wmma::col_major> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::load_matrix_sync(left, rows[wave], 16);
    wmma::load_matrix_sync(right, columns[wave], 16);
    wmma::fill_fragment(sum, 0.0f);
    wmma::mma_sync(sum, left, right, sum);
    wmma::store_matrix_sync(products[wave], sum, 16, wmma::mem_row_major);
    __syncwarp();
#pragma unroll
    for (int v = 0; v < 8; v++) c[v] += products[wave][(2 * v + lane / 16) * 16 + lane % 16];
    // Nobody writes the next tile before all have read this one.
    __syncwarp();
    return c;
}
