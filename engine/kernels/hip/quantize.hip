// Activations to blocks: f32 [rows, k] to q8 (for dot4 and integer weights) or h16 (for WMMA and float weights).
//
// Shapes: see activation.h; k a multiple of 32.
// Threads: 256; a wave has a block, a lane an element. Grid: x over k, y over rows.
// Reference: d = max|x| / 127, q = round to even of x / d; h = f16(x / max|x|). Exact, up to a step of the rounding.
#include "activation.h"

struct QuantizeArgs {
    const float *x;
    void *q; // i8 or f16 [rows, k]
    f32x2 *scales; // [rows, k / 32]
    u32 k, zero;
};

KERNEL(quantize_q8, QuantizeArgs, 256) {
    const u32 column = block_x() * 256 + thread();
    if (column >= a.k) return;
    const u64 at = (u64)block_y() * a.k + column;
    store_q8(a.x[at], at, (i8 *)a.q, a.scales);
}

KERNEL(quantize_h16, QuantizeArgs, 256) {
    const u32 column = block_x() * 256 + thread();
    if (column >= a.k) return;
    const u64 at = (u64)block_y() * a.k + column;
    const float x = a.x[at], largest = wave_max(__builtin_fabsf(x));
    ((f16 *)a.q)[at] = (f16)(largest > 0.0f ? x / largest : 0.0f);
    if (thread() % WAVE == 0) a.scales[at / 32] = f32x2{largest, 0.0f};
}
