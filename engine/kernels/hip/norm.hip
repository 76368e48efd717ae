// RMS norm with the residual's addition: x += add where given, then out = x / sqrt(mean(x^2) + epsilon) * weight.
//
// Shapes: x, add, out [rows, d] f32, weight [d] f32; q8 of the result where asked for (activation.h, d a multiple
//         of 32).
// Threads: 256 a row; a thread adds up the squares of its elements, the workgroup adds up the threads.
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

KERNEL(rms_norm, NormArgs, 256) {
    const u64 row = (u64)block_x() * a.d;
    float squares = 0.0f;
    for (u32 i = thread(); i < a.d; i += 256) {
        float x = a.x[row + i];
        if (a.add) {
            x += a.add[row + i];
            a.x[row + i] = x;
        }
        squares = fma(x, x, squares);
    }
    const float factor = 1.0f / __builtin_sqrtf(block_sum<256>(squares) / (float)a.d + a.epsilon);
    for (u32 i = thread(); i < a.d; i += 256) {
        const float value = a.x[row + i] * factor * a.weight[i];
        if (a.out) a.out[row + i] = value;
        if (a.q) store_q8(value, row + i, a.q, a.scales);
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
