//! Weights of floats (F16, BF16, F32), interleaved by 32 rows, with f32 activations.
//!
//! A column of a panel is `[32 rows]`; each element of a result is one chain of fused multiply-adds over ascending
//! columns, on every instruction set.

use super::activations::TILE;
use super::format::PANEL;
#[cfg(target_arch = "x86_64")]
use super::quants::LANES;
use crate::blocks::half;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A type of floats.
pub(super) trait Float {
    /// Bytes an element.
    const BYTES: usize;

    /// The element at these bytes.
    fn read(bytes: &[u8]) -> f32;

    /// Sixteen of them.
    ///
    /// # Safety
    /// AVX-512 F; the bytes are readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide(at: *const u8) -> __m512;

    /// Eight of them.
    ///
    /// # Safety
    /// AVX2 and F16C; the bytes are readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn narrow(at: *const u8) -> __m256;
}

pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct F32;

impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        half(bytes, 0)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
}

impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

/// See [`super::ops::Kernel`]; `columns` takes the place of superblocks, and `x` is `[column][row]`.
///
/// # Safety
/// As there.
pub(super) unsafe fn portable<F: Float>(
    panel: *const u8,
    columns: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    let (panel, x) = unsafe {
        (
            std::slice::from_raw_parts(panel, columns * PANEL * F::BYTES),
            std::slice::from_raw_parts(x.cast::<f32>(), columns * height),
        )
    };
    for (t, out) in out.iter_mut().take(height).enumerate() {
        for (column, x) in panel.chunks_exact(PANEL * F::BYTES).zip(x.chunks_exact(height)) {
            for (weight, out) in column.chunks_exact(F::BYTES).zip(out.iter_mut()) {
                *out = F::read(weight).mul_add(x[t], *out);
            }
        }
    }
}

/// # Safety
/// As for [`portable`], and AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2<F: Float>(
    panel: *const u8,
    columns: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut row = 0;
        while row + 2 <= height {
            narrow_rows::<F, 2>(panel, columns, x.add(row).cast(), height, &mut out[row..]);
            row += 2;
        }
        if row < height {
            narrow_rows::<F, 1>(panel, columns, x.add(row).cast(), height, &mut out[row..]);
        }
    }
}

/// # Safety
/// As for [`avx2`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn narrow_rows<F: Float, const T: usize>(
    panel: *const u8,
    columns: usize,
    x: *const f32,
    height: usize,
    out: &mut [[f32; PANEL]],
) {
    // SAFETY: every address lies in a column of the panel or of the tile.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); PANEL / 8]; T];
        for (sums, out) in sums.iter_mut().zip(out.iter()) {
            for (eight, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_loadu_ps(out.as_ptr().add(eight * 8));
            }
        }
        for column in 0..columns {
            let at = panel.add(column * PANEL * F::BYTES);
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(x.add(column * height + t).read());
                for (eight, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(F::narrow(at.add(eight * 8 * F::BYTES)), x, *sum);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            for (eight, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(eight * 8), *sum);
            }
        }
    }
}

/// # Safety
/// As for [`portable`], and AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn avx512<F: Float>(
    panel: *const u8,
    columns: usize,
    x: *const u32,
    height: usize,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match height {
            1 => wide_rows::<F, 1>(panel, columns, x.cast(), out),
            2 => wide_rows::<F, 2>(panel, columns, x.cast(), out),
            4 => wide_rows::<F, 4>(panel, columns, x.cast(), out),
            _ => wide_rows::<F, TILE>(panel, columns, x.cast(), out),
        }
    }
}

/// # Safety
/// As for [`avx512`]; the tile has `T` rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn wide_rows<F: Float, const T: usize>(
    panel: *const u8,
    columns: usize,
    x: *const f32,
    out: &mut [[f32; PANEL]; TILE],
) {
    // SAFETY: every address lies in a column of the panel or of the tile.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; T];
        for (sums, out) in sums.iter_mut().zip(out.iter()) {
            *sums = [_mm512_loadu_ps(out.as_ptr()), _mm512_loadu_ps(out.as_ptr().add(LANES))];
        }
        for column in 0..columns {
            let at = panel.add(column * PANEL * F::BYTES);
            if T <= 4 {
                for line in 0..PANEL * F::BYTES / 64 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048 + line * 64).cast());
                }
            }
            let weights = [F::wide(at), F::wide(at.add(LANES * F::BYTES))];
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(x.add(column * T + t).read());
                sums[0] = _mm512_fmadd_ps(weights[0], x, sums[0]);
                sums[1] = _mm512_fmadd_ps(weights[1], x, sums[1]);
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(LANES), sums[1]);
        }
    }
}
