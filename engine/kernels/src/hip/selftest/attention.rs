//! Checks of the attention kernels: rotary embedding with the cache's write, then decode and prefill over the cache.

use super::sample::half_bits;
use super::{Bench, Check, worst};
use crate::blocks::{self, BlockType};
use crate::hip::arena::Span;
use crate::hip::attention::{Attend, Layer, Prefill, RopeKv, Rows};
use crate::hip::error::HipError;
use crate::hip::kernels::Cache;

const BLOCK: usize = 16;
/// Of values of magnitude 1: f32 throughout, but that q8 values become f16 on their way.
const DECODE: [f64; 2] = [2e-5, 5e-4];
/// Of values of magnitude 1: queries, weights and values rounded to f16.
const PREFILL: f64 = 4e-3;

/// Heads and positions of one check.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub cache: Cache,
    pub size: usize,
    pub kv_heads: usize,
    pub group: usize,
    /// Positions of the two sequences' last rows, and rows of each.
    pub last: [usize; 2],
    pub rows: [usize; 2],
}

pub fn check(bench: &mut Bench, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    for cache in [Cache::F16, Cache::Q8] {
        let takes = |size: usize| cache.takes(size);
        for (size, pairs, halves) in [
            (64, 32, false),
            (128, 64, true),
            (96, 32, true),
            (32, 8, false),
            (80, 40, true),
            (256, 128, true),
        ]
        .into_iter()
        .filter(|(size, ..)| takes(*size))
        {
            rope_kv(bench, cache, [size, pairs], halves, tell)?;
        }
        for (size, kv_heads, group, last, rows) in [
            (64, 3, 3, [0, 63], [1, 1]),
            (128, 2, 1, [64, 150], [1, 3]),
            (32, 1, 8, [15, 16], [2, 2]),
            (96, 1, 11, [200, 5], [1, 1]),
            (64, 2, 4, [130, 70], [4, 4]),
            (80, 2, 3, [70, 20], [1, 2]),
            (256, 2, 4, [70, 130], [2, 1]),
            (256, 1, 1, [63, 5], [1, 1]),
            // More partitions than the merging workgroup has threads.
            (32, 1, 1, [9000, 8191], [1, 1]),
        ]
        .into_iter()
        .filter(|(size, ..)| takes(*size))
        {
            attend(bench, Case { cache, size, kv_heads, group, last, rows }, false, tell)?;
        }
        for (size, kv_heads, group, last, rows) in [
            (64, 3, 3, [15, 40], [16, 9]),
            (128, 1, 2, [130, 20], [33, 21]),
            (32, 2, 1, [0, 17], [1, 18]),
            (96, 1, 5, [100, 31], [7, 32]),
            (80, 2, 2, [40, 20], [17, 5]),
            (256, 1, 3, [90, 17], [35, 18]),
            (256, 2, 2, [15, 33], [16, 2]),
        ]
        .into_iter()
        .filter(|(size, ..)| takes(*size))
        {
            attend(bench, Case { cache, size, kv_heads, group, last, rows }, true, tell)?;
        }
    }
    Ok(())
}

/// One element of a cache in its layout: `at` is block and head, then position and element.
fn cached(
    cache: Cache,
    bytes: &[u8],
    values: bool,
    size: usize,
    [head, position, element]: [usize; 3],
) -> f64 {
    let base = &bytes[head * cache.head_bytes(size)..];
    let place = if values { element * BLOCK + position } else { position * size + element };
    let half = |at: usize| {
        let mut out = [0.0];
        blocks::dequantize(BlockType::F16, &base[at..at + 2], &mut out);
        f64::from(out[0])
    };
    match cache {
        Cache::F16 => half(2 * place),
        Cache::Q8 => {
            let block = element / 32;
            let scale = if values { block * BLOCK + position } else { position * (size / 32) + block };
            f64::from(base[place] as i8) * half(BLOCK * size + 2 * scale)
        }
    }
}

