//! Attention over the paged cache.
//!
//! A tile is a few rows of one sequence. For each tile and key head, the keys and values of sixty-four positions at a
//! time become f32 once and serve all rows of the tile and all query heads that share them. Each row and head folds
//! the partitions it sees in ascending order into a running maximum, total and sum (Milakov and Gimelshein 2018;
//! Dao et al. 2022), which is a function of its own query and positions alone: tiles change no bit.

use super::kv::{PagedKv, Part};
use super::ops::exp;
use crate::attention::dot;
use crate::lanes::{Lanes, Level, Portable};
use crate::pool::Pool;
use atlas_engine_core::backend::Batch;
use atlas_engine_core::program::{BLOCK_TOKENS, Heads, PARTITION_TOKENS};
use std::cell::RefCell;
use std::ops::Range;

/// Rows a tile.
const TILE: usize = 8;

/// Rows of one sequence that are computed together.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    sequence: usize,
    rows: Range<usize>,
}

/// Cuts a step's sequences into tiles.
pub(crate) fn tiles(batch: &Batch<'_>, out: &mut Vec<Tile>) {
    out.clear();
    for (sequence, bounds) in batch.seq_start.windows(2).enumerate() {
        let end = bounds[1] as usize;
        let starts = (bounds[0] as usize..end).step_by(TILE);
        out.extend(starts.map(|start| Tile { sequence, rows: start..(start + TILE).min(end) }));
    }
}

/// One layer's attention.
pub(crate) struct Attention<'a> {
    /// `[T, heads.qkv_columns()]`; queries are turned already.
    pub(crate) qkv: &'a [f32],
    pub(crate) heads: Heads,
    pub(crate) scale: f32,
    pub(crate) cache: &'a PagedKv,
    /// Counted from the cache's first.
    pub(crate) layer: usize,
    pub(crate) batch: &'a Batch<'a>,
    pub(crate) tiles: &'a [Tile],
}

/// Memory of a thread, used again.
#[derive(Default)]
struct Scratch {
    /// `[PARTITION_TOKENS, size]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    /// `[rows, group]`.
    folds: Vec<Fold>,
    /// `[rows, group, size]`.
    sums: Vec<f32>,
}

/// What a row's head knows of the partitions so far.
#[derive(Clone, Copy)]
struct Fold {
    maximum: f32,
    total: f32,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The result, written to by several threads.
struct Out(*mut f32);

// SAFETY: threads write disjoint elements, and nobody reads before all are done.
unsafe impl Sync for Out {}

impl Attention<'_> {
    /// Computes every row.
    ///
    /// # Shapes
    /// `out`: `[T, query * size]`.
    ///
    /// # Panics
    /// The lengths do not fit the batch.
    pub(crate) fn run(&self, pool: &Pool, level: Level, out: &mut [f32]) {
        let (rows, width) = (self.batch.rows(), self.heads.query * self.heads.size);
        assert!(out.len() == rows * width, "an attention's output of {} for {rows} rows", out.len());
        assert!(
            self.qkv.len() == rows * self.heads.qkv_columns(),
            "an attention's input of {}",
            self.qkv.len()
        );
        assert!(self.tiles.iter().all(|tile| tile.rows.end <= rows), "tiles of another batch");
        let out = Out(out.as_mut_ptr());
        pool.run(self.tiles.len() * self.heads.kv, &|item| {
            let out = &out;
            let (tile, head) = (&self.tiles[item / self.heads.kv], item % self.heads.kv);
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: `level` is one that this processor has.
                unsafe {
                    match level {
                        Level::Portable => portable(self, tile, head, scratch),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => avx2(self, tile, head, scratch),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => avx512(self, tile, head, scratch),
                    }
                }
                let group = self.heads.group() * self.heads.size;
                for (row, sums) in tile.rows.clone().zip(scratch.sums.chunks_exact(group)) {
                    // SAFETY: row and head lie inside `out`, as asserted, and belong to this item alone.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(out.0.add(row * width + head * group), group)
                    };
                    out.copy_from_slice(sums);
                }
            });
        });
    }

    /// The query of a row's head, of those that share a key head.
    fn query(&self, row: usize, kv_head: usize, index: usize) -> &[f32] {
        let Heads { size, .. } = self.heads;
        let at = row * self.heads.qkv_columns() + (kv_head * self.heads.group() + index) * size;
        &self.qkv[at..at + size]
    }
}

