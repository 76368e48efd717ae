//! What the card's memory gives, how much of it the kernels that decoding waits for take, and what prefill computes.
//!
//! Products are those of a whole layer, captured and replayed as one run, as a step launches them: queries, keys and
//! values; output; gate and up; down. Decode reads distinct weights of several times any cache's size. Its share is of
//! the copy kernel's bandwidth in the same run, not of a data sheet's.

use super::{Amount, Bench, Speed, Work};
use crate::hip::arena::{Arena, Span};
use crate::hip::attention::{Attend, Layer, Prefill, Rows};
use crate::hip::card::Card;
use crate::hip::device::Device;
use crate::hip::error::HipError;
use crate::hip::format::Format;
use crate::hip::kernels::Cache;
use crate::hip::library::Library;
use crate::hip::options::Options;
use crate::hip::products::{Blocks, Matrix, Output};

/// Elements of a head.
const HEAD: u32 = 128;
/// Runs of prefill attention in one measurement, which alone would be short.
const REPEATS: u64 = 4;

/// Measures, the copy first.
///
/// # Errors
/// There is no card, not enough memory, or a call fails.
pub fn measure(options: &Options, work: Work, tell: &mut dyn FnMut(Speed)) -> Result<(), HipError> {
    let card = Card::find(&options.root)?;
    let library = Library::open(options.library.as_deref())?;
    let mut device = Device::open(library, &card.gfx_target, options.step_timeout)?;
    let weight_bytes = Format::ALL.map(|format| layers(work, format) * layer_bytes(work, format));
    let weight_bytes = weight_bytes.into_iter().max().unwrap_or(0).max(work.bytes);
    let rest = rest_bytes(work);
    let mut arena = Arena::new(&mut device, weight_bytes + work.bytes + rest + (1 << 20))?;
    let [weights, copies] = [arena.take("weights", weight_bytes)?, arena.take("copies", work.bytes)?];
    let mut bench = Bench::over(device, arena.take("the rest", rest)?)?;
    let bytes = work.bytes / 16 * 16;
    let milliseconds =
        fastest(&mut bench, work.runs, |bench| bench.kernels.copy(&bench.device, weights, copies, bytes))?;
    let (kernel, variant) = ("copy".to_owned(), "read and written".to_owned());
    tell(Speed { kernel, variant, amount: Amount::Bytes(2 * bytes), milliseconds });
    for format in Format::ALL {
        for tokens in [1, 2, 4, 8] {
            tell(products(&mut bench, work, weights, format, tokens)?);
        }
    }
    for cache in [Cache::F16, Cache::Q8] {
        for group in [1, 4, 8] {
            tell(attend(&mut bench, work, weights, cache, group)?);
        }
    }
    for format in Format::ALL {
        tell(products(&mut bench, work, weights, format, work.rows)?);
    }
    for cache in [Cache::F16, Cache::Q8] {
        tell(prefill(&mut bench, work, weights, cache)?);
    }
    Ok(())
}

/// Milliseconds of the fastest of so many runs of what is captured once.
fn fastest(
    bench: &mut Bench,
    runs: u32,
    work: impl Fn(&Bench) -> Result<(), HipError>,
) -> Result<f32, HipError> {
    // Once as it is: a first launch may load code.
    work(bench)?;
    bench.device.finish()?;
    let mut best = f32::INFINITY;
    if bench.device.has_graphs() {
        let graph = bench.capture(&work)?;
        for _ in 0..runs {
            best = best.min(bench.device.time(|| bench.device.replay(&graph))?);
        }
    } else {
        for _ in 0..runs {
            best = best.min(bench.device.time(|| work(bench))?);
        }
    }
    Ok(best)
}

/// Rows and columns of a layer's matrices, in the order of a step.
fn shapes(work: Work) -> [[u32; 2]; 4] {
    let Work { hidden, feed_forward, .. } = work;
    [[3 * hidden, hidden], [hidden, hidden], [2 * feed_forward, hidden], [hidden, feed_forward]]
}

fn matrix_bytes(format: Format, [n, k]: [u32; 2]) -> u64 {
    format.row_bytes(k as usize).unwrap_or(0) as u64 * u64::from(n)
}

fn layer_bytes(work: Work, format: Format) -> u64 {
    shapes(work).map(|shape| matrix_bytes(format, shape)).into_iter().sum()
}

/// Layers that have the bytes of distinct weights that are asked for.
fn layers(work: Work, format: Format) -> u64 {
    work.bytes.div_ceil(layer_bytes(work, format).max(1))
}

/// Room for operands that are no weights: activations and outputs of the widest product, or an attention's.
fn rest_bytes(work: Work) -> u64 {
    let rows = u64::from(work.rows.max(8));
    let (wide, columns) = (u64::from(work.hidden.max(work.feed_forward)), u64::from(3 * work.hidden));
    // Elements of 4 bytes at most, their scales, and f32 outputs of twice the width.
    let product = rows * wide * (4 + 1 + 8);
    let attention = rows * (columns + u64::from(work.hidden)) * 4
        + u64::from(work.hidden / HEAD) * u64::from(work.context.div_ceil(64)) * u64::from(HEAD + 2) * 4;
    product.max(attention) + (1 << 20)
}

