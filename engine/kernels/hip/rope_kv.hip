// Rotary embedding of queries and keys in place, then keys and values into the paged cache.
//
// Shapes: qkv [rows, columns] f32 = [query + 2 kv heads, size]; angles [rows, pairs]{cos, sin}; slots [rows]
//         (block * 16 + position in the block); the caches as in kv.h.
// Formula: of pair i with elements (x, y): x' = x cos - y sin, y' = x sin + y cos; elements beyond the pairs stay.
// Threads: 128; a workgroup has one head of one row. Grid: x over heads, y over rows.
// Reference: f64; f16 rounds to even, q8_0 within half a step.
#include "kv.h"

struct RopeKvArgs {
    float *qkv;
    const f32x2 *angles;
    const u32 *slots;
    u8 *keys, *values;
    u32 query_heads, kv_heads, size, pairs;
    u32 halves; // 1: elements i and pairs + i make a pair; 0: elements 2 i and 2 i + 1
    u32 zero;
};

template <bool Q8> DEVICE void rope_kv(const RopeKvArgs &a) {
    SHARED(float, head, 256);
    const u32 kind = block_x(), row = block_y(), size = a.size;
    float *x = a.qkv + ((u64)row * (a.query_heads + 2 * a.kv_heads) + kind) * size;
    const bool is_value = kind >= a.query_heads + a.kv_heads, is_query = kind < a.query_heads;
    const u32 pairs = is_value ? 0 : a.pairs;
    for (u32 i = thread(); i < pairs; i += 128) {
        const u32 first = a.halves ? i : 2 * i, second = a.halves ? a.pairs + i : 2 * i + 1;
        const f32x2 turn = a.angles[(u64)row * a.pairs + i];
        const float u = x[first], v = x[second];
        head[first] = x[first] = fma(u, turn[0], -(v * turn[1]));
        head[second] = x[second] = fma(u, turn[1], v * turn[0]);
    }
    if (is_query) return;
    for (u32 i = 2 * pairs + thread(); i < size; i += 128) head[i] = x[i];
    barrier();
    const u32 slot = a.slots[row], position = slot % BLOCK_TOKENS;
    const u32 kv_head = (kind - a.query_heads) % a.kv_heads;
    const u64 at = (u64)(slot / BLOCK_TOKENS) * a.kv_heads + kv_head;
    if constexpr (Q8) {
        u8 *base = (is_value ? a.values : a.keys) + at * KvQ8::bytes(size);
        f16 *scales = (f16 *)(base + size * BLOCK_TOKENS);
        for (u32 i = thread(); i < size; i += 128) {
            const float largest = wave_max(__builtin_fabsf(head[i]));
            const f16 d = (f16)(largest / 127.0f);
            const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            const i8 q = (i8)(i32)__builtin_rintf(head[i] * inverse);
            const u32 block = i / 32;
            base[is_value ? i * BLOCK_TOKENS + position : position * size + i] = (u8)q;
            if (i % 32 == 0) scales[is_value ? block * BLOCK_TOKENS + position : position * (size / 32) + block] = d;
        }
    } else {
        f16 *base = (f16 *)((is_value ? a.values : a.keys) + at * KvF16::bytes(size));
        for (u32 i = thread(); i < size; i += 128) {
            base[is_value ? i * BLOCK_TOKENS + position : position * size + i] = (f16)head[i];
        }
    }
}

KERNEL(rope_kv_f16, RopeKvArgs, 128) { rope_kv<false>(a); }
KERNEL(rope_kv_q8, RopeKvArgs, 128) { rope_kv<true>(a); }
