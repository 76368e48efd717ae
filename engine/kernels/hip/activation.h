// Activations as the products read them: blocks of 32 elements.
//
// q8: signed bytes [rows, k] and per block {d, d * sum of the bytes} [rows, k / 32]; x = d * q, d = max|x| / 127.
// h16: f16 [rows, k] and per block {d, 0}; x = d * h, |h| <= 1. Its error is that of f16 whatever the magnitude.
#pragma once
#include "device.h"

// A wave holds one block, a lane an element: writes it as q8.
DEVICE void store_q8(float x, u64 at, i8 *q, f32x2 *scales) {
    const float largest = wave_max(__builtin_fabsf(x));
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const float rounded = __builtin_rintf(x * inverse);
    const float sum = wave_sum(rounded), d = largest / 127.0f;
    q[at] = (i8)(i32)rounded;
    if (thread() % WAVE == 0) scales[at / 32] = f32x2{d, d * sum};
}

// Eight lanes hold one block, a lane four elements in a row; lanes without any take part in the exchange. The same bits
// as store_q8's: a maximum and a sum of whole numbers are exact in any order.
DEVICE void store_q8x4(f32x4 x, bool has, u64 at, i8 *q, f32x2 *scales) {
    float largest = 0.0f, sum = 0.0f;
#pragma unroll
    for (int e = 0; e < 4; e++) largest = __builtin_fmaxf(largest, __builtin_fabsf(x[e]));
#pragma unroll
    for (int mask = 4; mask > 0; mask /= 2) largest = __builtin_fmaxf(largest, shuffle_xor(largest, mask));
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    u32 bytes = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float rounded = __builtin_rintf(x[e] * inverse);
        sum += rounded;
        bytes |= ((u32)(i32)rounded & 255u) << (8 * e);
    }
#pragma unroll
    for (int mask = 4; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (!has) return;
    const float d = largest / 127.0f;
    *(u32 *)(q + at) = bytes;
    if (thread() % 8 == 0) scales[at / 32] = f32x2{d, d * sum};
}
