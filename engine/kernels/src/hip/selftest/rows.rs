//! Checks of what works on rows: norms, gates, additions, gathers, copies, the largest logits.

use super::{Bench, Check, worst};
use crate::hip::error::HipError;
use crate::hip::rows::Norm;

pub fn check(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    // The last is longer than what one pass of the norm holds.
    for [rows, d] in [[1, 32], [3, 576], [2, 1056], [1, 9248]] {
        check_shape(bench, [rows, d], tell)?;
    }
    head_norm(bench, tell)?;
    copy_blocks(bench, tell)?;
    for [rows, n, k] in [[1, 5, 5], [2, 1000, 1], [3, 700, 20]] {
        top_k(bench, [rows, n, k], tell)?;
    }
    Ok(())
}

/// What takes rows of any multiple of 32.
pub fn check_shape(
    bench: &mut Bench,
    shape: [usize; 2],
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    for added in [false, true] {
        norm(bench, shape, added, tell)?;
    }
    swiglu(bench, shape, tell)?;
    add_and_gather(bench, shape, tell)
}

fn norm(
    bench: &mut Bench,
    [rows, d]: [usize; 2],
    added: bool,
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    bench.clear()?;
    let (mut x, add, weight) =
        (bench.numbers.list(rows * d), bench.numbers.list(rows * d), bench.numbers.list(d));
    let (on_card, add_at, weight_at) = (bench.floats(&x)?, bench.floats(&add)?, bench.floats(&weight)?);
    let (out, blocks) = (bench.room(rows * d)?, bench.blocks(rows, d, 1)?);
    let operands = Norm {
        x: on_card,
        add: added.then_some(add_at),
        weight: weight_at,
        epsilon: 1e-5,
        out,
        blocks: Some(blocks),
        d: d as u32,
    };
    bench.kernels.norm(&bench.device, operands, rows as u32)?;
    if added {
        for (x, add) in x.iter_mut().zip(&add) {
            *x += add;
        }
        let sums = bench.read_floats(on_card, rows * d)?;
        let error = worst(&sums, |at| (f64::from(x[at]), 1.0));
        tell(Check { name: format!("norm {rows} x {d}, addition"), error, tolerance: 0.0 });
    }
    let found = bench.read_floats(out, rows * d)?;
    let expected: Vec<f64> = x
        .chunks_exact(d)
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = 1.0 / (squares / d as f64 + 1e-5).sqrt();
            row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * factor * f64::from(*w)).collect::<Vec<_>>()
        })
        .collect();
    let error = worst(&found, |at| (expected[at], expected[at].abs().max(1e-3)));
    tell(Check { name: format!("norm {rows} x {d}, add {added}"), error, tolerance: 2e-6 });
    let quantized = bench.read_q8(blocks, rows * d)?;
    let quantized: Vec<f32> = quantized.iter().map(|value| *value as f32).collect();
    // Half a step of a block whose largest value is at most that of the row.
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let error = worst(&quantized, |at| (expected[at], largest));
    tell(Check { name: format!("norm {rows} x {d}, q8"), error, tolerance: 0.5 / 127.0 + 1e-5 });
    Ok(())
}

fn head_norm(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let (rows, heads, size, stride, first) = (3, 5, 64, 9 * 64, 2 * 64);
    bench.clear()?;
    let (x, weight) = (bench.numbers.list(rows * stride), bench.numbers.list(size));
    let (on_card, weight_at) = (bench.floats(&x)?, bench.floats(&weight)?);
    let shape = [size as u32, heads as u32, stride as u32, rows as u32];
    bench.kernels.head_norm(&bench.device, on_card.after(first as u64 * 4), weight_at, shape, 1e-6)?;
    let found = bench.read_floats(on_card, rows * stride)?;
    let error = worst(&found, |at| {
        let column = at % stride;
        let value = f64::from(x[at]);
        if !(first..first + heads * size).contains(&column) {
            return (value, 1e-3);
        }
        let begin = at / size * size;
        let squares: f64 = x[begin..begin + size].iter().map(|x| f64::from(*x).powi(2)).sum();
        let expected = value / (squares / size as f64 + 1e-6).sqrt() * f64::from(weight[at % size]);
        (expected, expected.abs().max(1e-3))
    });
    tell(Check { name: format!("head_norm {rows} x {heads} x {size}"), error, tolerance: 2e-6 });
    Ok(())
}

