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
