//! Checks of what multiplies weights: embedding, quantization of activations, matrix-vector, matrix-matrix.

use super::{Bench, Check, sample::values, worst};
use crate::hip::arena::Span;
use crate::hip::error::HipError;
use crate::hip::format::Format;
use crate::hip::products::{Blocks, Matrix, Output};

/// Of the sum of |w x|: f32 sums of exact products.
const MATVEC: f64 = 3e-6;
/// Of the sum of |w x|: weights (and float activations) rounded to f16.
const MATMUL: f64 = 1e-3;
/// Of the value: one rounding of d q - m.
const EMBED: f64 = 1e-6;

pub fn check(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    quantize(bench, tell)?;
    for format in Format::ALL {
        embed(bench, format, tell)?;
        // Columns that leave lanes idle, rows that leave waves idle, and long rows.
        for (n, blocks) in [(1, 1), (13, 3), (70, 11)] {
            let k = columns(format, blocks);
            for tokens in [1, 2, 3, 5, 8] {
                product(bench, format, [n, k, tokens], true, tell)?;
            }
        }
        for [n, blocks, tokens] in [[1, 1, 9], [150, 2, 17], [33, 5, 70]] {
            product(bench, format, [n, columns(format, blocks), tokens], false, tell)?;
        }
    }
    Ok(())
}

/// A length of so many blocks, or pieces of 96 where blocks are single elements.
pub fn columns(format: Format, blocks: usize) -> usize {
    let (elements, _) = format.block();
    if elements == 1 { 96 * blocks } else { elements * blocks }
}

fn quantize(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    for [rows, k] in [[1, 32], [3, 96], [2, 576]] {
        bench.clear()?;
        let mut x: Vec<f32> = bench.numbers.list(rows * k).iter().map(|x| x * 50.0).collect();
        // A block of zeros has scale 0 and no NaN.
        x[..32].fill(0.0);
        let from = bench.floats(&x)?;
        let blocks = bench.blocks(rows, k, 1)?;
        bench.kernels.quantize_q8(&bench.device, from, rows as u32, k as u32, blocks)?;
        let found = bench.read_q8(blocks, rows * k)?;
        let scales = bench.read_floats(blocks.scales, rows * k / 16)?;
        // Half a step of the block, a little more for the rounding of the step itself.
        let error = found.iter().zip(&x).enumerate().map(|(at, (found, x))| {
            let step = f64::from(scales[at / 32 * 2]);
            if step == 0.0 { (found - f64::from(*x)).abs() } else { (found - f64::from(*x)).abs() / step }
        });
        let error = error.fold(0.0, |worst, error| if error <= worst { worst } else { error });
        tell(Check { name: format!("quantize_q8 {rows} x {k}, in steps"), error, tolerance: 0.5001 });
        let elements = bench.read(blocks.elements, rows * k)?;
        let sums: Vec<f32> = scales.chunks_exact(2).map(|scale| scale[1]).collect();
        let error = worst(&sums, |at| {
            let sum: i32 = elements[at * 32..][..32].iter().map(|byte| i32::from(*byte as i8)).sum();
            (f64::from(scales[2 * at]) * f64::from(sum), 1.0)
        });
        tell(Check { name: format!("quantize_q8 {rows} x {k}, sums"), error, tolerance: 1e-3 });
    }
    Ok(())
}

fn embed(bench: &mut Bench, format: Format, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let (vocabulary, d, rows) = (9, columns(format, 3), 5);
    bench.clear()?;
    let bytes = bench.numbers.weights(format, vocabulary, d);
    let expected = values(format, &bytes);
    let ids: Vec<u32> = (0..rows).map(|_| bench.numbers.below(vocabulary) as u32).collect();
    let bytes = bench.bytes(&bytes)?;
    let w = Matrix { bytes, format, n: vocabulary as u32, k: d as u32 };
    let (list, out) = (bench.words(&ids)?, bench.room(rows * d)?);
    bench.kernels.embed(&bench.device, w, list, rows as u32, out)?;
    let found = bench.read_floats(out, rows * d)?;
    let error = worst(&found, |at| {
        let expected = f64::from(expected[ids[at / d] as usize * d + at % d]);
        (expected, expected.abs().max(1.0))
    });
    tell(Check { name: format!("embed_{} {rows} x {d}", format.name()), error, tolerance: EMBED });
    Ok(())
}

