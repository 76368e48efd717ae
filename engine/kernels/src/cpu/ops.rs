//! The small operations between products, each on f32 rows.

use super::rows::{for_rows, for_rows_of_two};
use crate::lanes::compiled_for_each_level;
use crate::pool::Pool;
use atlas_engine_core::program::{Heads, Pairing, Rope};
use std::ops::Range;

/// `x += add` where given, then `out = x[t] / sqrt(mean(x[t]^2) + epsilon) * weight` (Zhang and Sennrich 2019).
///
/// # Shapes
/// `x`, `add`, `out`: `[T, d]`, `weight`: `[d]`.
pub(crate) fn norm(
    pool: &Pool,
    x: &mut [f32],
    add: Option<&[f32]>,
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    let columns = weight.len();
    for_rows_of_two(pool, x, out, columns, &|row, x, out| {
        let add = add.map_or(&[][..], |add| &add[row * columns..(row + 1) * columns]);
        norm_row(x, add, weight, epsilon, out);
    });
}

compiled_for_each_level! {
    fn norm_row(x: &mut [f32], addend: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        add(addend, x);
        let scale = scale_of(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x.iter()).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// The same in place, for single heads of each row.
pub(crate) fn head_norm(
    pool: &Pool,
    x: &mut [f32],
    columns: usize,
    heads: Range<usize>,
    weight: &[f32],
    epsilon: f32,
) {
    let size = weight.len();
    for_rows(pool, x, columns, &|_, row| {
        for head in row[heads.start * size..heads.end * size].chunks_exact_mut(size) {
            let scale = scale_of(head, epsilon);
            for (x, weight) in head.iter_mut().zip(weight) {
                *x = *x * scale * weight;
            }
        }
    });
}

#[inline(always)]
fn scale_of(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares(row) / row.len() as f32 + epsilon).sqrt()
}

/// Summed in sixteen lanes that the compiler can vectorise, and a fixed order.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    let mut half = 8;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0] + rest.iter().map(|x| x * x).sum::<f32>()
}

