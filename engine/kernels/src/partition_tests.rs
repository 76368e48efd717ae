//! Attention over partitions against its definition, on every instruction set and in every company.

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
            let rows = |block: usize| (begin + block * LANES) * size..(begin + (block + 1) * LANES) * size;
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
        (64, vec![200, 201]),
        (64, vec![70, 71, 72]),
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
                        key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>().exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (column, out) in out.iter().enumerate() {
                    let values = case.values.chunks_exact(size).map(|value| f64::from(value[column]));
                    let expected: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
                    assert!((f64::from(*out) - expected).abs() < 1e-5, "{level:?} {size}: {out} {expected}");
                }
            }
        }
    }
}

/// Weighted sums and folds of three queries over a partition of halves: as they are, and made f32 first.
#[inline(always)]
unsafe fn of_halves<L: Lanes>(size: usize, halves: &[Half], unpacked: bool) -> (Vec<f32>, Vec<Fold>) {
    let block = |index: usize| &halves[index * size * LANES..(index + 1) * size * LANES];
    let partition = Partition {
        keys: std::array::from_fn(block),
        values: std::array::from_fn(|index| block(BLOCKS + index)),
    };
    let list: Vec<f32> = (0..3 * size).map(value).collect();
    let (mut folds, mut sums) = (vec![Fold::EMPTY; 3], vec![0.0; 3 * size]);
    let mut queries =
        Queries { size, queries: &list, visible: &[7, 33, 64], folds: &mut folds, sums: &mut sums };
    // SAFETY: the caller's promise.
    unsafe {
        if unpacked {
            queries.add::<L, f32>(&Unpacked::default().of::<L, Half>(&partition));
        } else {
            queries.add::<L, Half>(&partition);
        }
    }
    (sums, folds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn of_halves_avx2(size: usize, halves: &[Half], unpacked: bool) -> (Vec<f32>, Vec<Fold>) {
    unsafe { of_halves::<crate::lanes::Avx2>(size, halves, unpacked) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn of_halves_avx512(size: usize, halves: &[Half], unpacked: bool) -> (Vec<f32>, Vec<Fold>) {
    unsafe { of_halves::<crate::lanes::Avx512>(size, halves, unpacked) }
}

#[test]
fn halves_made_f32_for_many_queries_give_the_same_bits() {
    for size in [20, 64] {
        // From 1/8 to 1, of both signs.
        let half = |seed: usize| Half((0x3000 + seed * 7919 % 0x0c00 + seed % 2 * 0x8000) as u16);
        let halves: Vec<Half> = (0..2 * BLOCKS * size * LANES).map(half).collect();
        for level in Level::available() {
            // SAFETY: `available` names what the processor has.
            let run = |unpacked| unsafe {
                match level {
                    Level::Portable => of_halves::<Portable>(size, &halves, unpacked),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => of_halves_avx2(size, &halves, unpacked),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => of_halves_avx512(size, &halves, unpacked),
                }
            };
            assert_eq!(run(false), run(true), "{level:?} {size}");
        }
    }
}
