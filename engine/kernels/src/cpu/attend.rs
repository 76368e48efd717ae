//! Attention over the paged cache.
//!
//! A tile is a few rows of one sequence. For each tile and key head, all rows of the tile and all query heads that
//! share the key head go over the partitions together, in ascending order: see [`crate::partition`]. f16 and f32 are
//! read where they lie in the cache, Q8_0 becomes f32 first, as f16 does for many queries. Tiles change no bit.

use super::kv::{PagedKv, Part};
use crate::lanes::{Lanes, Level, Portable};
use crate::partition::{BLOCKS, Cached, Fold, Half, Partition, Queries, Unpacked};
use crate::pool::Pool;
use atlas_engine_core::backend::{Batch, KvType};
use atlas_engine_core::program::{BLOCK_TOKENS, Heads, PARTITION_TOKENS};
use std::cell::RefCell;
use std::ops::Range;

/// Rows a tile.
const TILE: usize = 8;
/// Queries that are done with a partition before memory has brought the next one.
const FEW: usize = 8;

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
    /// A partition of Q8_0 in f32.
    unpacked: Vec<f32>,
    /// A partition of f16 in f32.
    converted: Unpacked,
    /// `[rows, group, size]`, times the scale.
    queries: Vec<f32>,
    /// `[rows, group]`.
    visible: Vec<usize>,
    /// `[rows, group]`.
    folds: Vec<Fold>,
    /// `[rows, group, size]`.
    sums: Vec<f32>,
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

    /// Copies the queries of a tile's rows that share a key head, and says how many positions they see.
    #[inline(always)]
    fn begin(&self, tile: &Tile, head: usize, scratch: &mut Scratch) -> usize {
        let Heads { size, .. } = self.heads;
        let group = self.heads.group();
        scratch.queries.clear();
        for row in tile.rows.clone() {
            let at = row * self.heads.qkv_columns() + head * group * size;
            scratch.queries.extend(self.qkv[at..at + group * size].iter().map(|query| query * self.scale));
        }
        let count = tile.rows.len() * group;
        scratch.folds.clear();
        scratch.folds.resize(count, Fold::EMPTY);
        scratch.sums.clear();
        scratch.sums.resize(count * size, 0.0);
        // Positions ascend, so the last row sees furthest.
        tile.rows.clone().map(|row| self.batch.positions[row] as usize + 1).max().unwrap_or(0)
    }

    /// A block of the partition that begins there; where the context has ended, its first one, which nobody looks at.
    #[inline(always)]
    fn block(&self, tile: &Tile, begin: usize, context: usize, index: usize) -> u32 {
        let table = &self.batch.blocks[tile.sequence * self.batch.blocks_per_sequence..];
        let first = begin / BLOCK_TOKENS;
        let inside = begin + index * BLOCK_TOKENS < context;
        table[if inside { first + index } else { first }]
    }

    /// The tile's queries, with what they see of the partition that begins there.
    #[inline(always)]
    fn queries<'a>(&self, tile: &Tile, begin: usize, scratch: &'a mut Scratch) -> Queries<'a> {
        let group = self.heads.group();
        scratch.visible.clear();
        for row in tile.rows.clone() {
            let seen = (self.batch.positions[row] as usize + 1).saturating_sub(begin).min(PARTITION_TOKENS);
            scratch.visible.extend(std::iter::repeat_n(seen, group));
        }
        Queries {
            size: self.heads.size,
            queries: &scratch.queries,
            visible: &scratch.visible,
            folds: &mut scratch.folds,
            sums: &mut scratch.sums,
        }
    }
}

impl Scratch {
    /// Weighted sums become means.
    #[inline(always)]
    fn divide(&mut self, size: usize) {
        for (fold, sums) in self.folds.iter().zip(self.sums.chunks_exact_mut(size)) {
            for sum in sums {
                *sum /= fold.total();
            }
        }
    }
}

unsafe fn portable(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: needs no instruction set.
    unsafe { attend::<Portable>(attention, tile, head, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { attend::<crate::lanes::Avx2>(attention, tile, head, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { attend::<crate::lanes::Avx512>(attention, tile, head, scratch) };
}

/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn attend<L: Lanes>(attention: &Attention<'_>, tile: &Tile, head: usize, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        match attention.cache.spec().kv_type {
            KvType::F16 => fold::<L, Half>(attention, tile, head, scratch),
            KvType::F32 => fold::<L, f32>(attention, tile, head, scratch),
            KvType::Q8_0 => fold_unpacked::<L>(attention, tile, head, scratch),
        }
    }
}

/// Folds partitions that lie in the cache as the kernel takes them.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn fold<L: Lanes, E: Cached>(
    attention: &Attention<'_>,
    tile: &Tile,
    head: usize,
    scratch: &mut Scratch,
) {
    let Attention { cache, layer, .. } = attention;
    let context = attention.begin(tile, head, scratch);
    let partition = |begin| {
        let block =
            |part, index| cache.block::<E>(*layer, attention.block(tile, begin, context, index), part, head);
        Partition {
            keys: std::array::from_fn(|index| block(Part::Keys, index)),
            values: std::array::from_fn(|index| block(Part::Values, index)),
        }
    };
    let few = scratch.folds.len() <= FEW;
    let mut converted = std::mem::take(&mut scratch.converted);
    for begin in (0..context).step_by(PARTITION_TOKENS) {
        let next = begin + PARTITION_TOKENS;
        // With many queries there is time enough for the processor to find out by itself.
        if few && next < context {
            partition(next).prefetch();
        }
        let mut queries = attention.queries(tile, begin, scratch);
        // SAFETY: the caller's promise.
        unsafe {
            if few || size_of::<E>() == size_of::<f32>() {
                queries.add::<L, E>(&partition(begin));
            } else {
                queries.add::<L, f32>(&converted.of::<L, E>(&partition(begin)));
            }
        }
    }
    scratch.converted = converted;
    scratch.divide(attention.heads.size);
}

/// Folds partitions that become f32 first.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn fold_unpacked<L: Lanes>(
    attention: &Attention<'_>,
    tile: &Tile,
    head: usize,
    scratch: &mut Scratch,
) {
    let Attention { cache, layer, .. } = attention;
    let context = attention.begin(tile, head, scratch);
    let length = attention.heads.size * BLOCK_TOKENS;
    let mut unpacked = std::mem::take(&mut scratch.unpacked);
    unpacked.resize(2 * BLOCKS * length, 0.0);
    for begin in (0..context).step_by(PARTITION_TOKENS) {
        let (keys, values) = unpacked.split_at_mut(BLOCKS * length);
        for index in 0..BLOCKS {
            let block = attention.block(tile, begin, context, index);
            let range = index * length..(index + 1) * length;
            cache.read(*layer, block, Part::Values, head, &mut values[range.clone()]);
            cache.read_turned(*layer, block, head, &mut keys[range]);
        }
        let partition = Partition {
            keys: std::array::from_fn(|index| &keys[index * length..(index + 1) * length]),
            values: std::array::from_fn(|index| &values[index * length..(index + 1) * length]),
        };
        let mut queries = attention.queries(tile, begin, scratch);
        // SAFETY: the caller's promise.
        unsafe { queries.add::<L, f32>(&partition) };
    }
    scratch.unpacked = unpacked;
    scratch.divide(attention.heads.size);
}
