//! Attention of one query over keys and values that lie in blocks.

use crate::lanes::{LANES, Lanes, Level, Portable};

/// `out = softmax(q K^T / sqrt(d)) V`, summed over positions in order.
///
/// # Shapes
/// `query` and `out`: `[d]`; a block is keys and values, each `[positions, d]`. `scores` is room for the scores, so
/// that a caller can use it again.
///
/// # Panics
/// `out` has another length than `query`.
pub fn attend(query: &[f32], blocks: &[(&[f32], &[f32])], scores: &mut Vec<f32>, out: &mut [f32]) {
    assert_eq!(query.len(), out.len(), "an output has its query's length");
    // SAFETY: `detect` answers with what this processor has.
    unsafe {
        match Level::detect() {
            Level::Portable => portable(query, blocks, scores, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(query, blocks, scores, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(query, blocks, scores, out),
        }
    }
}

unsafe fn portable(query: &[f32], blocks: &[(&[f32], &[f32])], scores: &mut Vec<f32>, out: &mut [f32]) {
    // SAFETY: needs no instruction set.
    unsafe { attend_with::<Portable>(query, blocks, scores, out) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(query: &[f32], blocks: &[(&[f32], &[f32])], scores: &mut Vec<f32>, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { attend_with::<crate::lanes::Avx2>(query, blocks, scores, out) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(query: &[f32], blocks: &[(&[f32], &[f32])], scores: &mut Vec<f32>, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { attend_with::<crate::lanes::Avx512>(query, blocks, scores, out) };
}

/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn attend_with<L: Lanes>(
    query: &[f32],
    blocks: &[(&[f32], &[f32])],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    scores.clear();
    for (keys, _) in blocks {
        for key in keys.chunks_exact(query.len()) {
            // SAFETY: the caller's promise.
            scores.push(unsafe { dot::<L>(query, key) } * scale);
        }
    }
    let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - maximum).exp();
        total += *score;
    }
    out.fill(0.0);
    let mut weights = scores.iter();
    for (_, values) in blocks {
        for (value, weight) in values.chunks_exact(query.len()).zip(weights.by_ref()) {
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value;
            }
        }
    }
    for out in out {
        *out /= total;
    }
}

/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn dot<L: Lanes>(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    // SAFETY: a chunk is LANES floats.
    let sum = unsafe {
        let mut sum = L::zero();
        for (x, y) in x.iter().zip(y) {
            sum = sum.add_product(L::load(x.as_ptr()), L::load(y.as_ptr()));
        }
        sum.sum()
    };
    sum + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_attends_like_the_definition() {
        for (size, lengths) in [(64, vec![64, 3]), (20, vec![1]), (128, vec![5, 7, 64])] {
            let value = |seed: usize| ((seed * 7919 + 13) % 1000) as f32 / 500.0 - 1.0;
            let query: Vec<f32> = (0..size).map(value).collect();
            let stored: Vec<(Vec<f32>, Vec<f32>)> = lengths
                .iter()
                .map(|length| {
                    ((5..5 + length * size).map(value).collect(), (9..9 + length * size).map(value).collect())
                })
                .collect();
            let blocks: Vec<(&[f32], &[f32])> = stored.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            let keys: Vec<&[f32]> = blocks.iter().flat_map(|block| block.0.chunks(size)).collect();
            let values: Vec<&[f32]> = blocks.iter().flat_map(|block| block.1.chunks(size)).collect();
            let weights: Vec<f64> = keys
                .iter()
                .map(|key| {
                    let dot: f64 = key.iter().zip(&query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                    (dot / (size as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for level in Level::available() {
                let (mut out, mut scores) = (vec![0.0; size], Vec::new());
                unsafe {
                    match level {
                        Level::Portable => portable(&query, &blocks, &mut scores, &mut out),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => avx2(&query, &blocks, &mut scores, &mut out),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => avx512(&query, &blocks, &mut scores, &mut out),
                    }
                }
                for (at, out) in out.iter().enumerate() {
                    let expected: f64 = weights.iter().zip(&values).map(|(w, v)| w * f64::from(v[at])).sum();
                    assert!((f64::from(*out) - expected / total).abs() < 1e-5, "{level:?} {size}");
                }
            }
        }
    }
}
