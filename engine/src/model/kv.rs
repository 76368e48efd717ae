//! Keys and values of one sequence, in blocks of 64 positions that are filled in place and never moved.

use super::config::ModelConfig;

/// Positions a block.
pub const BLOCK: usize = 64;

/// One layer's keys and values of 64 positions: for each KV head the keys, then for each the values, as
/// `[2, kv_heads, 64, head_size]`.
type Block = Box<[f32]>;

/// The KV cache of one sequence.
pub struct SequenceKv {
    /// `[layer][block]`.
    layers: Vec<Vec<Block>>,
    kv_heads: usize,
    head_size: usize,
}

impl SequenceKv {
    /// An empty cache.
    pub fn new(config: &ModelConfig) -> Self {
        let layers = (0..config.layers).map(|_| Vec::new()).collect();
        Self { layers, kv_heads: config.kv_heads, head_size: config.head_size }
    }

    /// Writes one position's key and value rows, each `[kv_heads * head_size]`. Positions are written in order.
    pub fn write(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let (kv_heads, head_size) = (self.kv_heads, self.head_size);
        let blocks = &mut self.layers[layer];
        if position / BLOCK == blocks.len() {
            blocks.push(vec![0.0; 2 * kv_heads * BLOCK * head_size].into_boxed_slice());
        }
        let block = &mut blocks[position / BLOCK];
        for (part, row) in [key, value].into_iter().enumerate() {
            for (head, source) in row.chunks_exact(head_size).enumerate() {
                let at = ((part * kv_heads + head) * BLOCK + position % BLOCK) * head_size;
                block[at..at + head_size].copy_from_slice(source);
            }
        }
    }

    /// The first `count` positions of one head, block by block, as `(keys, values)` of whole rows.
    pub fn blocks(&self, layer: usize, head: usize, count: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let size = BLOCK * self.head_size;
        self.layers[layer].iter().take(count.div_ceil(BLOCK)).enumerate().map(move |(index, block)| {
            let length = (count - index * BLOCK).min(BLOCK) * self.head_size;
            let (keys, values) = (head * size, (self.kv_heads + head) * size);
            (&block[keys..keys + length], &block[values..values + length])
        })
    }
}
