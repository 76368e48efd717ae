//! Attention of a step's rows, shared out over the threads of the numeric library.

use super::config::ModelConfig;
use super::kv::{SequenceKv, attend};
use candle_core::utils::barrier_pool;
use std::sync::Mutex;

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
pub fn attend_rows(config: &ModelConfig, layer: usize, queries: &[f32], rows: &[Row<'_>]) -> Vec<f32> {
    let group = config.group() * config.head_size;
    let mut out = vec![0.0; queries.len()];
    // One item a row and KV head. The locks are never contended: each item is taken by one thread once.
    let items: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(group).map(Mutex::new).collect();
    barrier_pool().execute_chunked(items.len(), |range| {
        for item in range {
            let (row, head) = (rows[item / config.kv_heads], item % config.kv_heads);
            let queries = &queries[item * group..(item + 1) * group];
            let mut out = items[item].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let heads = queries.chunks_exact(config.head_size).zip(out.chunks_exact_mut(config.head_size));
            for (query, out) in heads {
                attend(row.kv, layer, head, row.position + 1, query, out);
            }
        }
    });
    drop(items);
    out
}
