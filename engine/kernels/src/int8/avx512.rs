//! The product of a panel with a tile by AVX-512 and its dot products of bytes (VNNI).
//!
//! Two registers of weights (32 rows, 4 columns) meet one broadcast quad of each of the tile's rows: at six rows
//! twelve integer sums and twelve f32 sums stay in registers.

use super::format::{Format, PANEL};
use super::quants::{LANES, Quants};
use super::scales::{ScaleLayout, Scales};
use super::{activations::GROUP_BYTES, activations::TILE};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// See [`super::ops::Kernel`].
///
/// # Safety
/// As there, and AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            1 => tile::<F, 1>(panel, superblocks, x.cast(), out),
            2 => tile::<F, 2>(panel, superblocks, x.cast(), out),
            4 => tile::<F, 4>(panel, superblocks, x.cast(), out),
            _ => tile::<F, TILE>(panel, superblocks, x.cast(), out),
        }
    }
}

/// # Safety
/// As for [`multiply`]; the tile has `T` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<F: Format, const T: usize>(
    panel: *const u8,
    superblocks: usize,
    x: *const u8,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: every address lies in a superblock of the panel or in a group of the tile.
    unsafe {
        // Setting them to zero first would cost as much as unpacking them.
        let mut memory = [const { MaybeUninit::<Scales>::uninit() }; 2];
        let scales: *mut Scales = memory.as_mut_ptr().cast();
        let mut sums = [[_mm512_setzero_ps(); 2]; T];
        for (sums, out) in sums.iter_mut().zip(out.iter()) {
            *sums = [_mm512_loadu_ps(out.as_ptr()), _mm512_loadu_ps(out.as_ptr().add(LANES))];
        }
        let (mut at, mut x) = (panel, x);
        for _ in 0..superblocks {
            prefetch::<T>(at, F::SCALE_BYTES);
            F::Scales::unpack_wide(at, scales);
            F::Scales::unpack_wide(at.add(F::Scales::BYTES), scales.add(1));
            at = at.add(F::SCALE_BYTES);
            for group in 0..F::GROUPS {
                prefetch::<T>(at, F::GROUP_BYTES);
                if F::PARTS == 1 {
                    let mut dots = zero_points::<F, T>(x, Columns::All);
                    quads!(F, T, at, x, dots, 0 1, 2 3, 4 5, 6 7);
                    add::<T>(x, &dots, &mut sums, factors(scales, group));
                } else {
                    let mut dots = zero_points::<F, T>(x, Columns::First);
                    quads!(F, T, at, x, dots, 0 1, 2 3);
                    add::<T>(x, &dots, &mut sums, factors(scales, group * 2));
                    let mut dots = zero_points::<F, T>(x, Columns::Second);
                    quads!(F, T, at, x, dots, 4 5, 6 7);
                    add::<T>(x, &dots, &mut sums, factors(scales, group * 2 + 1));
                }
                if F::OFFSETS {
                    let offsets =
                        [0, 1].map(|half| _mm512_load_ps(Scales::offsets_at(scales.add(half), group)));
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let sum = _mm512_set1_ps(x.add((SCALED_SUM * T + t) * 4).cast::<f32>().read());
                        for (sums, offset) in sums.iter_mut().zip(offsets) {
                            *sums = _mm512_fmadd_ps(offset, sum, *sums);
                        }
                    }
                }
                at = at.add(F::GROUP_BYTES);
                x = x.add(GROUP_BYTES * T);
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(LANES), sums[1]);
        }
    }
}

/// Bytes that a product of few rows asks memory for in advance: what one core reads while memory answers, and more,
/// because the types with much to unpack would else wait.
const AHEAD: usize = 8192;
/// Asks memory for as many bytes as are read next, so far ahead that it answers in time and so near that they stay in
/// the first cache. Scales count as much as values: eight lines of them that nobody asked for cost a superblock of the
/// K types as long as it computes.
///
/// # Safety
/// None is needed of `at`: nothing is read.
#[inline(always)]
unsafe fn prefetch<const T: usize>(at: *const u8, bytes: usize) {
    if T <= 4 {
        for line in 0..bytes / 64 {
            // SAFETY: an address that cannot be read is passed over.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line * 64).cast()) };
        }
    }
}

