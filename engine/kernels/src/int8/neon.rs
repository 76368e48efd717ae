//! The product of a panel with a tile by NEON and its dot products of bytes: four rows of weights at a time.

use super::activations::{GROUP_BYTES, TILE};
use super::format::{Format, PANEL};
use super::quants::{LANES, Quants};
use super::scales::{ScaleLayout, Scales};
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows a register.
const FOUR: usize = 4;

/// See [`super::ops::Kernel`].
///
/// # Safety
/// As there, and NEON with dot products.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply<F: Format>(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match height {
            1 => rows::<F, 1>(panel, superblocks, x, out),
            2 => rows::<F, 2>(panel, superblocks, x, out),
            4 => rows::<F, 4>(panel, superblocks, x, out),
            _ => rows::<F, TILE>(panel, superblocks, x, out),
        }
    }
}

/// # Safety
/// As for [`multiply`]; the tile has `T` rows.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn rows<F: Format, const T: usize>(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: every address lies in a superblock of the panel or in a group of the tile.
    unsafe {
        let mut scales = Scales::ZERO;
        let mut sums = [[vdupq_n_f32(0.0); T]; PANEL / FOUR];
        for (t, out) in out.iter().take(T).enumerate() {
            for (four, sums) in sums.iter_mut().enumerate() {
                sums[t] = vld1q_f32(out.as_ptr().add(four * FOUR));
            }
        }
        for superblock in 0..superblocks {
            let at = panel.add(superblock * F::SUPERBLOCK_BYTES);
            let x = x.add(superblock * F::GROUPS * T * (GROUP_BYTES / 4));
            for half in 0..2 {
                let header = at.add(half * F::Scales::BYTES);
                F::Scales::unpack(std::slice::from_raw_parts(header, F::Scales::BYTES), &mut scales);
                let values = at.add(F::SCALE_BYTES + half * F::Quants::BYTES);
                for quarter in 0..LANES / FOUR {
                    let sums = &mut sums[half * (LANES / FOUR) + quarter];
                    for group in 0..F::GROUPS {
                        let x = x.add(group * T * (GROUP_BYTES / 4));
                        let values = values.add(group * F::GROUP_BYTES + quarter * 16);
                        add_group::<F, T>(values, x, &scales, (group, quarter * FOUR), sums);
                    }
                }
            }
        }
        for (t, out) in out.iter_mut().take(T).enumerate() {
            for (four, sums) in sums.iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(four * FOUR), sums[t]);
            }
        }
    }
}

/// Adds one group of four rows, the first of which is `lane`.
///
/// # Safety
/// As for [`rows`]; `values` are the group's, from these rows on.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_group<F: Format, const T: usize>(
    values: *const u8,
    x: *const u32,
    scales: &Scales,
    (group, lane): (usize, usize),
    sums: &mut [float32x4_t; T],
) {
    debug_assert!(lane + FOUR <= LANES);
    // SAFETY: the caller's promise.
    unsafe {
        let word = |place: usize, t: usize| x.add(place * T + t).read().cast_signed();
        let load = |lanes: &[f32; LANES]| vld1q_f32(lanes.as_ptr().add(lane));
        // Signed values need no zero point taken off.
        let zero = if F::Quants::SIGNED { 0 } else { -F::ZERO };
        let mut dots = [vdupq_n_s32(0); T];
        macro_rules! quads {
            ($($quad:literal),*) => { $(
                let weights = F::Quants::quarter::<$quad>(values);
                for (t, dots) in dots.iter_mut().enumerate() {
                    *dots = dot(*dots, weights, vreinterpretq_s8_s32(vdupq_n_s32(word($quad, t))));
                }
            )* };
        }
        if F::PARTS == 1 {
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = vdupq_n_s32(word(10, t).wrapping_mul(zero));
            }
            quads!(0, 1, 2, 3, 4, 5, 6, 7);
            add(&dots, load(&scales.factors[group]), x, sums);
        } else {
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = vdupq_n_s32(word(11, t).wrapping_mul(zero));
            }
            quads!(0, 1, 2, 3);
            add(&dots, load(&scales.factors[group * 2]), x, sums);
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = vdupq_n_s32(word(10, t).wrapping_sub(word(11, t)).wrapping_mul(zero));
            }
            quads!(4, 5, 6, 7);
            add(&dots, load(&scales.factors[group * 2 + 1]), x, sums);
        }
        if F::OFFSETS {
            let offset = load(&scales.offsets[group]);
            for (t, sums) in sums.iter_mut().enumerate() {
                let scaled_sum = f32::from_bits(x.add(9 * T + t).read());
                *sums = vfmaq_f32(*sums, offset, vdupq_n_f32(scaled_sum));
            }
        }
    }
}

/// Adds four dot products of four bytes. The intrinsic for it is not stable yet.
///
/// # Safety
/// NEON with dot products.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn dot(mut sum: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: it reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum,
            in(vreg) weights,
            in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `sums += dots * factor * scale`.
///
/// # Safety
/// NEON with dot products; `x` is a group of a tile of `T` rows.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add<const T: usize>(
    dots: &[int32x4_t; T],
    factor: float32x4_t,
    x: *const u32,
    sums: &mut [float32x4_t; T],
) {
    for (t, (dots, sums)) in dots.iter().zip(sums).enumerate() {
        // SAFETY: the caller's promise.
        let scale = f32::from_bits(unsafe { x.add(8 * T + t).read() });
        *sums = vfmaq_f32(*sums, vmulq_f32(vcvtq_f32_s32(*dots), factor), vdupq_n_f32(scale));
    }
}