pub fn product(
    bench: &mut Bench,
    format: Format,
    [n, k, tokens]: [usize; 3],
    few: bool,
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    bench.clear()?;
    let bytes = bench.numbers.weights(format, n, k);
    let weights = values(format, &bytes);
    let bytes = bench.bytes(&bytes)?;
    let w = Matrix { bytes, format, n: n as u32, k: k as u32 };
    let x = bench.numbers.list(tokens * k);
    let bias = bench.numbers.list(n);
    let (from, bias_at) = (bench.floats(&x)?, bench.floats(&bias)?);
    // Rows further apart than they are long, as parts of one weight leave them.
    let stride = n + 3;
    let out = bench.room(tokens * stride)?;
    let to = Output { span: out, stride: stride as u32, bias: Some(bias_at) };
    let (blocks, x) = activations(bench, format, from, &x, [tokens, k], few)?;
    if few {
        bench.kernels.matvec(&bench.device, w, blocks, tokens as u32, to)?;
    } else {
        bench.kernels.matmul(&bench.device, w, blocks, tokens as u32, to)?;
    }
    let found = bench.read_floats(out, tokens * stride)?;
    let found: Vec<f32> = found.chunks_exact(stride).flat_map(|row| row[..n].to_vec()).collect();
    let error = worst(&found, |at| {
        let (x, w) = (&x[at / n * k..][..k], &weights[at % n * k..][..k]);
        let bias = f64::from(bias[at % n]);
        // Where weights are small it is the bias that the last sum is rounded for: once, in the last bit.
        let (mut sum, mut size) = (bias, 1e-3 + bias.abs() / 16.0);
        for (x, w) in x.iter().zip(w) {
            sum += x * f64::from(*w);
            size += (x * f64::from(*w)).abs();
        }
        (sum, size)
    });
    let (kernel, tolerance) = if few { ("matvec", MATVEC) } else { ("matmul", MATMUL) };
    let name = format!("{kernel}_{} {n} x {k}, {tokens} rows", format.name());
    tell(Check { name, error, tolerance });
    if few && tokens > 1 {
        invariance(bench, w, blocks, (out, bias_at), [n, k, tokens], tell)?;
    }
    Ok(())
}

/// Activations as the product reads them, and what they mean.
fn activations(
    bench: &mut Bench,
    format: Format,
    from: Span,
    x: &[f32],
    [tokens, k]: [usize; 2],
    few: bool,
) -> Result<(Blocks, Vec<f64>), HipError> {
    let exact = || x.iter().map(|x| f64::from(*x)).collect();
    if format.is_integer() {
        let blocks = bench.blocks(tokens, k, 1)?;
        bench.kernels.quantize_q8(&bench.device, from, tokens as u32, k as u32, blocks)?;
        let x = bench.read_q8(blocks, tokens * k)?;
        Ok((blocks, x))
    } else if few {
        Ok((Blocks { elements: from, scales: from }, exact()))
    } else {
        let blocks = bench.blocks(tokens, k, 2)?;
        bench.kernels.quantize_h16(&bench.device, from, tokens as u32, k as u32, blocks)?;
        Ok((blocks, exact()))
    }
}

/// A row alone has the same bits as in company.
fn invariance(
    bench: &mut Bench,
    w: Matrix,
    blocks: Blocks,
    (together, bias): (Span, Span),
    [n, k, tokens]: [usize; 3],
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    let stride = n + 3;
    let last = tokens - 1;
    let element = if w.format.is_integer() { 1 } else { 4 };
    let alone = Blocks {
        elements: blocks.elements.after((last * k * element) as u64),
        scales: blocks.scales.after((last * k / 32 * 8) as u64),
    };
    let out = bench.room(n)?;
    let to = Output { span: out, stride: n as u32, bias: Some(bias) };
    bench.kernels.matvec(&bench.device, w, alone, 1, to)?;
    let alone = bench.read_words(out, n)?;
    let company = bench.read_words(together.after((last * stride * 4) as u64), n)?;
    let different = alone.iter().zip(&company).filter(|(alone, company)| alone != company).count();
    let name = format!("matvec_{} {n} x {k}, bits of a row alone and among {tokens}", w.format.name());
    tell(Check { name, error: different as f64, tolerance: 0.0 });
    Ok(())
}
