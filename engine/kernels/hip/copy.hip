// Copies 16 bytes a thread from one place to another: the measure of what the card's memory gives, for `selftest`.
//
// Shapes: from, to [count] of 16 bytes.
// Threads: 256. Reference: the bytes.
#include "device.h"

struct CopyArgs {
    const u32x4 *from;
    u32x4 *to;
    u64 count;
};

KERNEL(copy, CopyArgs, 256) {
    const u64 i = (u64)block_x() * 256 + thread();
    if (i < a.count) a.to[i] = a.from[i];
}
