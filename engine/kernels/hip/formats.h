// Weight formats: how 32 weights of a row (a piece) leave their blocks.
//
// The first ten are ggml's (ggml-common.h, ggml-quants.c); NF4 and AWQ4 are this project's own packing of what
// bitsandbytes and AWQ store, made when a file is loaded. Bytes lie as in the file, row after row.
//
// An integer format gives eight words of four weights each, in the row's order, and value = d * q - m, where d may
// differ between the first and the second 16 weights. A float format gives values.
#pragma once
#include "device.h"

struct Piece {
    u32 q[8];
    float d[2];
    float m;
};

// Four bits to the lowest bits of four bytes.
DEVICE u32 spread(u32 bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

DEVICE void nibbles(const u8 *from, Piece &p) {
    const u32x4 words = load<u32x4>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        p.q[i] = words[i] & 0x0f0f0f0fu;
        p.q[i + 4] = (words[i] >> 4) & 0x0f0f0f0fu;
    }
}

struct Integer {
    static constexpr bool INTEGER = true;
    static constexpr bool SIGNED = false; // bytes of q
    static constexpr bool MINIMUM = true; // whether m may differ from 0
    static constexpr bool HALVES = false; // whether d[1] may differ from d[0]
};

struct Float {
    static constexpr bool INTEGER = false;
};

struct Q4_0 : Integer {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece * BYTES;
        nibbles(b + 2, p);
        p.d[0] = half_at(b);
        p.m = 8.0f * p.d[0];
    }
};

struct Q4_1 : Integer {
    static constexpr int ELEMENTS = 32, BYTES = 20;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece * BYTES;
        nibbles(b + 4, p);
        p.d[0] = half_at(b);
        p.m = -half_at(b + 2);
    }
};

struct Q5_0 : Integer {
    static constexpr int ELEMENTS = 32, BYTES = 22;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece * BYTES;
        nibbles(b + 6, p);
        const u32 high = load<u32>(b + 2);
#pragma unroll
        for (int i = 0; i < 8; i++) p.q[i] |= spread(high >> (4 * i)) << 4;
        p.d[0] = half_at(b);
        p.m = 16.0f * p.d[0];
    }
};

struct Q5_1 : Integer {
    static constexpr int ELEMENTS = 32, BYTES = 24;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece * BYTES;
        nibbles(b + 8, p);
        const u32 high = load<u32>(b + 4);
#pragma unroll
        for (int i = 0; i < 8; i++) p.q[i] |= spread(high >> (4 * i)) << 4;
        p.d[0] = half_at(b);
        p.m = -half_at(b + 2);
    }
};

struct Q8_0 : Integer {
    static constexpr int ELEMENTS = 32, BYTES = 34;
    static constexpr bool SIGNED = true, MINIMUM = false;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece * BYTES;
        const u32x4 first = load<u32x4>(b + 2), second = load<u32x4>(b + 18);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            p.q[i] = first[i];
            p.q[i + 4] = second[i];
        }
        p.d[0] = half_at(b);
        p.m = 0.0f;
    }
};

// Scale and minimum of one of the eight groups of Q4_K and Q5_K, from the block's first 16 bytes in one load:
// [d f16][minimum f16][12 bytes of scales and minima, six bits each].
DEVICE void scale_and_minimum(const u8 *b, u32 group, Piece &p) {
    const u32x4 head = load<u32x4, 16>(b);
    const u32 shift = group % 4 * 8, first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
    const bool high = group >= 4;
    const u32 scale = high ? (third & 15u) | (first >> 2 & 48u) : first & 63u;
    const u32 minimum = high ? (third >> 4 & 15u) | (second >> 2 & 48u) : second & 63u;
    p.d[0] = (float)half_bits(head[0]) * (float)scale;
    p.m = (float)half_bits(head[0] >> 16) * (float)minimum;
}

struct Q4_K : Integer {
    static constexpr int ELEMENTS = 256, BYTES = 144;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece / 8 * BYTES;
        const u32 group = piece % 8, shift = group % 2 * 4;
        const u32x4 first = load<u32x4, 16>(b + 16 + group / 2 * 32), second = load<u32x4, 16>(b + 32 + group / 2 * 32);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            p.q[i] = (first[i] >> shift) & 0x0f0f0f0fu;
            p.q[i + 4] = (second[i] >> shift) & 0x0f0f0f0fu;
        }
        scale_and_minimum(b, group, p);
    }
};

struct Q5_K : Integer {
    static constexpr int ELEMENTS = 256, BYTES = 176;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece / 8 * BYTES;
        const u32 group = piece % 8, shift = group % 2 * 4;
        const u8 *low = b + 48 + group / 2 * 32;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32x4 words = load<u32x4, 16>(low + 16 * half), high = load<u32x4, 16>(b + 16 + 16 * half);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p.q[4 * half + i] =
                    ((words[i] >> shift) & 0x0f0f0f0fu) | ((high[i] >> group) & 0x01010101u) << 4;
            }
        }
        scale_and_minimum(b, group, p);
    }
};