/// `out += x`.
#[inline(always)]
pub(crate) fn add(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

/// Adds a vector to every row.
pub(crate) fn add_to_rows(vector: &[f32], out: &mut [f32]) {
    for row in out.chunks_exact_mut(vector.len()) {
        add(vector, row);
    }
}

/// `out = silu(gate) * up` (Shazeer 2020).
///
/// # Shapes
/// `x`: `[T, 2f]`, gate before up; `out`: `[T, f]`.
pub(crate) fn swiglu(pool: &Pool, x: &[f32], columns: usize, out: &mut [f32]) {
    for_rows(pool, out, columns, &|row, out| {
        let (gate, up) = x[row * 2 * columns..(row + 1) * 2 * columns].split_at(columns);
        swiglu_row(gate, up, out);
    });
}

compiled_for_each_level! {
    fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// e to the x, to about an ulp, without a branch, so that loops over it are vectorised.
///
/// `x` is a multiple of ln 2 and a rest of at most half of it, whose power is a polynomial (Cephes, expf). Results
/// stay finite: below -87 and above 88 it answers for those.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this rounds to a whole number, because the sum has no bits below 1.
    const WHOLE: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + WHOLE;
    let count = shifted - WHOLE;
    // ln 2 in two parts, the first of few bits, so that the subtraction is exact.
    let rest = x - count * 0.693_359_4 - count * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + factor;
    }
    let power = sum * rest * rest + rest + 1.0;
    // The count stands in the last bits of `shifted`; in the exponent's place it is the power of 2.
    power * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Sine and cosine of each pair at each position.
///
/// # Shapes
/// `out`: `[T, pairs, 2]`.
pub(crate) fn angles(rope: &Rope, positions: &[u32], out: &mut Vec<(f32, f32)>) {
    out.clear();
    for position in positions {
        out.extend(rope.frequencies.iter().map(|frequency| (*position as f32 * frequency).sin_cos()));
    }
}

/// Turns queries and keys of every row in place.
///
/// # Shapes
/// `qkv`: `[T, heads.qkv_columns()]`, `angles`: `[T, pairs]`.
pub(crate) fn rope(pool: &Pool, rope: &Rope, angles: &[(f32, f32)], heads: &Heads, qkv: &mut [f32]) {
    let pairs = rope.frequencies.len();
    for_rows(pool, qkv, heads.qkv_columns(), &|row, qkv| {
        let angles = &angles[row * pairs..(row + 1) * pairs];
        for head in qkv[..(heads.query + heads.kv) * heads.size].chunks_exact_mut(heads.size) {
            match rope.pairing {
                Pairing::Interleaved => {
                    let (pairs, _) = head.as_chunks_mut::<2>();
                    for ([x, y], angle) in pairs.iter_mut().zip(angles) {
                        turn(x, y, *angle);
                    }
                }
                Pairing::Halves => {
                    let (low, high) = head[..2 * pairs].split_at_mut(pairs);
                    for ((x, y), angle) in low.iter_mut().zip(high).zip(angles) {
                        turn(x, y, *angle);
                    }
                }
            }
        }
    });
}

fn turn(x: &mut f32, y: &mut f32, (sin, cos): (f32, f32)) {
    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_and_gate_match_hand_computed_values() {
        let pool = Pool::new(1).unwrap();
        let mut normed = [0.0; 4];
        let mut x = [3.0, 1.0, 0.0, 2.0];
        norm(&pool, &mut x, Some(&[0.0, 3.0, 0.0, 0.0]), &[1.0, 2.0], 0.0, &mut normed);
        assert_eq!(x, [3.0, 4.0, 0.0, 2.0]);
        let expected = [3.0 / 12.5_f32.sqrt(), 8.0 / 12.5_f32.sqrt(), 0.0, 4.0 / 2.0_f32.sqrt()];
        for (value, expected) in normed.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{normed:?}");
        }
        let mut gated = [0.0; 2];
        swiglu(&pool, &[0.0, 1.0, 5.0, 2.0], 2, &mut gated);
        assert!(gated[0] == 0.0 && (gated[1] - 2.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6, "{gated:?}");
        let mut heads = [3.0, 4.0, 0.0, 2.0, 7.0, 7.0];
        head_norm(&pool, &mut heads, 6, 0..2, &[1.0, 2.0], 0.0);
        assert_eq!((&heads[..4], &heads[4..]), (&normed[..], &[7.0, 7.0][..]));
    }

    #[test]
    fn exp_is_e_to_the_x() {
        for step in -87_000..88_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * 2e-7, "{x}: {} {exact}", exp(x));
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9) > 1e38 && exp(1e9).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn both_pairings_turn_the_same_pairs() {
        let pool = Pool::new(1).unwrap();
        let heads = Heads { query: 1, kv: 1, size: 6 };
        let frequencies = vec![1.0, 0.25];
        let interleaved = Rope { frequencies: frequencies.clone(), pairing: Pairing::Interleaved };
        let halves = Rope { frequencies, pairing: Pairing::Halves };
        let mut turned = Vec::new();
        angles(&halves, &[0, 3], &mut turned);
        // x0 y0 x1 y1 and x0 x1 y0 y1, then what is not turned; query, key, value.
        let mut left = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; 6].concat();
        let mut right = [[1.0, 3.0, 2.0, 4.0, 5.0, 6.0]; 6].concat();
        rope(&pool, &interleaved, &turned, &heads, &mut left);
        rope(&pool, &halves, &turned, &heads, &mut right);
        assert_eq!(left[..18], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; 3].concat());
        for head in [18, 24] {
            let (sin, cos) = 0.75_f32.sin_cos();
            assert_eq!(left[head + 2..head + 6], [3.0 * cos - 4.0 * sin, 3.0 * sin + 4.0 * cos, 5.0, 6.0]);
            let order = [0, 2, 1, 3, 4, 5].map(|index| left[head + index]);
            assert_eq!(right[head..head + 6], order);
        }
        assert_eq!(left[30..], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
