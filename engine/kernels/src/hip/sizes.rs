//! How much scratch memory a model's largest step takes, before the model is loaded.
//!
//! An upper bound: buffers are counted once each, as if none shared its memory with another.

use atlas_engine_core::program::{BLOCK_TOKENS, Heads, MaxShape, PARTITION_TOKENS};

/// The widths of a model of the Llama family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Of the residual stream.
    pub hidden: usize,
    /// Of the feed-forward layer.
    pub feed_forward: usize,
    /// Rows of the head.
    pub vocabulary: usize,
    /// Of attention.
    pub heads: Heads,
}

/// Room for the beginnings of pieces, which are aligned, and for a step's lists.
const SPARE: u64 = 4 << 20;

impl Sizes {
    /// Bytes that programs of steps of at most this shape need besides weights and cache.
    #[must_use]
    pub fn scratch_bytes(&self, max: &MaxShape) -> u64 {
        let Self { hidden, feed_forward, vocabulary, heads } = *self;
        let attended = heads.query * heads.size;
        // The stream, two normed rows, two sums; queries, keys and values; gates and what comes of them.
        let row = 5 * hidden + heads.qkv_columns() + attended + 3 * feed_forward;
        let activations = max.rows * row + 2 * hidden * (max.logit_rows + max.hidden_rows);
        let widest = hidden.max(feed_forward).max(attended);
        // q8 and h16 with their scales.
        let blocks = max.rows.max(max.logit_rows) * widest * 7 / 2;
        let partitions = (max.blocks_per_sequence * BLOCK_TOKENS).div_ceil(PARTITION_TOKENS);
        let listed = max.sequences.max(8).min(max.rows.max(1));
        let partials = listed * heads.query * partitions * (heads.size + 2);
        let inputs = 4 * max.rows + 8 * max.sequences + max.sequences * max.blocks_per_sequence;
        let angles = max.rows * heads.size;
        let floats = activations + partials + max.logit_rows * vocabulary + inputs + angles;
        (floats * 4 + blocks) as u64 + SPARE
    }
}
