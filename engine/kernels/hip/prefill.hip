// Attention for prefill: 16 rows of a sequence and one query head a wave, block by block of the cache (flash
// attention), by WMMA.
//
// Formula: out_t = softmax(scale q_t K^T over positions 0..=positions[t]) V, the softmax kept as a running maximum and
//          sum.
// Shapes: tiles [count]{first row, rows}; the others as attend.hip; out [rows, query heads * SIZE] f32.
// Threads: 128, four waves, four query heads, which mostly share a key head and so its cache lines.
//          Grid: x over tiles, y over query heads / 4.
//          Heads of more than 128 elements have two waves, and a workgroup two of them (y over query heads / 2): both
//          waves compute all scores, each has half of the values' elements, and the queries lie in LDS. One wave would
//          need 300 registers; the scores that are computed twice make half as many products again.
//          S = Q K^T: row t of the tile, column = position of the block. P passes through LDS to become a's layout.
// Error: q, k, p and v are f16, sums f32.
// Reference: as attend.hip, 4e-3 absolute for values of magnitude 1.
#include "kv.h"

struct PrefillArgs {
    const float *qkv;
    const u8 *keys, *values;
    const u32 *positions, *sequences;
    const u32 *tables;
    const u32 *tiles; // [count, 2]
    float *out;
    u32 columns, query_heads, kv_heads, table_stride;
    float scale;
    u32 zero;
};

// Halves from row to row of P in LDS: 16 and a shift of the banks, a multiple of 16 bytes.
static constexpr int P_STRIDE = 24;

// Elements 16i to 16i + 16 of a row's query, from where the kernel keeps it.
template <int PARTS> DEVICE f16x16 query16(const f16x16 *registers, const f16 *row, int i) {
    if constexpr (PARTS == 1) {
        return registers[i];
    } else {
        return join(load_aligned<f16x8>(row + i * 16), load_aligned<f16x8>(row + i * 16 + 8));
    }
}

template <class Kv, int SIZE> DEVICE void prefill(const PrefillArgs &a) {
    constexpr int PARTS = SIZE > 128 ? 2 : 1, OWN = SIZE / PARTS, Q_STRIDE = SIZE + 8;
    SHARED(f16x8, memory, 4 * 16 * P_STRIDE / 8);
    const u32 wave = thread() / WAVE, part = wave % PARTS;
    const u32 head = block_y() * (4 / PARTS) + wave / PARTS, lane = thread() % WAVE, column = lane % 16;
    if (PARTS == 1 && head >= a.query_heads) return;
    f16 *p = (f16 *)memory + thread() / WAVE * 16 * P_STRIDE;
    const u32 row = a.tiles[2 * block_x()], rows = a.tiles[2 * block_x() + 1];
    const u32 kv_head = head / (a.query_heads / a.kv_heads);
    const u32 *table = a.tables + (u64)a.sequences[row] * a.table_stride;
    const u32 begin = a.positions[row], end = a.positions[row + rows - 1];
    const float scale = a.scale * LOG2_E;

    f16x16 query[OWN / 16];
    const f16 *kept = nullptr;
    const u32 asked = PARTS == 1 ? head : min(head, a.query_heads - 1);
    const float *q = a.qkv + (u64)(row + min(column, rows - 1)) * a.columns + asked * SIZE + part * OWN;
#pragma unroll
    for (int i = 0; i < OWN / 16; i++) {
#pragma unroll
        for (int j = 0; j < 16; j += 4) {
            const f32x4 values = load_aligned<f32x4>(q + i * 16 + j);
#pragma unroll
            for (int e = 0; e < 4; e++) query[i][j + e] = (f16)(values[e] * scale);
        }
    }
    if constexpr (PARTS > 1) {
        SHARED(f16x8, queries, 4 / PARTS * 16 * Q_STRIDE / 8);
        f16 *own = (f16 *)queries + (wave / PARTS * 16 + column) * Q_STRIDE;
        // Both halves of a wave have the same rows.
        if (lane < 16) {
#pragma unroll
            for (int i = 0; i < OWN / 16; i++) {
                f16x8 low, high;
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    low[e] = query[i][e];
                    high[e] = query[i][e + 8];
                }
                *(f16x8 *)(own + part * OWN + i * 16) = low;
                *(f16x8 *)(own + part * OWN + i * 16 + 8) = high;
            }
        }
        barrier();
        if (head >= a.query_heads) return;
        kept = own;
    }
    f32x8 out[OWN / 16];
