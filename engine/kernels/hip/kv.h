// The KV cache of one layer, in blocks of 16 positions. Keys lie position by position, values element by element, so
// that both the dot products of a score and the sums over positions read whole runs of memory:
//
// f16:  keys   [blocks, kv_heads, 16, size] f16              values [blocks, kv_heads, size, 16] f16
// q8_0: keys   [blocks, kv_heads]{[16, size] i8, [16, size / 32] f16 scales}
//       values [blocks, kv_heads]{[size, 16] i8, [size / 32, 16] f16 scales}
// A q8_0 scale is shared by 32 elements of one position, d = max / 127, as ggml's.
#pragma once
#include "device.h"

static constexpr u32 BLOCK_TOKENS = 16, PARTITION_TOKENS = 64;

struct KvF16 {
    DEVICE u64 bytes(u32 size) { return (u64)size * BLOCK_TOKENS * 2; }

    // Eight elements of one position's key, from element `at`.
    DEVICE void key8(const u8 *head, u32 size, u32 position, u32 at, float *out) {
        const f16x8 values = load_aligned<f16x8>((const f16 *)head + position * size + at);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = (float)values[i];
    }

    // Sixteen elements of one position's key.
    DEVICE f16x16 key16(const u8 *head, u32 size, u32 position, u32 at) {
        return load_aligned<f16x16>((const f16 *)head + position * size + at);
    }

    // One element of the values of all sixteen positions.
    DEVICE f16x16 value16(const u8 *head, u32 size, u32 element) {
        (void)size;
        return load_aligned<f16x16>((const f16 *)head + element * BLOCK_TOKENS);
    }
};

struct KvQ8 {
    DEVICE u64 bytes(u32 size) { return (u64)size / 32 * 34 * BLOCK_TOKENS; }

    DEVICE void key8(const u8 *head, u32 size, u32 position, u32 at, float *out) {
        const u64 bytes = load_aligned<u64>(head + position * size + at);
        const f16 *scales = (const f16 *)(head + size * BLOCK_TOKENS);
        const float d = (float)scales[position * (size / 32) + at / 32];
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * (float)(i8)(bytes >> (8 * i));
    }

    DEVICE f16x16 key16(const u8 *head, u32 size, u32 position, u32 at) {
        const u32x4 words = load_aligned<u32x4>(head + position * size + at);
        const f16 *scales = (const f16 *)(head + size * BLOCK_TOKENS);
        const f16 d = scales[position * (size / 32) + at / 32];
        f16x16 out;
#pragma unroll
        for (int i = 0; i < 16; i++) out[i] = d * (f16)(short)(i8)(words[i / 4] >> (i % 4 * 8));
        return out;
    }

    DEVICE f16x16 value16(const u8 *head, u32 size, u32 element) {
        const u32x4 words = load_aligned<u32x4>(head + element * BLOCK_TOKENS);
        const f16 *scales = (const f16 *)(head + size * BLOCK_TOKENS);
        const f16x16 d = load_aligned<f16x16>(scales + element / 32 * BLOCK_TOKENS);
        f16x16 out;
#pragma unroll
        for (int i = 0; i < 16; i++) out[i] = d[i] * (f16)(short)(i8)(words[i / 4] >> (i % 4 * 8));
        return out;
    }
};
