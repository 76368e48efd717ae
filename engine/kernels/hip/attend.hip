// Attention for decoding, in two kernels: every partition of 64 absolute positions on its own (split KV), then their
// sum in an order that absolute positions alone decide, so that a row's result does not depend on how the step was cut.
//
// attend: for each query head h of the row, over the partition's positions p up to the row's own:
//   s_p = scale q_h . k_p,  m = max s_p,  l = sum exp(s_p - m),  acc = sum exp(s_p - m) v_p
// merge: out_h = sum over partitions of exp(m_i - m) acc_i / sum of exp(m_i - m) l_i.
//
// Shapes: qkv [T, columns] f32 (queries are read), caches as in kv.h, tables [sequences, blocks_per_sequence],
//         rows [count], partials [count, query heads, partitions, size + 2] f32 = {acc, m, l},
//         out [T, query heads * size] f32.
// Threads: attend 128: two threads a position for the scores, then a thread an element for the values; the G query
//          heads that share a key head read it once (more heads take several workgroups). Grid: x partitions, y key
//          heads times groups, z the list of rows; partitions beyond the row's position end at once.
//          merge 128: a thread a partition for the weights, then pairs of elements a lane, the four waves sharing the
//          partitions, and their sums added in order. Grid: x query heads, y the list of rows.
// Exponents are base 2: the scale carries log2(e).
// Reference: f64 over the cache's own values, 1e-3 absolute for values of magnitude 1.
#include "activation.h"
#include "kv.h"

struct AttendArgs {
    const float *qkv;
    const u8 *keys, *values;
    const u32 *positions, *sequences; // [rows]
    const u32 *tables;
    const u32 *rows; // [count]: the rows that it is for
    float *partials;
    u32 columns, query_heads, kv_heads, size, table_stride, partitions;
    float scale;
    u32 zero;
};

