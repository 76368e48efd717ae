//! Attention of several queries over one partition of cached positions.
//!
//! A block holds sixteen positions of one head: keys as `[size][16 positions]`, so that a lane is a position and a
//! score needs no sum across lanes; values as `[16 positions][size]`, so that a lane is an element of the result. Up
//! to four queries share each key and value that is loaded. Each query folds the partitions that it sees, in
//! ascending order, into a running maximum, total and sum (Milakov and Gimelshein 2018; Dao et al. 2022): which
//! queries it shares loads with changes no bit of its result. Where many queries share a partition of f16, it becomes
//! f32 once ([`Unpacked`]), because every group of queries would convert it again.

use crate::cpu::exp;
use crate::lanes::{LANES, Lanes};

/// Positions of a partition.
pub(crate) const POSITIONS: usize = 64;
/// Blocks of a partition.
pub(crate) const BLOCKS: usize = POSITIONS / LANES;
/// Queries that share loads.
const TOGETHER: usize = 4;
/// Blocks whose scores are computed side by side where registers are few: sums of one alone would wait for one another.
const PAIR: usize = 2;
/// Registers of a result that stand beside one another.
const ABREAST: usize = 4;

/// How a cached number is stored.
///
/// # Safety
/// Any bits are a value of it.
pub(crate) unsafe trait Cached: Copy {
    /// Sixteen of them.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`; sixteen are readable.
    unsafe fn load<L: Lanes>(at: *const Self) -> L;

    /// One of them.
    fn read(self) -> f32;
}

// SAFETY: any 32 bits are an f32.
unsafe impl Cached for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(at) }
    }

    #[inline(always)]
    fn read(self) -> f32 {
        self
    }
}

/// The bits of an f16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Half(pub(crate) u16);

// SAFETY: any 16 bits are an f16.
unsafe impl Cached for Half {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_half(at.cast()) }
    }

    #[inline(always)]
    fn read(self) -> f32 {
        crate::blocks::half(&self.0.to_le_bytes(), 0)
    }
}

/// One head's keys and values of up to sixty-four positions.
pub(crate) struct Partition<'a, E> {
    /// A block each: `[size, 16]`.
    pub(crate) keys: [&'a [E]; BLOCKS],
    /// A block each: `[16, size]`.
    pub(crate) values: [&'a [E]; BLOCKS],
}

impl<E> Partition<'_, E> {
    /// Asks memory for it, so that it has come when its turn does.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        for block in self.keys.iter().chain(&self.values) {
            for line in (0..size_of_val(*block)).step_by(64) {
                // SAFETY: a prefetch reads nothing, whatever the address.
                unsafe {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast::<i8>().wrapping_add(line));
                }
            }
        }
    }
}

/// A partition in f32, in memory that is used again.
#[derive(Default)]
pub(crate) struct Unpacked(Vec<f32>);

impl Unpacked {
    /// Makes a partition's keys and values f32.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    pub(crate) unsafe fn of<L: Lanes, E: Cached>(
        &mut self,
        partition: &Partition<'_, E>,
    ) -> Partition<'_, f32> {
        let length = partition.keys[0].len();
        let blocks = || partition.keys.iter().chain(&partition.values);
        assert!(blocks().all(|block| block.len() == length && length.is_multiple_of(LANES)), "whole blocks");
        self.0.resize(2 * BLOCKS * length, 0.0);
        for (out, block) in self.0.chunks_exact_mut(length).zip(blocks()) {
            for at in (0..length).step_by(LANES) {
                // SAFETY: sixteen elements from there are inside both, and the instruction set is the caller's promise.
                unsafe { E::load::<L>(block.as_ptr().add(at)).store(out.as_mut_ptr().add(at)) };
            }
        }
        let block = |index: usize| &self.0[index * length..(index + 1) * length];
        Partition {
            keys: std::array::from_fn(block),
            values: std::array::from_fn(|index| block(BLOCKS + index)),
        }
    }
}

/// What a query knows of the partitions so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fold {
    maximum: f32,
    total: f32,
}

impl Fold {
    pub(crate) const EMPTY: Self = Self { maximum: f32::NEG_INFINITY, total: 0.0 };
}

