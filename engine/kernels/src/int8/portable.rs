//! The product of a panel with a tile in plain Rust: the reference that the others equal bit by bit.

use super::activations::{GROUP_BYTES, TILE};
use super::format::{Format, PANEL};
use super::quants::{GROUP, LANES, QUADS, Quants};
use super::scales::{ScaleLayout, Scales};

/// See [`super::ops::Kernel`].
///
/// # Safety
/// As there.
pub(super) unsafe fn multiply<F: Format>(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    let (panel, x) = unsafe {
        (
            std::slice::from_raw_parts(panel, superblocks * F::SUPERBLOCK_BYTES),
            std::slice::from_raw_parts(x, superblocks * F::GROUPS * height * (GROUP_BYTES / 4)),
        )
    };
    let mut scales = Scales::ZERO;
    for (row, out) in out.iter_mut().take(height).enumerate() {
        for (index, superblock) in panel.chunks_exact(F::SUPERBLOCK_BYTES).enumerate() {
            for (half, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                F::Scales::unpack(&superblock[half * F::Scales::BYTES..][..F::Scales::BYTES], &mut scales);
                for group in 0..F::GROUPS {
                    let values = &superblock[F::SCALE_BYTES + group * F::GROUP_BYTES..];
                    let x = &x[(index * F::GROUPS + group) * height * (GROUP_BYTES / 4)..];
                    add_group::<F>(
                        &values[half * F::Quants::BYTES..],
                        x,
                        (row, height),
                        (&scales, group),
                        out,
                    );
                }
            }
        }
    }
}

fn add_group<F: Format>(
    values: &[u8],
    x: &[u32],
    (row, height): (usize, usize),
    (scales, group): (&Scales, usize),
    out: &mut [f32; LANES],
) {
    let word = |place: usize| x[place * height + row];
    let (scale, scaled_sum) = (f32::from_bits(word(QUADS)), f32::from_bits(word(QUADS + 1)));
    for (lane, out) in out.iter_mut().enumerate() {
        for part in 0..F::PARTS {
            let columns = GROUP / F::PARTS;
            let dot: i32 = (part * columns..(part + 1) * columns)
                .map(|column| {
                    let activation = word(column / 4).to_le_bytes()[column % 4].cast_signed();
                    (i32::from(F::Quants::value(values, lane, column)) - F::ZERO) * i32::from(activation)
                })
                .sum();
            *out = (dot as f32 * scales.factors[group * F::PARTS + part][lane]).mul_add(scale, *out);
        }
        if F::OFFSETS {
            *out = scales.offsets[group][lane].mul_add(scaled_sum, *out);
        }
    }
}
