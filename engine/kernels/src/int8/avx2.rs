//! The product of a panel with a tile by AVX2: eight rows of weights at a time, two rows of the tile.
//!
//! Bytes are multiplied in pairs into 16 bits, which hold the sum of two products of values up to 128 by 127.

use super::activations::{GROUP_BYTES, TILE};
use super::format::{Format, PANEL};
use super::quants::{LANES, Quants};
use super::scales::{ScaleLayout, Scales};
use std::arch::x86_64::*;

/// Rows a register.
const EIGHT: usize = 8;

/// See [`super::ops::Kernel`].
///
/// # Safety
/// As there, and AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Format>(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut row = 0;
        while row + 2 <= height {
            rows::<F, 2>(panel, superblocks, x.add(row), height, &mut out[row..]);
            row += 2;
        }
        if row < height {
            rows::<F, 1>(panel, superblocks, x.add(row), height, &mut out[row..]);
        }
    }
}

/// `T` rows of a tile of `height`, of which `x` is the first one's first quad.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn rows<F: Format, const T: usize>(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]],
) {
    // SAFETY: every address lies in a superblock of the panel or in a group of the tile.
    unsafe {
        let mut scales = Scales::ZERO;
        let mut sums = [[_mm256_setzero_ps(); T]; PANEL / EIGHT];
        for (t, out) in out.iter().take(T).enumerate() {
            for (eight, sums) in sums.iter_mut().enumerate() {
                sums[t] = _mm256_loadu_ps(out.as_ptr().add(eight * EIGHT));
            }
        }
        for superblock in 0..superblocks {
            let at = panel.add(superblock * F::SUPERBLOCK_BYTES);
            for half in 0..2 {
                let header = at.add(half * F::Scales::BYTES);
                F::Scales::unpack(std::slice::from_raw_parts(header, F::Scales::BYTES), &mut scales);
                let values = at.add(F::SCALE_BYTES + half * F::Quants::BYTES);
                for upper in 0..2 {
                    let sums = &mut sums[half * 2 + upper];
                    for group in 0..F::GROUPS {
                        let x = x.add((superblock * F::GROUPS + group) * height * (GROUP_BYTES / 4));
                        let values = values.add(group * F::GROUP_BYTES + upper * 32);
                        add_group::<F, T>(values, x, height, &scales, (group, upper * EIGHT), sums);
                    }
                }
            }
        }
        for (t, out) in out.iter_mut().take(T).enumerate() {
            for (eight, sums) in sums.iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(eight * EIGHT), sums[t]);
            }
        }
    }
}

/// Adds one group of eight rows.
///
/// # Safety
/// As for [`multiply`]; `lane` is 0 or 8.
#[inline(always)]
unsafe fn add_group<F: Format, const T: usize>(
    values: *const u8,
    x: *const u32,
    height: usize,
    scales: &Scales,
    (group, lane): (usize, usize),
    sums: &mut [__m256; T],
) {
    debug_assert!(lane + EIGHT <= LANES);
    // SAFETY: the caller's promise.
    unsafe {
        let word = |place: usize, t: usize| x.add(place * height + t).read().cast_signed();
        let float = |place: usize, t: usize| _mm256_set1_ps(f32::from_bits(word(place, t).cast_unsigned()));
        let load = |lanes: &[f32; LANES]| _mm256_loadu_ps(lanes.as_ptr().add(lane));
        let mut dots = [_mm256_setzero_si256(); T];
        // Signed values need no zero point taken off.
        let zero = if F::Quants::SIGNED { 0 } else { -F::ZERO };
        macro_rules! quads {
            ($($quad:literal),*) => { $(
                let weights = F::Quants::narrow::<$quad>(values);
                for (t, dots) in dots.iter_mut().enumerate() {
                    *dots = _mm256_add_epi32(*dots, dot(F::Quants::SIGNED, weights, word($quad, t)));
                }
            )* };
        }
        if F::PARTS == 1 {
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = _mm256_set1_epi32(word(10, t).wrapping_mul(zero));
            }
            quads!(0, 1, 2, 3, 4, 5, 6, 7);
            add(&dots, load(&scales.factors[group]), |t| float(8, t), sums);
        } else {
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = _mm256_set1_epi32(word(11, t).wrapping_mul(zero));
            }
            quads!(0, 1, 2, 3);
            add(&dots, load(&scales.factors[group * 2]), |t| float(8, t), sums);
            for (t, dots) in dots.iter_mut().enumerate() {
                *dots = _mm256_set1_epi32(word(10, t).wrapping_sub(word(11, t)).wrapping_mul(zero));
            }
            quads!(4, 5, 6, 7);
            add(&dots, load(&scales.factors[group * 2 + 1]), |t| float(8, t), sums);
        }
        if F::OFFSETS {
            let offset = load(&scales.offsets[group]);
            for (t, sums) in sums.iter_mut().enumerate() {
                *sums = _mm256_fmadd_ps(offset, float(9, t), *sums);
            }
        }
    }
}

/// Eight dot products of four bytes.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn dot(signed: bool, weights: __m256i, quad: i32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let quad = _mm256_set1_epi32(quad);
        let pairs = if signed {
            _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights))
        } else {
            _mm256_maddubs_epi16(weights, quad)
        };
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }
}

/// `sums += dots * factor * scale`.
///
/// # Safety
/// AVX2 and FMA.
#[inline(always)]
unsafe fn add<const T: usize>(
    dots: &[__m256i; T],
    factor: __m256,
    scale: impl Fn(usize) -> __m256,
    sums: &mut [__m256; T],
) {
    for (t, (dots, sums)) in dots.iter().zip(sums).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let product = _mm256_mul_ps(_mm256_cvtepi32_ps(*dots), factor);
            *sums = _mm256_fmadd_ps(product, scale(t), *sums);
        }
    }
}
