// Help for sampling on the card: the largest logits of each row with their indices, largest first; of equal logits
// the smaller index. k = 1 is the argmax of greedy decoding.
//
// Shapes: logits [rows, n] f32, no NaN; values [rows, k] f32, indices [rows, k] u32; k <= 64, k <= n.
// Threads: 256 a row. Each round finds the best element after the one found last, so that nothing is written to the
//          logits; k rounds read the row k times from cache.
// Reference: a sort, exactly.
#include "device.h"

struct TopKArgs {
    const float *logits;
    float *values;
    u32 *indices;
    u32 n, k;
};

// Whether (a, i) comes before (b, j).
DEVICE bool before(float a, u32 i, float b, u32 j) { return a > b || (a == b && i < j); }

KERNEL(top_k, TopKArgs, 256) {
    SHARED(float, best_values, 256);
    SHARED(u32, best_indices, 256);
    const float *row = a.logits + (u64)block_x() * a.n;
    float last = __builtin_inff();
    u32 last_index = 0;
    bool any = false;
    for (u32 round = 0; round < a.k; round++) {
        float value = -__builtin_inff();
        u32 index = ~0u;
        for (u32 i = thread(); i < a.n; i += 256) {
            const bool open = !any || before(last, last_index, row[i], i);
            if (open && before(row[i], i, value, index)) {
                value = row[i];
                index = i;
            }
        }
        best_values[thread()] = value;
        best_indices[thread()] = index;
        barrier();
        for (int half = 128; half > 0; half /= 2) {
            if (thread() < half && before(best_values[thread() + half], best_indices[thread() + half],
                                          best_values[thread()], best_indices[thread()])) {
                best_values[thread()] = best_values[thread() + half];
                best_indices[thread()] = best_indices[thread() + half];
            }
            barrier();
        }
        last = best_values[0];
        last_index = best_indices[0];
        any = true;
        if (thread() == 0) {
            a.values[(u64)block_x() * a.k + round] = last;
            a.indices[(u64)block_x() * a.k + round] = last_index;
        }
        barrier();
    }
}