#pragma unroll
    for (int i = 0; i < OWN / 16; i++) out[i] = f32x8{};
    float highest[8], total[8];
#pragma unroll
    for (int v = 0; v < 8; v++) {
        highest[v] = LOWEST;
        total[v] = 0.0f;
    }
    for (u32 block = 0; block <= end / BLOCK_TOKENS; block++) {
        const u64 at = (u64)table[block] * a.kv_heads + kv_head;
        const u8 *keys = a.keys + at * Kv::bytes(SIZE), *values = a.values + at * Kv::bytes(SIZE);
        f32x8 score = {};
#pragma unroll
        for (int i = 0; i < SIZE / 16; i++) {
            score = wmma(query16<PARTS>(query, kept, i), Kv::key16(keys, SIZE, column, i * 16), score);
            if (SIZE > 64 && i % 2) hold();
        }
        const u32 position = block * BLOCK_TOKENS + column;
        float shrink[8];
#pragma unroll
        for (int v = 0; v < 8; v++) {
            const u32 r = 2 * v + lane / 16;
            // Positions of a sequence's rows ascend by one.
            const float s = position <= begin + r ? score[v] : LOWEST;
            float m = s;
#pragma unroll
            for (int mask = 8; mask > 0; mask /= 2) m = __builtin_fmaxf(m, shuffle_xor(m, mask));
            m = __builtin_fmaxf(m, highest[v]);
            shrink[v] = exp2(highest[v] - m);
            highest[v] = m;
            // The block holds the row's own position or an earlier one, or the row has seen one already.
            const float weight = exp2(s - m);
            total[v] = fma(total[v], shrink[v], weight);
            p[r * P_STRIDE + column] = (f16)weight;
        }
        wave_barrier();
        const f16 *own = p + column * P_STRIDE;
        const f16x16 weights = join(load_aligned<f16x8>(own), load_aligned<f16x8>(own + 8));
        wave_barrier();
#pragma unroll
        for (int i = 0; i < OWN / 16; i++) {
#pragma unroll
            for (int v = 0; v < 8; v++) out[i][v] *= shrink[v];
            out[i] = wmma(weights, Kv::value16(values, SIZE, part * OWN + i * 16 + column), out[i]);
            if (SIZE > 64 && i % 2) hold();
        }
    }
#pragma unroll
    for (int v = 0; v < 8; v++) {
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) total[v] += shuffle_xor(total[v], mask);
        const u32 r = 2 * v + lane / 16;
        if (r < rows) {
            float *to = a.out + ((u64)(row + r) * a.query_heads + head) * SIZE + part * OWN + column;
#pragma unroll
            for (int i = 0; i < OWN / 16; i++) to[i * 16] = out[i][v] / total[v];
        }
    }
}

#define PREFILL_F16(size)                                                                                             \
    KERNEL(prefill_f16_##size, PrefillArgs, 128) { prefill<KvF16, size>(a); }
#define PREFILL(size)                                                                                                 \
    PREFILL_F16(size)                                                                                                 \
    KERNEL(prefill_q8_##size, PrefillArgs, 128) { prefill<KvQ8, size>(a); }

PREFILL(32)
PREFILL(64)
// No whole number of q8_0 blocks.
PREFILL_F16(80)
PREFILL(96)
PREFILL(128)
PREFILL(256)