fn swiglu(bench: &mut Bench, [rows, f]: [usize; 2], tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    bench.clear()?;
    let mut x: Vec<f32> = bench.numbers.list(rows * 2 * f).iter().map(|x| x * 10.0).collect();
    // Where exp overflows and underflows.
    (x[0], x[1]) = (-200.0, 200.0);
    let from = bench.floats(&x)?;
    let (out, blocks) = (bench.room(rows * f)?, bench.blocks(rows, f, 1)?);
    bench.kernels.swiglu(&bench.device, from, out, Some(blocks), [rows as u32, f as u32])?;
    let found = bench.read_floats(out, rows * f)?;
    let expected = |at: usize| {
        let (gate, up) = (f64::from(x[at / f * 2 * f + at % f]), f64::from(x[at / f * 2 * f + f + at % f]));
        gate / (1.0 + (-gate).exp()) * up
    };
    let error = worst(&found, |at| (expected(at), expected(at).abs().max(1e-2)));
    tell(Check { name: format!("swiglu {rows} x {f}"), error, tolerance: 5e-6 });
    let quantized = bench.read_q8(blocks, rows * f)?;
    let quantized: Vec<f32> = quantized.iter().map(|value| *value as f32).collect();
    let largest = (0..rows * f).fold(0.0_f64, |largest, at| largest.max(expected(at).abs()));
    let error = worst(&quantized, |at| (expected(at), largest));
    tell(Check { name: format!("swiglu {rows} x {f}, q8"), error, tolerance: 0.5 / 127.0 + 1e-5 });
    Ok(())
}

fn add_and_gather(
    bench: &mut Bench,
    [rows, d]: [usize; 2],
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    bench.clear()?;
    let (x, y) = (bench.numbers.list(rows * d), bench.numbers.list(rows * d));
    let (from, to) = (bench.floats(&x)?, bench.floats(&y)?);
    bench.kernels.add(&bench.device, from, to, (rows * d) as u64)?;
    let found = bench.read_floats(to, rows * d)?;
    let error = worst(&found, |at| (f64::from(x[at] + y[at]), 1.0));
    tell(Check { name: format!("add {}", rows * d), error, tolerance: 0.0 });
    let list: Vec<u32> = (0..4).map(|_| bench.numbers.below(rows) as u32).collect();
    let (list_at, out) = (bench.words(&list)?, bench.room(4 * d)?);
    bench.kernels.gather(&bench.device, from, list_at, out, [4, d as u32])?;
    let found = bench.read_floats(out, 4 * d)?;
    let error = worst(&found, |at| (f64::from(x[list[at / d] as usize * d + at % d]), 1.0));
    tell(Check { name: format!("gather 4 x {d}"), error, tolerance: 0.0 });
    Ok(())
}

fn copy_blocks(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let (planes, blocks, block) = (4, 6, 1088);
    bench.clear()?;
    let mut expected: Vec<u8> =
        (0..planes * blocks * block).map(|_| bench.numbers.below(256) as u8).collect();
    let (cache, pairs) = (bench.bytes(&expected)?, bench.words(&[0, 5, 0, 3, 2, 1])?);
    let shape = [planes as u64, (blocks * block) as u64, block as u64];
    bench.kernels.copy_blocks(&bench.device, cache, pairs, 3, shape)?;
    for plane in expected.chunks_exact_mut(blocks * block) {
        for (from, to) in [(0, 5), (0, 3), (2, 1)] {
            plane.copy_within(from * block..(from + 1) * block, to * block);
        }
    }
    let found = bench.read(cache, expected.len())?;
    let different = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    let name = format!("copy_blocks 3 of {block} bytes in {planes} planes");
    tell(Check { name, error: different as f64, tolerance: 0.0 });
    let copied = bench.empty(4096)?;
    bench.kernels.copy(&bench.device, cache, copied, 4096)?;
    let different = bench.read(copied, 4096)?.iter().zip(&found).filter(|(a, b)| a != b).count();
    tell(Check { name: "copy 4096 bytes".to_owned(), error: different as f64, tolerance: 0.0 });
    Ok(())
}

fn top_k(bench: &mut Bench, [rows, n, k]: [usize; 3], tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    bench.clear()?;
    // Few distinct values: ties, which go to the smaller index.
    let logits: Vec<f32> = (0..rows * n).map(|_| bench.numbers.below(n / 4 + 2) as f32 - 3.0).collect();
    let from = bench.floats(&logits)?;
    let (values, indices) = (bench.room(rows * k)?, bench.room(rows * k)?);
    bench.kernels.top_k(&bench.device, from, values, indices, [rows as u32, n as u32, k as u32])?;
    let (values, indices) = (bench.read_floats(values, rows * k)?, bench.read_words(indices, rows * k)?);
    let mut wrong = 0;
    for (row, logits) in logits.chunks_exact(n).enumerate() {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        for (rank, expected) in order[..k].iter().enumerate() {
            let (value, index) = (values[row * k + rank], indices[row * k + rank]);
            wrong += usize::from(index as usize != *expected || value != logits[*expected]);
        }
    }
    tell(Check { name: format!("top_k {k} of {n}, {rows} rows"), error: wrong as f64, tolerance: 0.0 });
    Ok(())
}