/// Queries of one head on their way over the partitions.
pub(crate) struct Queries<'a> {
    /// Elements a head.
    pub(crate) size: usize,
    /// `[n, size]`, times the scale of scores.
    pub(crate) queries: &'a [f32],
    /// Positions of this partition that each query sees, `[n]`; ascending.
    pub(crate) visible: &'a [usize],
    /// `[n]`.
    pub(crate) folds: &'a mut [Fold],
    /// `[n, size]`: weighted values, not yet divided by the total.
    pub(crate) sums: &'a mut [f32],
}

impl Queries<'_> {
    /// Adds a partition.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    ///
    /// # Panics
    /// The lengths contradict one another.
    #[inline(always)]
    pub(crate) unsafe fn add<L: Lanes, E: Cached>(&mut self, partition: &Partition<'_, E>) {
        let (count, size) = (self.visible.len(), self.size);
        assert!(self.queries.len() == count * size && self.sums.len() == count * size, "elements of queries");
        assert!(self.folds.len() == count && self.visible.iter().all(|seen| *seen <= POSITIONS), "queries");
        let blocks = partition.keys.iter().chain(&partition.values);
        assert!(blocks.into_iter().all(|block| block.len() == size * LANES), "elements of blocks");
        let mut first = 0;
        // SAFETY: the caller's promise, and the lengths above.
        unsafe {
            while first + TOGETHER <= count {
                self.add_to::<L, E, TOGETHER>(partition, first);
                first += TOGETHER;
            }
            match count - first {
                0 => {}
                1 => self.add_to::<L, E, 1>(partition, first),
                2 => self.add_to::<L, E, 2>(partition, first),
                _ => self.add_to::<L, E, 3>(partition, first),
            }
        }
    }

    /// Adds a partition to `M` queries.
    ///
    /// # Safety
    /// As for [`Queries::add`], whose checks have passed.
    #[inline(always)]
    unsafe fn add_to<L: Lanes, E: Cached, const M: usize>(
        &mut self,
        partition: &Partition<'_, E>,
        first: usize,
    ) {
        let size = self.size;
        let visible = &self.visible[first..first + M];
        let seen = visible.iter().copied().max().unwrap_or(0);
        let mut weights = [[0.0_f32; POSITIONS]; M];
        let queries = &self.queries[first * size..(first + M) * size];
        let (mut block, blocks) = (0, seen.div_ceil(LANES));
        // SAFETY: the caller's promise; a block has sixteen keys an element, as checked.
        unsafe {
            if (M <= 2 || L::MANY) && blocks == BLOCKS {
                scores::<L, E, M, BLOCKS>(partition, queries, block, &mut weights);
                block = BLOCKS;
            }
            while block + PAIR <= blocks {
                scores::<L, E, M, PAIR>(partition, queries, block, &mut weights);
                block += PAIR;
            }
            if block < blocks {
                scores::<L, E, M, 1>(partition, queries, block, &mut weights);
            }
        }
        for (m, weights) in weights.iter_mut().enumerate() {
            let kept = self.folds[first + m].add(weights, visible[m]);
            if kept != 1.0 {
                for sum in &mut self.sums[(first + m) * size..(first + m + 1) * size] {
                    *sum *= kept;
                }
            }
        }
        let sums = self.sums[first * size..].as_mut_ptr();
        let mut column = 0;
        // SAFETY: as above; the columns end at `size`.
        unsafe {
            while column + ABREAST * LANES <= size {
                add_values::<L, E, M, ABREAST>(partition, &weights, (seen, size), column, sums);
                column += ABREAST * LANES;
            }
            while column + LANES <= size {
                add_values::<L, E, M, 1>(partition, &weights, (seen, size), column, sums);
                column += LANES;
            }
        }
        for column in column..size {
            for (m, weights) in weights.iter().enumerate() {
                let sum = &mut self.sums[(first + m) * size + column];
                for (position, weight) in weights.iter().enumerate().take(seen) {
                    *sum +=
                        weight * partition.values[position / LANES][position % LANES * size + column].read();
                }
            }
        }
    }
}

