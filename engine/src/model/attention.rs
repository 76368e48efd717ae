//! Attention of a step's rows, shared out over the compute threads.

use super::config::ModelConfig;
use super::kv::SequenceKv;
use atlas_kernels::{Pool, attend};
use std::sync::{Mutex, PoisonError};

/// Where one row stands.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// Keys and values of its sequence, its own included.
    pub kv: &'a SequenceKv,
    /// Its position.
    pub position: usize,
}

/// Grouped-query attention of every row over its own sequence.
///
/// # Shapes
/// `queries` and the result: `[T, heads * head_size]`.
pub fn attend_rows(
    pool: &Pool,
    config: &ModelConfig,
    layer: usize,
    queries: &[f32],
    rows: &[Row<'_>],
) -> Vec<f32> {
    let group = config.group() * config.head_size;
    let mut out = vec![0.0; queries.len()];
    // One item a row and KV head. The locks are never contended: each item is taken by one thread once.
    let items: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(group).map(Mutex::new).collect();
    pool.run(items.len(), &|item| {
        let (row, head) = (rows[item / config.kv_heads], item % config.kv_heads);
        let queries = &queries[item * group..(item + 1) * group];
        let mut out = items[item].lock().unwrap_or_else(PoisonError::into_inner);
        let blocks: Vec<_> = row.kv.blocks(layer, head, row.position + 1).collect();
        let mut scores = Vec::with_capacity(row.position + 1);
        let heads = queries.chunks_exact(config.head_size).zip(out.chunks_exact_mut(config.head_size));
        for (query, out) in heads {
            attend(query, &blocks, &mut scores, out);
        }
    });
    drop(items);
    out
}
