//! Attention of several queries over one partition of cached positions.
//!
//! A block holds sixteen positions of one head: keys as `[size][16 positions]`, so that a lane is a position and a
//! score needs no sum across lanes; values as `[16 positions][size]`, so that a lane is an element of the result. Up
//! to four queries share each key and value that is loaded. Each query folds the partitions that it sees, in
//! ascending order, into a running maximum, total and sum (Milakov and Gimelshein 2018; Dao et al. 2022): which
//! queries it shares loads with changes no bit of its result.

use crate::cpu::exp;
use crate::lanes::{LANES, Lanes};

/// Positions of a partition.
pub(crate) const POSITIONS: usize = 64;
/// Blocks of a partition.
pub(crate) const BLOCKS: usize = POSITIONS / LANES;
/// Queries that share loads.
const TOGETHER: usize = 4;
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
            while first < count {
                self.add_to::<L, E, 1>(partition, first);
                first += 1;
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
        for (block, keys) in partition.keys.iter().enumerate().take(seen.div_ceil(LANES)) {
            // SAFETY: a block has sixteen keys an element, a query `size` elements.
            unsafe {
                let mut scores = [L::zero(); M];
                for element in 0..size {
                    let keys = E::load::<L>(keys.as_ptr().add(element * LANES));
                    for (m, score) in scores.iter_mut().enumerate() {
                        let query = *self.queries.get_unchecked((first + m) * size + element);
                        *score = score.add_product(L::splat(query), keys);
                    }
                }
                for (weights, score) in weights.iter_mut().zip(scores) {
                    score.store(weights.as_mut_ptr().add(block * LANES));
                }
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
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for (lane, score) in lanes.iter_mut().zip(scores) {
                *lane = lane.max(*score);
            }
        }
        let maximum = lanes.into_iter().fold(self.maximum, f32::max);
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
mod tests {
    use super::*;
    use crate::lanes::{Level, Portable};

    /// Numbers from -1 to 1 that look random.
    fn value(seed: usize) -> f32 {
        ((seed * 7919 + 13) % 1000) as f32 / 500.0 - 1.0
    }

    struct Case {
        size: usize,
        /// Positions that each query sees, over all partitions.
        visible: Vec<usize>,
        queries: Vec<f32>,
        /// `[position, size]`.
        keys: Vec<f32>,
        values: Vec<f32>,
    }

    impl Case {
        fn new(size: usize, visible: &[usize]) -> Self {
            let positions = visible.iter().copied().max().unwrap().next_multiple_of(POSITIONS);
            let list = |count: usize, seed: usize| (seed..seed + count).map(value).collect();
            Self {
                size,
                visible: visible.to_vec(),
                queries: list(visible.len() * size, 3),
                keys: list(positions * size, 5),
                values: list(positions * size, 9),
            }
        }

        /// The result for these queries by one instruction set.
        fn run(&self, level: Level, queries: std::ops::Range<usize>) -> Vec<f32> {
            let size = self.size;
            let mut folds = vec![Fold::EMPTY; queries.len()];
            let mut sums = vec![0.0; queries.len() * size];
            for begin in (0..self.keys.len() / size).step_by(POSITIONS) {
                let rows =
                    |block: usize| (begin + block * LANES) * size..(begin + (block + 1) * LANES) * size;
                let keys: Vec<Vec<f32>> = (0..BLOCKS)
                    .map(|block| {
                        let keys = &self.keys[rows(block)];
                        (0..size * LANES).map(|at| keys[at % LANES * size + at / LANES]).collect()
                    })
                    .collect();
                let partition = Partition {
                    keys: std::array::from_fn(|block| &keys[block][..]),
                    values: std::array::from_fn(|block| &self.values[rows(block)]),
                };
                let visible: Vec<usize> = self.visible[queries.clone()]
                    .iter()
                    .map(|seen| seen.saturating_sub(begin).min(POSITIONS))
                    .collect();
                let mut queries = Queries {
                    size,
                    queries: &self.queries[queries.start * size..queries.end * size],
                    visible: &visible,
                    folds: &mut folds,
                    sums: &mut sums,
                };
                // SAFETY: `available` names what the processor has.
                unsafe {
                    match level {
                        Level::Portable => queries.add::<Portable, f32>(&partition),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => avx2(&mut queries, &partition),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => avx512(&mut queries, &partition),
                    }
                }
            }
            for (fold, sums) in folds.iter().zip(sums.chunks_exact_mut(size)) {
                sums.iter_mut().for_each(|sum| *sum /= fold.total());
            }
            sums
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2(queries: &mut Queries<'_>, partition: &Partition<'_, f32>) {
        unsafe { queries.add::<crate::lanes::Avx2, f32>(partition) };
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512(queries: &mut Queries<'_>, partition: &Partition<'_, f32>) {
        unsafe { queries.add::<crate::lanes::Avx512, f32>(partition) };
    }

    #[test]
    fn every_level_attends_like_the_definition_and_queries_do_not_depend_on_company() {
        for (size, visible) in [
            (64, vec![1]),
            (64, vec![64, 65, 130, 7, 100, 128]),
            (80, vec![3, 4, 5, 6]),
            (20, vec![90, 17, 64, 1, 2]),
            (128, vec![200, 201, 202, 203, 204]),
        ] {
            let case = Case::new(size, &visible);
            for level in Level::available() {
                let out = case.run(level, 0..visible.len());
                for (index, out) in out.chunks_exact(size).enumerate() {
                    assert_eq!(case.run(level, index..index + 1), out, "{level:?} {size}: {index} alone");
                    let query = &case.queries[index * size..(index + 1) * size];
                    let weights: Vec<f64> = case
                        .keys
                        .chunks_exact(size)
                        .take(visible[index])
                        .map(|key| {
                            key.iter()
                                .zip(query)
                                .map(|(k, q)| f64::from(*k) * f64::from(*q))
                                .sum::<f64>()
                                .exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for (column, out) in out.iter().enumerate() {
                        let values = case.values.chunks_exact(size).map(|value| f64::from(value[column]));
                        let expected: f64 =
                            weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
                        assert!(
                            (f64::from(*out) - expected).abs() < 1e-5,
                            "{level:?} {size}: {out} {expected}"
                        );
                    }
                }
            }
        }
    }
}