/// `out[m][block * 16..] = queries[m] K^T` for `B` blocks.
///
/// # Safety
/// The processor has the instruction set of `L`; the blocks hold sixteen keys of as many elements as a query has.
#[inline(always)]
unsafe fn scores<L: Lanes, E: Cached, const M: usize, const B: usize>(
    partition: &Partition<'_, E>,
    queries: &[f32],
    block: usize,
    out: &mut [[f32; POSITIONS]; M],
) {
    let size = queries.len() / M;
    let queries: [*const f32; M] = std::array::from_fn(|m| queries[m * size..(m + 1) * size].as_ptr());
    let blocks: [&[E]; B] = std::array::from_fn(|b| partition.keys[block + b]);
    // SAFETY: the caller's promise.
    unsafe {
        let mut scores = [[L::zero(); M]; B];
        for element in 0..size {
            let mut keys = [L::zero(); B];
            for (keys, block) in keys.iter_mut().zip(blocks) {
                *keys = E::load::<L>(block.as_ptr().add(element * LANES));
            }
            for m in 0..M {
                let query = L::splat(queries[m].add(element).read());
                for (scores, keys) in scores.iter_mut().zip(keys) {
                    scores[m] = scores[m].add_product(query, keys);
                }
            }
        }
        for (b, scores) in scores.iter().enumerate() {
            for (out, score) in out.iter_mut().zip(scores) {
                score.store(out[(block + b) * LANES..].as_mut_ptr());
            }
        }
    }
}

/// `sums[m][column..] += weights[m] values[..][column..]` for `C` registers of columns.
///
/// # Safety
/// The processor has the instruction set of `L`; the columns lie inside `size`, and `sums` is `[M, size]`.
#[inline(always)]
unsafe fn add_values<L: Lanes, E: Cached, const M: usize, const C: usize>(
    partition: &Partition<'_, E>,
    weights: &[[f32; POSITIONS]; M],
    (seen, size): (usize, usize),
    column: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[L::zero(); C]; M];
        for (m, totals) in totals.iter_mut().enumerate() {
            for (c, total) in totals.iter_mut().enumerate() {
                *total = L::load(sums.add(m * size + column + c * LANES));
            }
        }
        for position in 0..seen {
            let row = partition.values[position / LANES].as_ptr().add(position % LANES * size + column);
            let mut values = [L::zero(); C];
            for (c, values) in values.iter_mut().enumerate() {
                *values = E::load::<L>(row.add(c * LANES));
            }
            for (totals, weights) in totals.iter_mut().zip(weights) {
                let weight = L::splat(weights[position]);
                for (total, values) in totals.iter_mut().zip(values) {
                    *total = total.add_product(weight, values);
                }
            }
        }
        for (m, totals) in totals.iter().enumerate() {
            for (c, total) in totals.iter().enumerate() {
                total.store(sums.add(m * size + column + c * LANES));
            }
        }
    }
}

impl Fold {
    /// Adds a partition's scores, which become weights, 0 beyond those that are visible; returns what sums so far are
    /// to be multiplied with.
    #[inline(always)]
    fn add(&mut self, scores: &mut [f32; POSITIONS], visible: usize) -> f32 {
        for score in &mut scores[visible..] {
            *score = f32::NEG_INFINITY;
        }
        // Not `f32::max`, which looks for what is no number: this is one instruction.
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for (lane, score) in lanes.iter_mut().zip(scores) {
                *lane = larger(*score, *lane);
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = larger(lanes[lane + half], lanes[lane]);
            }
            half /= 2;
        }
        let maximum = larger(lanes[0], self.maximum);
        let kept = if self.maximum == maximum { 1.0 } else { exp(self.maximum - maximum) };
        for score in scores.iter_mut() {
            *score = exp(*score - maximum);
        }
        for score in &mut scores[visible..] {
            *score = 0.0;
        }
        let mut lanes = [0.0_f32; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for (lane, score) in lanes.iter_mut().zip(scores) {
                *lane += score;
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        *self = Self { maximum, total: self.total * kept + lanes[0] };
        kept
    }

    /// What sums are divided by at the end.
    pub(crate) fn total(self) -> f32 {
        self.total
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