fn rope_kv(
    bench: &mut Bench,
    cache: Cache,
    [size, pairs]: [usize; 2],
    halves: bool,
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    let (rows, query_heads, kv_heads, blocks) = (3, 4, 2, 3);
    bench.clear()?;
    let columns = (query_heads + 2 * kv_heads) * size;
    let x = bench.numbers.list(rows * columns);
    let turns: Vec<f32> = bench.numbers.list(rows * pairs);
    let angles: Vec<f32> = turns.iter().flat_map(|turn| [(turn * 9.0).cos(), (turn * 9.0).sin()]).collect();
    let slots = [37_u32, 4, 20];
    let bytes = cache.head_bytes(size) * kv_heads * blocks;
    let (qkv, angles_at, slots_at) = (bench.floats(&x)?, bench.floats(&angles)?, bench.words(&slots)?);
    let (keys, values) = (bench.bytes(&vec![0; bytes])?, bench.bytes(&vec![0; bytes])?);
    let layer = layer(cache, keys, values, [blocks, query_heads, kv_heads, size]);
    let operands =
        RopeKv { qkv, angles: angles_at, slots: slots_at, pairs: pairs as u32, halves, rows: rows as u32 };
    bench.kernels.rope_kv(&bench.device, layer, operands)?;
    let turned = |row: usize, head: usize, element: usize| {
        let at = |element: usize| f64::from(x[row * columns + head * size + element]);
        if head >= query_heads + kv_heads || element >= 2 * pairs {
            return at(element);
        }
        let (pair, second) =
            if halves { (element % pairs, element >= pairs) } else { (element / 2, element % 2 == 1) };
        let (a, b) = if halves { (at(pair), at(pairs + pair)) } else { (at(2 * pair), at(2 * pair + 1)) };
        let (cos, sin) =
            (f64::from(angles[2 * (row * pairs + pair)]), f64::from(angles[2 * (row * pairs + pair) + 1]));
        if second { a * sin + b * cos } else { a * cos - b * sin }
    };
    let found = bench.read_floats(qkv, rows * columns)?;
    let error = worst(&found, |at| (turned(at / columns, at % columns / size, at % size), 1.0));
    let name = format!("rope_kv_{} {size}, {pairs} pairs, halves {halves}", cache.name());
    tell(Check { name: name.clone(), error, tolerance: 1e-6 });
    let (keys, values) = (bench.read(keys, bytes)?, bench.read(values, bytes)?);
    let mut error = 0.0_f64;
    for (row, slot) in slots.iter().enumerate() {
        let (block, position) = (*slot as usize / BLOCK, *slot as usize % BLOCK);
        for head in 0..kv_heads {
            for element in 0..size {
                for (values, bytes, kind) in
                    [(false, &keys, query_heads), (true, &values, query_heads + kv_heads)]
                {
                    let place = [block * kv_heads + head, position, element];
                    let found = cached(cache, bytes, values, size, place);
                    let difference = (found - turned(row, kind + head, element)).abs();
                    error = if difference <= error { error } else { difference };
                }
            }
        }
    }
    // Magnitudes reach sqrt(2): f16 has 11 bits, a q8 step is a 127th of the largest.
    let tolerance = if cache == Cache::F16 { 8e-4 } else { 0.006 };
    tell(Check { name: format!("{name}, cache"), error, tolerance });
    Ok(())
}

fn layer(cache: Cache, keys: Span, values: Span, [blocks, query_heads, kv_heads, size]: [usize; 4]) -> Layer {
    Layer {
        cache,
        keys,
        values,
        blocks: blocks as u32,
        query_heads: query_heads as u32,
        kv_heads: kv_heads as u32,
        size: size as u32,
    }
}

/// Bytes of a cache with numbers of magnitude 1.
fn random_cache(bench: &mut Bench, cache: Cache, size: usize, heads: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..heads {
        match cache {
            Cache::F16 => {
                for _ in 0..size * BLOCK {
                    bytes.extend(half_bits(bench.numbers.next()).to_le_bytes());
                }
            }
            Cache::Q8 => {
                bytes.extend((0..size * BLOCK).map(|_| bench.numbers.below(255) as u8));
                for _ in 0..size / 32 * BLOCK {
                    bytes.extend(half_bits(bench.numbers.next() / 127.0).to_le_bytes());
                }
            }
        }
    }
    bytes
}