/// All products of a layer for so many tokens: of few ones over distinct layers, in bytes; of many over one, in
/// operations.
fn products(
    bench: &mut Bench,
    work: Work,
    weights: Span,
    format: Format,
    tokens: u32,
) -> Result<Speed, HipError> {
    bench.clear()?;
    let few = tokens <= 8;
    let element = match (format.is_integer(), few) {
        (true, _) => 1,
        (false, true) => 4,
        (false, false) => 2,
    };
    let count = tokens as usize;
    let wide = work.hidden.max(work.feed_forward) as usize;
    let x = Blocks { elements: bench.empty(count * wide * element)?, scales: bench.empty(count * wide / 4)? };
    let out =
        bench.empty(count * shapes(work).map(|[n, _]| n as usize).into_iter().max().unwrap_or(0) * 4)?;
    let layers = if few { layers(work, format) } else { 1 };
    let milliseconds = fastest(bench, work.runs, |bench| {
        let mut at = 0;
        for _ in 0..layers {
            for shape @ [n, k] in shapes(work) {
                let w = Matrix { bytes: weights.after(at), format, n, k };
                let out = Output { span: out, stride: n, bias: None };
                if few {
                    bench.kernels.matvec(&bench.device, w, x, tokens, out)?;
                } else {
                    bench.kernels.matmul(&bench.device, w, x, tokens, out)?;
                }
                at += matrix_bytes(format, shape);
            }
        }
        Ok(())
    })?;
    let elements: u64 = shapes(work).map(|[n, k]| u64::from(n) * u64::from(k)).into_iter().sum();
    let (kernel, amount) = if few {
        ("matvec", Amount::Bytes(layers * layer_bytes(work, format)))
    } else {
        ("matmul", Amount::Operations(2 * elements * u64::from(tokens)))
    };
    let rows = if tokens == 1 { "row" } else { "rows" };
    let (kernel, variant) = (format!("{kernel}_{}", format.name()), format!("{tokens} {rows}"));
    Ok(Speed { kernel, variant, amount, milliseconds })
}

/// The cache of one layer of `kv_heads` heads in `blocks` blocks.
fn layer(work: Work, memory: Span, index: u64, cache: Cache, kv_heads: u32, blocks: u32) -> Layer {
    let plane = plane_bytes(cache, kv_heads, blocks);
    Layer {
        cache,
        keys: memory.after(2 * index * plane),
        values: memory.after((2 * index + 1) * plane),
        blocks,
        query_heads: work.hidden / HEAD,
        kv_heads,
        size: HEAD,
    }
}

fn plane_bytes(cache: Cache, kv_heads: u32, blocks: u32) -> u64 {
    cache.head_bytes(HEAD as usize) as u64 * u64::from(kv_heads) * u64::from(blocks)
}

/// Decode attention of one row, where `group` query heads share a key head, over distinct layers.
fn attend(bench: &mut Bench, work: Work, memory: Span, cache: Cache, group: u32) -> Result<Speed, HipError> {
    bench.clear()?;
    let heads = work.hidden / HEAD;
    let kv_heads = (heads / group).max(1);
    let blocks = work.context / 16;
    let layers = (work.bytes / (2 * plane_bytes(cache, kv_heads, blocks))).max(1);
    let partitions = work.context.div_ceil(64);
    let table: Vec<u32> = (0..blocks).collect();
    let rows = Rows {
        positions: bench.words(&[work.context - 1])?,
        sequences: bench.words(&[0])?,
        tables: bench.words(&table)?,
        table_stride: blocks,
        count: 1,
    };
    let (qkv, list) = (bench.empty((heads + 2 * kv_heads) as usize * HEAD as usize * 4)?, bench.words(&[0])?);
    let partials = bench.empty((heads * partitions * (HEAD + 2)) as usize * 4)?;
    let out = bench.empty((heads * HEAD) as usize * 4)?;
    let milliseconds = fastest(bench, work.runs, |bench| {
        for index in 0..layers {
            let layer = layer(work, memory, index, cache, kv_heads, blocks);
            let used = partitions;
            let operands =
                Attend { qkv, list, count: 1, partials, partitions, used, scale: 0.1, out, blocks: None };
            bench.kernels.attend(&bench.device, layer, rows, operands)?;
        }
        Ok(())
    })?;
    let amount = Amount::Bytes(layers * 2 * plane_bytes(cache, kv_heads, blocks));
    let variant = if group == 1 { "1 head a key".to_owned() } else { format!("{group} heads a key") };
    Ok(Speed { kernel: format!("attend_{}", cache.name()), variant, amount, milliseconds })
}

/// Prefill attention of a prompt's first rows.
fn prefill(bench: &mut Bench, work: Work, memory: Span, cache: Cache) -> Result<Speed, HipError> {
    bench.clear()?;
    let (heads, count) = (work.hidden / HEAD, work.rows);
    let blocks = count.div_ceil(16);
    let numbers: Vec<u32> = (0..count).collect();
    let tiles: Vec<u32> = (0..count).step_by(16).flat_map(|first| [first, (count - first).min(16)]).collect();
    let rows = Rows {
        positions: bench.words(&numbers)?,
        sequences: bench.words(&vec![0; count as usize])?,
        tables: bench.words(&numbers[..blocks as usize])?,
        table_stride: blocks,
        count,
    };
    let operands = Prefill {
        qkv: bench.empty((3 * work.hidden * count) as usize * 4)?,
        tiles: bench.words(&tiles)?,
        count: tiles.len() as u32 / 2,
        scale: 0.1,
        out: bench.empty((work.hidden * count) as usize * 4)?,
    };
    let layer = layer(work, memory, 0, cache, heads, blocks);
    let milliseconds = fastest(bench, work.runs, |bench| {
        for _ in 0..REPEATS {
            bench.kernels.prefill(&bench.device, layer, rows, operands)?;
        }
        Ok(())
    })?;
    // Scores and values of the positions up to each row's own.
    let seen = u64::from(count) * u64::from(count + 1) / 2;
    let amount = Amount::Operations(REPEATS * seen * u64::from(work.hidden) * 4);
    Ok(Speed {
        kernel: format!("prefill_{}", cache.name()),
        variant: format!("{count} rows"),
        amount,
        milliseconds,
    })
}
