//! The same checks in shapes that nobody chose: what tables leave out by habit.

use super::attention::{self, Case};
use super::sample::Numbers;
use super::{Bench, Check, products, rows};
use crate::hip::error::HipError;
use crate::hip::format::Format;
use crate::hip::kernels::{Cache, FEW_ROWS, HEAD_SIZES};

/// Checks products, row operations and attention in so many shapes each, which a seed decides.
pub fn check(bench: &mut Bench, count: u32, seed: u64, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let mut shapes = Numbers(seed);
    let mut tell = |check: Check| tell(Check { name: format!("{}, seed {seed}", check.name), ..check });
    for _ in 0..count {
        product(bench, &mut shapes, &mut tell)?;
        rows::check_shape(bench, [between(&mut shapes, 1, 4), 32 * between(&mut shapes, 1, 300)], &mut tell)?;
        attend(bench, &mut shapes, &mut tell)?;
    }
    Ok(())
}

fn between(shapes: &mut Numbers, low: usize, high: usize) -> usize {
    low + shapes.below(high - low + 1)
}

fn product(bench: &mut Bench, shapes: &mut Numbers, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let format = Format::ALL[shapes.below(Format::ALL.len())];
    let few = shapes.below(2) == 0;
    let tokens = if few { between(shapes, 1, FEW_ROWS as usize) } else { between(shapes, 9, 150) };
    let n = between(shapes, 1, 300);
    let k = products::columns(format, between(shapes, 1, 6));
    products::product(bench, format, [n, k, tokens], few, tell)
}

fn attend(bench: &mut Bench, shapes: &mut Numbers, tell: &mut dyn FnMut(Check)) -> Result<(), HipError> {
    let cache = [Cache::F16, Cache::Q8][shapes.below(2)];
    let tiles = shapes.below(2) == 0;
    // Decode takes every size that the cache does, prefill those that it is compiled for.
    let sizes: Vec<usize> = (1..=16)
        .map(|sixteens| sixteens * 16)
        .filter(|size| cache.takes(*size) && (!tiles || HEAD_SIZES.contains(size)))
        .collect();
    let last = [between(shapes, 0, 260), between(shapes, 0, 260)];
    let most = if tiles { 40 } else { 3 };
    let rows = last.map(|last| between(shapes, 1, most.min(last + 1)));
    let case = Case {
        cache,
        size: sizes[shapes.below(sizes.len())],
        kv_heads: between(shapes, 1, 3),
        group: between(shapes, 1, 9),
        last,
        rows,
    };
    attention::attend(bench, case, tiles, tell)
}