pub fn attend(
    bench: &mut Bench,
    case: Case,
    tiles: bool,
    tell: &mut dyn FnMut(Check),
) -> Result<(), HipError> {
    let Case { cache, size, kv_heads, group, last, rows } = case;
    bench.clear()?;
    let query_heads = kv_heads * group;
    let stride = last[0].max(last[1]) / BLOCK + 2;
    let blocks = 2 * stride;
    // Blocks in an order of their own.
    let tables: Vec<u32> = (0..blocks).map(|at| ((at * 7 + 3) % blocks) as u32).collect();
    let tables = if blocks.is_multiple_of(7) { (0..blocks as u32).rev().collect() } else { tables };
    let (keys, values) = (
        random_cache(bench, cache, size, blocks * kv_heads),
        random_cache(bench, cache, size, blocks * kv_heads),
    );
    let total = rows[0] + rows[1];
    let columns = (query_heads + 2 * kv_heads) * size;
    let qkv = bench.numbers.list(total * columns);
    let positions: Vec<u32> = (0..2)
        .flat_map(|sequence| {
            (0..rows[sequence]).map(move |row| (last[sequence] + 1 - rows[sequence] + row) as u32)
        })
        .collect();
    let sequences: Vec<u32> = (0..total).map(|row| u32::from(row >= rows[0])).collect();
    let scale = 1.0 / (size as f32).sqrt();
    let (keys_at, values_at, qkv_at) = (bench.bytes(&keys)?, bench.bytes(&values)?, bench.floats(&qkv)?);
    let on_card = Rows {
        positions: bench.words(&positions)?,
        sequences: bench.words(&sequences)?,
        tables: bench.words(&tables)?,
        table_stride: stride as u32,
        count: total as u32,
    };
    let layer = layer(cache, keys_at, values_at, [blocks, query_heads, kv_heads, size]);
    let out = bench.room(total * query_heads * size)?;
    if tiles {
        let mut list = Vec::new();
        for (first, count) in [(0, rows[0]), (rows[0], rows[1])] {
            for row in (0..count).step_by(16) {
                list.extend([(first + row) as u32, (count - row).min(16) as u32]);
            }
        }
        let operands =
            Prefill { qkv: qkv_at, tiles: bench.words(&list)?, count: list.len() as u32 / 2, scale, out };
        bench.kernels.prefill(&bench.device, layer, on_card, operands)?;
    } else {
        let list: Vec<u32> = (0..total as u32).rev().collect();
        let used = last[0].max(last[1]) / 64 + 1;
        // Room for more partitions than the step needs, and a grid that reaches beyond some rows' ends.
        let partitions = used + 1;
        let operands = Attend {
            qkv: qkv_at,
            list: bench.words(&list)?,
            count: total as u32,
            partials: bench.room(total * query_heads * partitions * (size + 2))?,
            partitions: partitions as u32,
            used: used as u32,
            scale,
            out,
            blocks: None,
        };
        bench.kernels.attend(&bench.device, layer, on_card, operands)?;
    }
    let found = bench.read_floats(out, total * query_heads * size)?;
    let mut error = 0.0_f64;
    for row in 0..total {
        let place = |position: usize, kv_head: usize, element: usize| {
            let block = tables[sequences[row] as usize * stride + position / BLOCK] as usize;
            [block * kv_heads + kv_head, position % BLOCK, element]
        };
        for head in 0..query_heads {
            let query = &qkv[row * columns + head * size..][..size];
            let score = |position: usize| {
                let key = |element| cached(cache, &keys, false, size, place(position, head / group, element));
                let dot: f64 = query.iter().enumerate().map(|(at, q)| f64::from(*q) * key(at)).sum();
                dot * f64::from(scale)
            };
            let scores: Vec<f64> = (0..=positions[row] as usize).map(score).collect();
            let most = scores.iter().fold(f64::NEG_INFINITY, |most, score| most.max(*score));
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let at = (row * query_heads + head) * size;
            let difference = worst(&found[at..at + size], |element| {
                let value = |(position, weight): (usize, &f64)| {
                    weight * cached(cache, &values, true, size, place(position, head / group, element))
                };
                (weights.iter().enumerate().map(value).sum::<f64>() / sum, 1.0)
            });
            error = if difference <= error { error } else { difference };
        }
    }
    let (kernel, tolerance) = if tiles { ("prefill", PREFILL) } else { ("attend", DECODE[cache as usize]) };
    let name = format!("{kernel}_{} {kv_heads} x {group} heads of {size}, positions {last:?}", cache.name());
    tell(Check { name, error, tolerance });
    Ok(())
}
