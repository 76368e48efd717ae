// Embedding: out[t] = W[ids[t]], dequantized.
//
// Shapes: W [vocabulary, d] in its file's blocks, ids [rows], out [rows, d] f32; d a multiple of 32.
// Threads: 64, a piece of 32 elements each. Grid: x over pieces, y over rows.
// Reference: the blocks as the CPU backend reads them, exactly up to one rounding.
#include "formats.h"

struct EmbedArgs {
    const u8 *w;
    const u32 *ids;
    float *out;
    u32 d, row_bytes;
};

template <class F> DEVICE void embed(const EmbedArgs &a) {
    const u32 piece = block_x() * 64 + thread();
    if (piece >= a.d / 32) return;
    float values[32];
    dequantize<F>(a.w + (u64)a.ids[block_y()] * a.row_bytes, piece, values);
    float *out = a.out + (u64)block_y() * a.d + piece * 32;
#pragma unroll
    for (int i = 0; i < 32; i += 4) *(f32x4 *)(out + i) = f32x4{values[i], values[i + 1], values[i + 2], values[i + 3]};
}

#define EMBED(F, name)                                                                                                \
    KERNEL(embed_##name, EmbedArgs, 64) { embed<F>(a); }

EVERY_INTEGER_FORMAT(EMBED)
EVERY_FLOAT_FORMAT(EMBED)
