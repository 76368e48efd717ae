// Matrix-vector product for few rows of activations: out[t][n] = sum over k of W[n][k] x[t][k] (+ bias[n]).
//
// Shapes: W [n, k] in its file's blocks, x [tokens, k] (q8 blocks for integer formats, f32 for float formats),
//         out [tokens, stride] f32, tokens <= T.
// Threads: 128, four waves. A wave has ROWS rows of W; its lanes take pieces of 32 weights in turn (float formats: 8
//          weights), each used for all tokens, then the wave adds up. The order of a sum depends on k alone, so a
//          token's result has the same bits for every T.
// Reference: f64 sum of dequantized weights times the activations that the kernel reads.
#include "formats.h"

struct MatvecArgs {
    const u8 *w;
    const void *x; // i8 [tokens, k] or f32 [tokens, k]
    const f32x2 *scales; // [tokens, k / 32]; null for float formats
    const float *bias; // [n] or null
    float *out;
    u32 n, k, row_bytes, tokens, stride, zero;
};

// MATVEC_WAVE_ROWS in src/hip/kernels.rs repeats ROWS for the grid. Activations are read once for all rows of a wave.
static constexpr int THREADS = 128, WAVES = THREADS / WAVE, ROWS = 2;

template <int T> DEVICE void finish(const MatvecArgs &a, u32 first, const float (&sum)[ROWS][T]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float bias = a.bias && first + r < a.n ? a.bias[first + r] : 0.0f;
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float total = wave_sum(sum[r][t]);
            if (thread() % WAVE == 0 && first + r < a.n && (u32)t < a.tokens) {
                a.out[(u64)t * a.stride + first + r] = total + bias;
            }
        }
    }
}

template <class F, int T> DEVICE void matvec(const MatvecArgs &a) {
    const u32 first = (block_x() * WAVES + thread() / WAVE) * ROWS;
    if (first >= a.n) return;
    const u32 lane = thread() % WAVE;
    const u8 *row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) row[r] = a.w + (u64)min(first + r, a.n - 1) * a.row_bytes;
    float sum[ROWS][T] = {};
    if constexpr (F::INTEGER) {
        const u32 pieces = a.k / 32;
#pragma unroll PIECES_AHEAD
        for (u32 piece = lane; piece < pieces; piece += WAVE) {
            Piece p[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) F::read(row[r], piece, p[r]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                // Rows beyond the batch repeat the last one and are thrown away.
                const u64 token = min((u32)t, a.tokens - 1);
                const i8 *x = (const i8 *)a.x + token * a.k + piece * 32;
                const u32x4 x0 = load_aligned<u32x4>(x), x1 = load_aligned<u32x4>(x + 16);
                const f32x2 s = a.scales[token * pieces + piece];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    i32 low = 0, high = 0;
#pragma unroll
                    for (int i = 0; i < 4; i++) low = dot4<F::SIGNED>(p[r].q[i], x0[i], low);
                    if constexpr (!F::HALVES) high = low;
#pragma unroll
                    for (int i = 0; i < 4; i++) high = dot4<F::SIGNED>(p[r].q[i + 4], x1[i], high);
                    float value;
                    if constexpr (F::HALVES) {
                        value = s[0] * fma(p[r].d[1], (float)high, p[r].d[0] * (float)low);
                    } else {
                        value = s[0] * (p[r].d[0] * (float)high);
                    }
                    if constexpr (F::MINIMUM) value = fma(-p[r].m, s[1], value);
                    sum[r][t] += value;
                }
            }
        }
    } else {
        for (u32 at = lane * 8; at < a.k; at += WAVE * 8) {
            float w[ROWS][8];
#pragma unroll
            for (int r = 0; r < ROWS; r++) F::read8(row[r], at, w[r]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                const float *x = (const float *)a.x + (u64)min((u32)t, a.tokens - 1) * a.k + at;
                const f32x4 x0 = load_aligned<f32x4>(x), x1 = load_aligned<f32x4>(x + 4);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[r][t] = fma(w[r][i], x0[i], sum[r][t]);
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[r][t] = fma(w[r][i + 4], x1[i], sum[r][t]);
                }
            }
        }
    }
    finish<T>(a, first, sum);
}

// The variants of MATVEC_TOKENS in src/hip/kernels.rs.
#define MATVEC(F, name)                                                                                               \
    KERNEL(matvec_##name##_1, MatvecArgs, THREADS) { matvec<F, 1>(a); }                                            \
    KERNEL(matvec_##name##_2, MatvecArgs, THREADS) { matvec<F, 2>(a); }                                            \
    KERNEL(matvec_##name##_4, MatvecArgs, THREADS) { matvec<F, 4>(a); }                                            \
    KERNEL(matvec_##name##_8, MatvecArgs, THREADS) { matvec<F, 8>(a); }

EVERY_INTEGER_FORMAT(MATVEC)
EVERY_FLOAT_FORMAT(MATVEC)