template <class Kv, int G> DEVICE void attend(const AttendArgs &a) {
    SHARED(float, query, G * 256);
    SHARED(float, weights, G * PARTITION_TOKENS);
    const u32 partition = block_x(), row = a.rows[block_z()], size = a.size;
    const u32 last = a.positions[row], first = partition * PARTITION_TOKENS;
    if (first > last) return;
    const u32 group = a.query_heads / a.kv_heads, chunks = (group + G - 1) / G;
    const u32 kv_head = block_y() / chunks, within = block_y() % chunks * G;
    const u32 head = kv_head * group + within, heads = min(G, group - within);
    const u32 *table = a.tables + (u64)a.sequences[row] * a.table_stride + first / BLOCK_TOKENS;
    const float *q = a.qkv + (u64)row * a.columns + (u64)head * size;
    const float scale = a.scale * LOG2_E;
    for (u32 i = thread(); i < G * size; i += 128) query[i] = i < heads * size ? q[i] * scale : 0.0f;
    barrier();

    // Scores: a thread has half of a key.
    const u32 position = thread() / 2, from = thread() % 2 * (size / 2);
    float score[G] = {};
    if (first + position <= last) {
        const u8 *key =
            a.keys + ((u64)table[position / BLOCK_TOKENS] * a.kv_heads + kv_head) * Kv::bytes(size);
        for (u32 i = from; i < from + size / 2; i += 8) {
            float k[8];
            Kv::key8(key, size, position % BLOCK_TOKENS, i, k);
#pragma unroll
            for (int g = 0; g < G; g++) {
                const float *at = query + g * size + i;
                const f32x4 q0 = load_aligned<f32x4>(at), q1 = load_aligned<f32x4>(at + 4);
#pragma unroll
                for (int j = 0; j < 4; j++) score[g] = fma(k[j], q0[j], score[g]);
#pragma unroll
                for (int j = 0; j < 4; j++) score[g] = fma(k[j + 4], q1[j], score[g]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        score[g] += shuffle_xor(score[g], 1);
        if (first + position > last) score[g] = LOWEST;
        if (thread() % 2 == 0) weights[g * PARTITION_TOKENS + position] = score[g];
    }
    barrier();

    // Weights: a wave has every fourth head.
    for (u32 g = thread() / WAVE; g < heads; g += 4) {
        float *w = weights + g * PARTITION_TOKENS;
        const u32 lane = thread() % WAVE;
        const float s0 = w[lane], s1 = w[lane + WAVE], m = wave_max(__builtin_fmaxf(s0, s1));
        const float p0 = exp2(s0 - m), p1 = exp2(s1 - m), l = wave_sum(p0 + p1);
        w[lane] = p0;
        w[lane + WAVE] = p1;
        if (lane == 0) {
            float *out = a.partials + (((u64)block_z() * a.query_heads + head + g) * a.partitions + partition) * (size + 2);
            out[size] = m;
            out[size + 1] = l;
        }
    }
    barrier();

    // Values: a thread has an element, and where heads are short, some of the four blocks.
    const u32 parts = size <= 32 ? 4 : size <= 64 ? 2 : 1, blocks = 4 / parts;
    const u32 wanted = min(4, (last - first) / BLOCK_TOKENS + 1);
    for (u32 at = thread(); at < parts * size; at += 128) {
        const u32 element = at % size, part = at / size;
        float acc[G] = {};
        for (u32 block = part * blocks; block < min((part + 1) * blocks, wanted); block++) {
            const f16x16 v =
                Kv::value16(a.values + ((u64)table[block] * a.kv_heads + kv_head) * Kv::bytes(size), size, element);
#pragma unroll
            for (int g = 0; g < G; g++) {
                const float *w = weights + g * PARTITION_TOKENS + block * BLOCK_TOKENS;
#pragma unroll
                for (u32 j = 0; j < BLOCK_TOKENS; j++) acc[g] = fma((float)v[j], w[j], acc[g]);
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            if (parts > 1) {
                query[(part * G + g) * size + element] = acc[g];
            } else if ((u32)g < heads) {
                a.partials[(((u64)block_z() * a.query_heads + head + g) * a.partitions + partition) * (size + 2) + element] =
                    acc[g];
            }
        }
    }
    if (parts == 1) return;
    barrier();
    for (u32 at = thread(); at < heads * size; at += 128) {
        float sum = 0.0f;
        for (u32 part = 0; part < parts; part++) sum += query[part * G * size + at];
        const u32 g = at / size;
        a.partials[(((u64)block_z() * a.query_heads + head + g) * a.partitions + partition) * (size + 2) + at % size] = sum;
    }
}

KERNEL(attend_f16_1, AttendArgs, 128) { attend<KvF16, 1>(a); }
KERNEL(attend_f16_4, AttendArgs, 128) { attend<KvF16, 4>(a); }
KERNEL(attend_f16_8, AttendArgs, 128) { attend<KvF16, 8>(a); }
KERNEL(attend_q8_1, AttendArgs, 128) { attend<KvQ8, 1>(a); }
KERNEL(attend_q8_4, AttendArgs, 128) { attend<KvQ8, 4>(a); }
KERNEL(attend_q8_8, AttendArgs, 128) { attend<KvQ8, 8>(a); }

struct MergeArgs {
    const float *partials;
    const u32 *positions;
    const u32 *rows;
    float *out; // or null where only q8 is wanted
    i8 *q; // or null
    f32x2 *scales;
    u32 query_heads, size, partitions, zero;
};

// For heads of at most PAIRS * 64 elements, of which a lane has PAIRS pairs.
template <int PAIRS> DEVICE void merge(const MergeArgs &a) {
    constexpr u32 WAVES = 128 / WAVE;
    SHARED(float, highest_of, WAVES);
    SHARED(float, weights, 128);
    SHARED(f32x2, sums, WAVES * WAVE * PAIRS);
    const u32 head = block_x(), row = a.rows[block_y()], size = a.size;
    const u32 used = a.positions[row] / PARTITION_TOKENS + 1, wave = thread() / WAVE, lane = thread() % WAVE;
    const u64 stride = size + 2;
    const float *partials = a.partials + ((u64)block_y() * a.query_heads + head) * a.partitions * stride;
    float m = LOWEST, l = 0.0f;
    f32x2 acc[PAIRS] = {};
    // As many partitions as there are threads: a thread weighs one, then a wave adds up every fourth.
    for (u32 first = 0; first < used; first += 128) {
        const float *own = partials + min(first + thread(), used - 1) * stride + size;
        const float most = own[0], length = own[1];
        const float of_wave = wave_max(most);
        if (lane == 0) highest_of[wave] = of_wave;
        barrier();
        float highest = m;
#pragma unroll
        for (u32 w = 0; w < WAVES; w++) highest = __builtin_fmaxf(highest, highest_of[w]);
        const float before = exp2(m - highest), weight = first + thread() < used ? exp2(most - highest) : 0.0f;
        weights[thread()] = weight;
        l = fma(l, before, block_sum<128>(length * weight));
        m = highest;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) acc[i] = f32x2{acc[i][0] * before, acc[i][1] * before};
        const u32 count = min(128, used - first);
        // Four partitions' reads are under way at once; lanes beyond the head read its last pair for nothing.
        for (u32 begin = wave; begin < count; begin += 4 * WAVES) {
            f32x2 values[4][PAIRS];
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const float *part = partials + (first + min(begin + k * WAVES, count - 1)) * stride;
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    values[k][i] = load<f32x2, 8>(part + min(2 * (lane + WAVE * i), size - 2));
                }
            }
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const float w = begin + k * WAVES < count ? weights[begin + k * WAVES] : 0.0f;
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    acc[i][0] = fma(values[k][i][0], w, acc[i][0]);
                    acc[i][1] = fma(values[k][i][1], w, acc[i][1]);
                }
            }
        }
        barrier();
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) sums[(wave * PAIRS + i) * WAVE + lane] = acc[i];
    barrier();
    for (u32 i = thread(); i < size; i += 128) {
        float sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WAVES; w++) sum += sums[w * PAIRS * WAVE + i / 2][i % 2];
        const u64 at = ((u64)row * a.query_heads + head) * size + i;
        const float value = sum / l;
        if (a.out) a.out[at] = value;
        if (a.q) store_q8(value, at, a.q, a.scales);
    }
}

KERNEL(merge, MergeArgs, 128) {
    if (a.size <= 128) {
        merge<2>(a);
    } else {
        merge<4>(a);
    }
}
