// RMS norm with the residual's addition: x += add where given, then out = x / sqrt(mean(x^2) + epsilon) * weight.
//
// Shapes: x, add, out [rows, d] f32, weight [d] f32; q8 of the result where asked for (activation.h, d a multiple
//         of 32).
// Threads: 512 a row, four neighbouring elements each at a time; d is a multiple of 4.
// Reference: f64, 1e-5 relative.
//
// The kernel is rms_norm. head_norm: the same over heads of a row, in place, without addition. A wave has a head.
#include "activation.h"

struct NormArgs {
    float *x;
    const float *add; // or null
    const float *weight;
    float *out; // or null where only q8 is wanted
    i8 *q; // or null
    f32x2 *scales;
    u32 d;
    float epsilon;
};

static constexpr u32 THREADS = 512;
// Vectors of four that a thread reads before it uses the first: a row of 8192 waits for its memory once.
static constexpr int HELD = 4;

KERNEL(rms_norm, NormArgs, THREADS) {
    const u64 row = (u64)block_x() * a.d;
    constexpr u32 STEP = THREADS * 4 * HELD;
    float squares = 0.0f;
    for (u32 first = 4 * thread(); first < a.d; first += STEP) {
        f32x4 x[HELD], add[HELD];
#pragma unroll
        for (int v = 0; v < HELD; v++) {
            const u32 i = first + v * THREADS * 4;
            x[v] = i < a.d ? load_aligned<f32x4>(a.x + row + i) : f32x4{};
            add[v] = a.add && i < a.d ? load_aligned<f32x4>(a.add + row + i) : f32x4{};
        }
#pragma unroll
        for (int v = 0; v < HELD; v++) {
            const u32 i = first + v * THREADS * 4;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[v][e] += add[v][e];
                squares = fma(x[v][e], x[v][e], squares);
            }
            if (a.add && i < a.d) *(f32x4 *)(a.x + row + i) = x[v];
        }
    }
    const float factor = 1.0f / __builtin_sqrtf(block_sum<THREADS>(squares) / (float)a.d + a.epsilon);
    // All lanes go as far as the first one of the workgroup: they exchange values.
    for (u32 begin = 0; begin < a.d; begin += STEP) {
        f32x4 x[HELD], weight[HELD];
#pragma unroll
        for (int v = 0; v < HELD; v++) {
            const u32 i = begin + (v * THREADS + thread()) * 4;
            x[v] = i < a.d ? load_aligned<f32x4>(a.x + row + i) : f32x4{};
            weight[v] = i < a.d ? load_aligned<f32x4>(a.weight + i) : f32x4{};
        }
#pragma unroll
        for (int v = 0; v < HELD; v++) {
            const u32 i = begin + (v * THREADS + thread()) * 4;
            if (begin + v * THREADS * 4 >= a.d) break;
#pragma unroll
            for (int e = 0; e < 4; e++) x[v][e] = x[v][e] * factor * weight[v][e];
            if (a.out && i < a.d) *(f32x4 *)(a.out + row + i) = x[v];
            if (a.q) store_q8x4(x[v], i < a.d, row + i, a.q, a.scales);
        }
    }
}

struct HeadNormArgs {
    float *x; // first head of the first row
    const float *weight; // [size]
    u32 size, heads, stride, rows;
    float epsilon;
    u32 zero;
};

KERNEL(head_norm, HeadNormArgs, 128) {
    const u32 at = block_x() * 4 + thread() / WAVE;
    if (at >= a.rows * a.heads) return;
    float *x = a.x + (u64)(at / a.heads) * a.stride + at % a.heads * a.size;
    float squares = 0.0f;
    for (u32 i = thread() % WAVE; i < a.size; i += WAVE) squares = fma(x[i], x[i], squares);
    const float factor = 1.0f / __builtin_sqrtf(wave_sum(squares) / (float)a.size + a.epsilon);
    for (u32 i = thread() % WAVE; i < a.size; i += WAVE) x[i] = x[i] * factor * a.weight[i];
}
