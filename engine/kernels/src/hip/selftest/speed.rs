//! What the card's memory gives, and how much of it the kernels that decoding waits for take.
//!
//! Each kernel runs over distinct weights of several times any cache's size, captured and replayed as one run, as a
//! decode step is. A share is of the copy kernel's bandwidth in the same run, not of a data sheet's.

use super::{Bench, Speed, Work};
use crate::hip::arena::{Arena, Span};
use crate::hip::attention::{Attend, Layer, Rows};
use crate::hip::card::Card;
use crate::hip::device::Device;
use crate::hip::error::HipError;
use crate::hip::format::Format;
use crate::hip::kernels::Cache;
use crate::hip::library::Library;
use crate::hip::options::Options;
use crate::hip::products::{Blocks, Matrix, Output};

/// Measures, the copy first.
///
/// # Errors
/// There is no card, not enough memory, or a call fails.
pub fn measure(options: &Options, work: Work, tell: &mut dyn FnMut(Speed)) -> Result<(), HipError> {
    let card = Card::find(&options.root)?;
    let library = Library::open(options.library.as_deref())?;
    let mut device = Device::open(library, &card.gfx_target, options.step_timeout)?;
    let mut arena = Arena::new(&mut device, 2 * work.bytes + (64 << 20))?;
    let [weights, copies] = [arena.take("weights", work.bytes)?, arena.take("copies", work.bytes)?];
    let mut bench = Bench::over(device, arena.take("the rest", 60 << 20)?)?;
    let bytes = work.bytes / 16 * 16;
    let milliseconds =
        fastest(&mut bench, work.runs, |bench| bench.kernels.copy(&bench.device, weights, copies, bytes))?;
    tell(Speed { name: "copy, read and written".to_owned(), bytes: 2 * bytes, milliseconds });
    for format in Format::ALL {
        for tokens in [1, 4] {
            tell(matvec(&mut bench, work, weights, format, tokens)?);
        }
    }
    for cache in [Cache::F16, Cache::Q8] {
        tell(attend(&mut bench, work, weights, cache)?);
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

fn matvec(
    bench: &mut Bench,
    work: Work,
    weights: Span,
    format: Format,
    tokens: u32,
) -> Result<Speed, HipError> {
    bench.clear();
    let side = work.side as usize;
    let element = if format.is_integer() { 1 } else { 4 };
    let x = Blocks {
        elements: bench.empty(tokens as usize * side * element)?,
        scales: bench.empty(tokens as usize * side / 32 * 8)?,
    };
    let out = Output { span: bench.empty(tokens as usize * side * 4)?, stride: work.side, bias: None };
    let matrix_bytes = (format.row_bytes(side).unwrap_or(0) * side) as u64;
    let count = (work.bytes / matrix_bytes).max(1);
    let milliseconds = fastest(bench, work.runs, |bench| {
        for index in 0..count {
            let bytes = weights.after(index * matrix_bytes);
            let w = Matrix { bytes, format, n: work.side, k: work.side };
            bench.kernels.matvec(&bench.device, w, x, tokens, out)?;
        }
        Ok(())
    })?;
    let name = format!("matvec_{} {side} x {side}, {tokens} rows", format.name());
    Ok(Speed { name, bytes: count * matrix_bytes, milliseconds })
}

fn attend(bench: &mut Bench, work: Work, cache_memory: Span, cache: Cache) -> Result<Speed, HipError> {
    bench.clear();
    let (heads, size) = (work.side / 128, 128_u32);
    let blocks = work.context / 16;
    let plane = cache.head_bytes(size as usize) as u64 * u64::from(heads) * u64::from(blocks);
    let layers = (work.bytes / (2 * plane)).max(1);
    let partitions = work.context.div_ceil(64);
    let table: Vec<u32> = (0..blocks).collect();
    let rows = Rows {
        positions: bench.words(&[work.context - 1])?,
        sequences: bench.words(&[0])?,
        tables: bench.words(&table)?,
        table_stride: blocks,
        count: 1,
    };
    let (qkv, list) = (bench.empty(3 * (heads * size) as usize * 4)?, bench.words(&[0])?);
    let partials = bench.empty((heads * partitions * (size + 2)) as usize * 4)?;
    let out = bench.empty((heads * size) as usize * 4)?;
    let milliseconds = fastest(bench, work.runs, |bench| {
        for index in 0..layers {
            let layer = Layer {
                cache,
                keys: cache_memory.after(2 * index * plane),
                values: cache_memory.after((2 * index + 1) * plane),
                blocks,
                query_heads: heads,
                kv_heads: heads,
                size,
            };
            let used = partitions;
            let operands =
                Attend { qkv, list, count: 1, partials, partitions, used, scale: 0.1, out, blocks: None };
            bench.kernels.attend(&bench.device, layer, rows, operands)?;
        }
        Ok(())
    })?;
    let name = format!("attend_{} {heads} heads of {size}, {} positions", cache.name(), work.context);
    Ok(Speed { name, bytes: layers * 2 * plane, milliseconds })
}