struct Q6_K : Integer {
    static constexpr int ELEMENTS = 256, BYTES = 210;
    static constexpr bool SIGNED = true, MINIMUM = false, HALVES = true;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece / 8 * BYTES;
        const u32 part = piece % 8 / 4, place = piece % 4, low_shift = place / 2 * 4, high_shift = place * 2;
        const u8 *low = b + part * 64 + place % 2 * 32, *top = b + 128 + part * 32;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32x4 words = load<u32x4>(low + 16 * half), high = load<u32x4>(top + 16 * half);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 q = ((words[i] >> low_shift) & 0x0f0f0f0fu) | ((high[i] >> high_shift) & 0x03030303u) << 4;
                // Each byte minus 32: the sum has no carry, and the flipped top bit makes it a signed byte.
                p.q[4 * half + i] = (q + 0x60606060u) ^ 0x80808080u;
            }
        }
        const float d = half_at(b + 208);
        const u8 *scales = b + 192 + piece % 8 * 2;
        p.d[0] = d * (float)(i8)scales[0];
        p.d[1] = d * (float)(i8)scales[1];
        p.m = 0.0f;
    }
};

// AWQ: 128 weights share an f16 scale and a zero point; [scale f16][zero u8][0][4 pieces of 16 bytes, as Q4_0's].
struct AWQ4 : Integer {
    static constexpr int ELEMENTS = 128, BYTES = 68;
    DEVICE void read(const u8 *row, u32 piece, Piece &p) {
        const u8 *b = row + piece / 4 * BYTES;
        nibbles(b + 4 + piece % 4 * 16, p);
        p.d[0] = half_at(b);
        p.m = p.d[0] * (float)b[2];
    }
};

struct F32 : Float {
    static constexpr int ELEMENTS = 1, BYTES = 4;
    // Eight values from element `at` of a row; `at` is a multiple of 8.
    DEVICE void read8(const u8 *row, u32 at, float *out) {
        const f32x4 first = load<f32x4>(row + at * 4), second = load<f32x4>(row + at * 4 + 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[i] = first[i];
            out[i + 4] = second[i];
        }
    }
};

struct F16 : Float {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    DEVICE void read8(const u8 *row, u32 at, float *out) {
        const f16x8 values = load<f16x8>(row + at * 2);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = (float)values[i];
    }
};

struct BF16 : Float {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    DEVICE void read8(const u8 *row, u32 at, float *out) {
        const u32x4 words = load<u32x4>(row + at * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = bf16((u16)words[i]);
            out[2 * i + 1] = __builtin_bit_cast(float, words[i] & 0xffff0000u);
        }
    }
};

// The quantiles of a normal distribution that NF4 counts in (Dettmers et al. 2023, appendix E).
DEVICE float nf4(u32 code) {
    static constexpr float TABLE[16] = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
        -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
        0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f,
        1.0f};
    return TABLE[code];
}

// NF4: 64 weights share an f32 scale; [scale f32][32 bytes, the first weight of each in the high nibble].
struct NF4 : Float {
    static constexpr int ELEMENTS = 64, BYTES = 36;
    DEVICE void read8(const u8 *row, u32 at, float *out) {
        const u8 *b = row + at / 64 * BYTES;
        const float d = load<float>(b);
        const u32 word = load<u32>(b + 4 + at % 64 / 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = d * nf4((word >> (8 * i + 4)) & 15u);
            out[2 * i + 1] = d * nf4((word >> (8 * i)) & 15u);
        }
    }
};

// Byte i of a piece, as a number.
template <bool SIGNED> DEVICE float byte_of(const u32 *words, int i) {
    const u32 byte = (words[i / 4] >> (i % 4 * 8)) & 255u;
    return SIGNED ? (float)(i8)byte : (float)byte;
}

// The 32 values of a piece.
template <class F> DEVICE void dequantize(const u8 *row, u32 piece, float *out) {
    if constexpr (F::INTEGER) {
        Piece p;
        F::read(row, piece, p);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const float d = F::HALVES ? p.d[i / 16] : p.d[0];
            out[i] = F::MINIMUM ? fma(d, byte_of<F::SIGNED>(p.q, i), -p.m) : d * byte_of<F::SIGNED>(p.q, i);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 32; i += 8) F::read8(row, piece * 32 + i, out + i);
    }
}

// Calls MACRO(Format, name) for every format.
#define EVERY_INTEGER_FORMAT(MACRO)                                                                                   \
    MACRO(Q4_0, q4_0) MACRO(Q4_1, q4_1) MACRO(Q5_0, q5_0) MACRO(Q5_1, q5_1) MACRO(Q8_0, q8_0) MACRO(Q4_K, q4_k)       \
    MACRO(Q5_K, q5_k) MACRO(Q6_K, q6_k) MACRO(AWQ4, awq4)
#define EVERY_FLOAT_FORMAT(MACRO) MACRO(F32, f32) MACRO(F16, f16) MACRO(BF16, bf16) MACRO(NF4, nf4)
