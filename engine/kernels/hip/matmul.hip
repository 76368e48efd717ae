// Matrix-matrix product for many rows of activations: out[t][n] = sum over k of W[n][k] x[t][k] (+ bias[n]), by WMMA.
//
// Shapes: as matvec.hip; x is q8 (integer formats) or h16 (float formats).
// Threads: 128, four waves; a workgroup has 128 rows of W and 64 tokens, a wave 32 rows and all 64 tokens. A step
//          takes 32 of k: thread r turns row r's piece into f16 in LDS, all bring the tokens' block, then each wave
//          multiplies its 2 x 4 tiles and adds them up in f32, scaled by the tokens' block scales. A token is a
//          column of a tile, so a lane has one scale a tile.
// Error: weights are rounded to f16 (2^-11); q8 bytes are exact in f16, products are summed in f32.
// Reference: as matvec.hip.
#include "formats.h"

struct MatmulArgs {
    const u8 *w;
    const void *x; // i8 or f16 [tokens, k]
    const f32x2 *scales; // [tokens, k / 32]
    const float *bias;
    float *out;
    u32 n, k, row_bytes, tokens, stride, zero;
};

static constexpr int THREADS = 128, TILE_N = 128, TILE_T = 64;
// Halves from row to row in LDS: 32 and a shift of the banks, a multiple of 16 bytes.
static constexpr int STRIDE = 40;

DEVICE f16x16 fragment(const f16 *from) {
    return join(load_aligned<f16x8>(from), load_aligned<f16x8>(from + 8));
}

template <class F> DEVICE void matmul(const MatmulArgs &a) {
    SHARED(f16x8, weights_memory, TILE_N *STRIDE / 8);
    SHARED(f16x8, tokens_memory, TILE_T *STRIDE / 8);
    f16 *weights = (f16 *)weights_memory, *tokens = (f16 *)tokens_memory;
    const int lane = thread() % WAVE, wave = thread() / WAVE;
    const u32 first_n = block_x() * TILE_N, first_t = block_y() * TILE_T, blocks = a.k / 32;
    const u8 *row = a.w + (u64)min(first_n + thread(), a.n - 1) * a.row_bytes;
    const u64 token = min(first_t + thread() / 2, a.tokens - 1);
    f32x8 sum[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = f32x8{};
    }
    for (u32 block = 0; block < blocks; block++) {
        float values[32];
        dequantize<F>(row, block, values);
#pragma unroll
        for (int i = 0; i < 32; i += 8) {
            f16x8 part;
#pragma unroll
            for (int j = 0; j < 8; j++) part[j] = (f16)values[i + j];
            *(f16x8 *)(weights + thread() * STRIDE + i) = part;
        }
        // Two threads a token, 16 elements each.
        const u64 from = token * a.k + block * 32 + thread() % 2 * 16;
        f16 *to = tokens + thread() / 2 * STRIDE + thread() % 2 * 16;
        if constexpr (F::INTEGER) {
            const u32x4 bytes = load_aligned<u32x4>((const i8 *)a.x + from);
            f16x8 part[2];
#pragma unroll
            for (int i = 0; i < 16; i++) part[i / 8][i % 8] = (f16)(short)(i8)(bytes[i / 4] >> (i % 4 * 8));
            *(f16x8 *)to = part[0];
            *(f16x8 *)(to + 8) = part[1];
        } else {
            *(f16x8 *)to = load_aligned<f16x8>((const f16 *)a.x + from);
            *(f16x8 *)(to + 8) = load_aligned<f16x8>((const f16 *)a.x + from + 8);
        }
        barrier();
        f16x16 rows[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const f16 *at = weights + (wave * 32 + i * 16 + lane % 16) * STRIDE;
            rows[i][0] = fragment(at);
            rows[i][1] = fragment(at + 16);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const f16 *at = tokens + (j * 16 + lane % 16) * STRIDE;
            const f16x16 low = fragment(at), high = fragment(at + 16);
            const u64 column = min(first_t + j * 16 + lane % 16, a.tokens - 1);
            const float d = a.scales[column * blocks + block][0];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const f32x8 product = wmma(rows[i][1], high, wmma(rows[i][0], low, f32x8{}));
#pragma unroll
                for (int v = 0; v < 8; v++) sum[i][j][v] = fma(d, product[v], sum[i][j][v]);
            }
        }
        barrier();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int v = 0; v < 8; v++) {
            const u32 n = first_n + wave * 32 + i * 16 + 2 * v + lane / 16;
            const float bias = a.bias && n < a.n ? a.bias[n] : 0.0f;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 t = first_t + j * 16 + lane % 16;
                if (n < a.n && t < a.tokens) a.out[(u64)t * a.stride + n] = sum[i][j][v] + bias;
            }
        }
    }
}

#define MATMUL(F, name)                                                                                               \
    KERNEL(matmul_##name, MatmulArgs, THREADS) { matmul<F>(a); }

EVERY_INTEGER_FORMAT(MATMUL)
EVERY_FLOAT_FORMAT(MATMUL)
