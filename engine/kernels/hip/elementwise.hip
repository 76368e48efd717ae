// What works on single elements or whole rows: SwiGLU, addition, the gathering of rows, copies of KV blocks.
//
// Shapes: swiglu x [rows, 2 f] -> out [rows, f], and q8 of it where asked for; add out += x over `count` elements;
//         gather out[i] = x[rows[i]], [count, d]; copy_blocks pairs [count] {from, to} of `bytes` each in `planes`.
// Threads: 256, one element each (copy_blocks: 16 bytes). Grid: x over elements, y over rows (pairs), z over planes.
// Reference: silu(g) u in f64, 1e-6 relative; the others exactly.
#include "activation.h"

struct SwigluArgs {
    const float *x;
    float *out; // or null where only q8 is wanted
    i8 *q; // or null
    f32x2 *scales;
    u32 f, zero;
};

KERNEL(swiglu, SwigluArgs, 256) {
    const u32 i = block_x() * 256 + thread();
    if (i >= a.f) return;
    const u64 row = block_y();
    const float gate = a.x[row * 2 * a.f + i], up = a.x[row * 2 * a.f + a.f + i];
    const float value = gate / (1.0f + exp2(-gate * LOG2_E)) * up;
    if (a.out) a.out[row * a.f + i] = value;
    if (a.q) store_q8(value, row * a.f + i, a.q, a.scales);
}

struct AddArgs {
    const float *x;
    float *out;
    u64 count;
};

KERNEL(add, AddArgs, 256) {
    const u64 i = (u64)block_x() * 256 + thread();
    if (i < a.count) a.out[i] += a.x[i];
}

struct GatherArgs {
    const float *x;
    const u32 *rows;
    float *out;
    u32 d, zero;
};

KERNEL(gather, GatherArgs, 256) {
    const u32 i = block_x() * 256 + thread();
    if (i < a.d) a.out[(u64)block_y() * a.d + i] = a.x[(u64)a.rows[block_y()] * a.d + i];
}

struct CopyBlocksArgs {
    u8 *cache;
    const u32 *pairs; // [count, 2]
    u64 plane_bytes; // from one layer's keys or values to the next
    u32 block_bytes, zero; // a multiple of 16
};

KERNEL(copy_blocks, CopyBlocksArgs, 256) {
    const u32 i = (block_x() * 256 + thread()) * 16;
    if (i >= a.block_bytes) return;
    u8 *plane = a.cache + block_z() * a.plane_bytes;
    const u64 from = a.pairs[2 * block_y()], to = a.pairs[2 * block_y() + 1];
    *(u32x4 *)(plane + to * a.block_bytes + i) = *(const u32x4 *)(plane + from * a.block_bytes + i);
}