/// Where the numbers of a group begin, in words a row.
const SCALE: usize = 8;
const SCALED_SUM: usize = 9;
const SUM: usize = 10;
const FIRST_SUM: usize = 11;

/// Adds the products of these quads to `$dots`.
macro_rules! quads {
    ($format:ident, $t:ident, $at:ident, $x:ident, $dots:ident, $($even:literal $odd:literal),*) => {
        $(
            quads!($format, $t, $at, $x, $dots, $even);
            quads!($format, $t, $at, $x, $dots, $odd);
            // Nothing, but no sum and no load passes it. Without it the compiler unpacks all quads first, sums one row
            // after the other, and has registers for neither: half as fast for the types of several bit planes.
            for dots in &mut $dots {
                for dot in dots {
                    asm!("/* {0} */", inout(zmm_reg) *dot, options(nostack, preserves_flags));
                }
            }
        )*
    };
    ($format:ident, $t:ident, $at:ident, $x:ident, $dots:ident, $quad:literal) => {
        let weights = [
            <$format::Quants as Quants>::wide::<$quad>($at),
            <$format::Quants as Quants>::wide::<$quad>($at.add(<$format::Quants as Quants>::BYTES)),
        ];
        for (t, dots) in $dots.iter_mut().enumerate() {
            let quad = _mm512_set1_epi32($x.add(($quad * $t + t) * 4).cast::<i32>().read());
            dots[0] = _mm512_dpbusd_epi32(dots[0], weights[0], quad);
            dots[1] = _mm512_dpbusd_epi32(dots[1], weights[1], quad);
        }
    };
}
use quads;

/// What integer sums begin with: the zero point's share, negative.
///
/// # Safety
/// AVX-512 F; `x` is a group of a tile of `T` rows.
#[inline(always)]
unsafe fn zero_points<F: Format, const T: usize>(x: *const u8, columns: Columns) -> [[__m512i; 2]; T] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); 2]; T];
        if F::ZERO != 0 {
            for (t, dots) in dots.iter_mut().enumerate() {
                let sum = |word: usize| x.add((word * T + t) * 4).cast::<i32>().read();
                let sum = match columns {
                    Columns::All => sum(SUM),
                    Columns::First => sum(FIRST_SUM),
                    Columns::Second => sum(SUM).wrapping_sub(sum(FIRST_SUM)),
                };
                *dots = [_mm512_set1_epi32(sum.wrapping_mul(-F::ZERO)); 2];
            }
        }
        dots
    }
}

/// The columns of a group that share a factor.
#[derive(Clone, Copy)]
enum Columns {
    All,
    First,
    Second,
}

/// Factors of both halves.
///
/// # Safety
/// AVX-512 F; the factors of this part of both have been unpacked.
#[inline(always)]
unsafe fn factors(scales: *mut Scales, part: usize) -> [__m512; 2] {
    // SAFETY: 16 f32 at an aligned address.
    unsafe { [0, 1].map(|half| _mm512_load_ps(Scales::factors_at(scales.add(half), part))) }
}

/// `sums += dots * factor * scale`.
///
/// # Safety
/// AVX-512 F; `x` is a group of a tile of `T` rows.
#[inline(always)]
unsafe fn add<const T: usize>(
    x: *const u8,
    dots: &[[__m512i; 2]; T],
    sums: &mut [[__m512; 2]; T],
    factors: [__m512; 2],
) {
    for (t, (dots, sums)) in dots.iter().zip(sums).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm512_set1_ps(x.add((SCALE * T + t) * 4).cast::<f32>().read());
            for half in 0..2 {
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[half]), factors[half]);
                sums[half] = _mm512_fmadd_ps(product, scale, sums[half]);
            }
        }
    }
}