unsafe fn portable(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: needs no instruction set.
    unsafe { attend::<Portable>(attention, tile, head, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { attend::<crate::lanes::Avx2>(attention, tile, head, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { attend::<crate::lanes::Avx512>(attention, tile, head, scratch) };
}

/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn attend<L: Lanes>(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    let Attention { heads, scale, cache, layer, batch, .. } = attention;
    let (size, group) = (heads.size, heads.group());
    let table = &batch.blocks[tile.sequence * batch.blocks_per_sequence..][..batch.blocks_per_sequence];
    let Scratch { keys, values, scores, folds, sums } = scratch;
    for buffer in [&mut *keys, &mut *values] {
        buffer.resize(PARTITION_TOKENS * size, 0.0);
    }
    folds.clear();
    folds.resize(tile.rows.len() * group, Fold { maximum: f32::NEG_INFINITY, total: 0.0 });
    sums.clear();
    sums.resize(tile.rows.len() * group * size, 0.0);
    // Positions ascend, so the last row sees furthest.
    let context = tile.rows.clone().map(|row| batch.positions[row] as usize + 1).max().unwrap_or(0);
    for begin in (0..context).step_by(PARTITION_TOKENS) {
        let filled = (context - begin).min(PARTITION_TOKENS);
        for (index, block) in
            table[begin / BLOCK_TOKENS..][..filled.div_ceil(BLOCK_TOKENS)].iter().enumerate()
        {
            let first = index * BLOCK_TOKENS;
            let range = first * size..(first + (filled - first).min(BLOCK_TOKENS)) * size;
            cache.read(*layer, *block, Part::Keys, head, &mut keys[range.clone()]);
            cache.read(*layer, *block, Part::Values, head, &mut values[range]);
        }
        for (index, row) in tile.rows.clone().enumerate() {
            let visible = (batch.positions[row] as usize + 1).saturating_sub(begin).min(PARTITION_TOKENS);
            if visible == 0 {
                continue;
            }
            for query in 0..group {
                let (fold, at) = (&mut folds[index * group + query], (index * group + query) * size);
                let query = attention.query(row, head, query);
                scores.clear();
                for key in keys[..visible * size].chunks_exact(size) {
                    // SAFETY: the caller's promise.
                    scores.push(unsafe { dot::<L>(query, key) } * scale);
                }
                fold.add(scores, &values[..visible * size], &mut sums[at..at + size]);
            }
        }
    }
    for (fold, sums) in folds.iter().zip(sums.chunks_exact_mut(size)) {
        for sum in sums {
            *sum /= fold.total;
        }
    }
}

impl Fold {
    /// Adds a partition: its scores, which become weights, and its values, one row a score.
    #[inline(always)]
    fn add(&mut self, scores: &mut [f32], values: &[f32], sums: &mut [f32]) {
        let maximum = scores.iter().copied().fold(self.maximum, f32::max);
        let kept = if self.maximum == maximum { 1.0 } else { exp(self.maximum - maximum) };
        let mut total = self.total * kept;
        for score in scores.iter_mut() {
            *score = exp(*score - maximum);
        }
        for score in scores.iter() {
            total += score;
        }
        if kept != 1.0 {
            for sum in sums.iter_mut() {
                *sum *= kept;
            }
        }
        for (value, weight) in values.chunks_exact(sums.len()).zip(scores.iter()) {
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum += weight * value;
            }
        }
        *self = Self { maximum, total };
    }
}
