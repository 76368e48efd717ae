//! From ggml's rows of blocks to panels, and from a panel back to one row.

use super::floats::Float;
use super::format::{Format, PANEL};
use super::quants::{GROUP, LANES, Quants};
use super::scales::{ScaleLayout, Scales};
use std::ops::Range;

/// Fills one panel from its rows, of which there may be fewer than 32: the others are zero.
///
/// # Shapes
/// `rows`: whole rows of so many superblocks (or columns, where they are floats); `out`: the panel, zero before.
///
/// # Safety
/// The processor has the function's instruction set.
pub(super) type Pack = unsafe fn(rows: &[u8], superblocks: usize, out: &mut [u8]);

/// The same as [`pack`], vectorised for AVX-512: loading a model is mostly this.
///
/// # Safety
/// AVX2 and AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_avx512<F: Format>(rows: &[u8], superblocks: usize, out: &mut [u8]) {
    pack::<F>(rows, superblocks, out);
}

/// The same for AVX2.
///
/// # Safety
/// AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack_avx2<F: Format>(rows: &[u8], superblocks: usize, out: &mut [u8]) {
    pack::<F>(rows, superblocks, out);
}

/// See [`Pack`].
#[inline(always)]
pub(super) fn pack<F: Format>(rows: &[u8], superblocks: usize, out: &mut [u8]) {
    let row_bytes = superblocks * F::BLOCK;
    let count = rows.len() / row_bytes;
    for (index, out) in out.chunks_exact_mut(F::SUPERBLOCK_BYTES).enumerate() {
        let (headers, values) = out.split_at_mut(F::SCALE_BYTES);
        for (half, header) in headers.chunks_exact_mut(F::Scales::BYTES).enumerate() {
            let lanes = LANES.min(count.saturating_sub(half * LANES));
            let block =
                |lane: usize| &rows[(half * LANES + lane) * row_bytes + index * F::BLOCK..][..F::BLOCK];
            for lane in 0..lanes {
                F::Scales::pack(block(lane), lane, header);
            }
            let mut group_rows = [[0_u8; GROUP]; LANES];
            for group in 0..F::GROUPS {
                for (lane, row) in group_rows.iter_mut().take(lanes).enumerate() {
                    *row = F::group(block(lane), group);
                }
                let at = group * F::GROUP_BYTES + half * F::Quants::BYTES;
                F::Quants::pack(&group_rows, &mut values[at..at + F::Quants::BYTES]);
            }
        }
    }
}

/// Row `row` of a panel in f32.
pub(super) fn unpack<F: Format>(panel: &[u8], row: usize, out: &mut [f32]) {
    let (half, lane) = (row / LANES, row % LANES);
    let mut scales = Scales::ZERO;
    let superblocks = panel.chunks_exact(F::SUPERBLOCK_BYTES).zip(out.chunks_exact_mut(F::GROUPS * GROUP));
    for (superblock, out) in superblocks {
        F::Scales::unpack(&superblock[half * F::Scales::BYTES..][..F::Scales::BYTES], &mut scales);
        for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let values = &superblock[F::SCALE_BYTES + group * F::GROUP_BYTES + half * F::Quants::BYTES..];
            for (column, out) in out.iter_mut().enumerate() {
                let value = i32::from(F::Quants::value(values, lane, column)) - F::ZERO;
                let factor = scales.factors[group * F::PARTS + column / (GROUP / F::PARTS)][lane];
                *out = value as f32 * factor + if F::OFFSETS { scales.offsets[group][lane] } else { 0.0 };
            }
        }
    }
}

/// Columns that are turned at once, so that reads and writes stay in the first cache.
const TURNED: usize = 32;

/// As [`pack`], for a type of floats.
pub(super) fn pack_floats<F: Float>(rows: &[u8], columns: usize, out: &mut [u8]) {
    turn::<F>(rows, columns, 0..columns, out);
}

/// Puts these columns of the rows in their places.
#[inline(always)]
fn turn<F: Float>(rows: &[u8], columns: usize, turned: Range<usize>, out: &mut [u8]) {
    let row_bytes = columns * F::BYTES;
    for first in turned.clone().step_by(TURNED) {
        let last = (first + TURNED).min(turned.end);
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            for column in first..last {
                out[(column * PANEL + lane) * F::BYTES..][..F::BYTES]
                    .copy_from_slice(&row[column * F::BYTES..][..F::BYTES]);
            }
        }
    }
}

/// The same for AVX-512: 32 rows by 32 columns of two bytes at a time.
///
/// # Safety
/// AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_floats_avx512<F: Float>(rows: &[u8], columns: usize, out: &mut [u8]) {
    let row_bytes = columns * F::BYTES;
    let whole = if F::BYTES == 2 && rows.len() == PANEL * row_bytes { columns / TURNED * TURNED } else { 0 };
    assert!(out.len() >= PANEL * row_bytes, "a panel of {columns} columns in {} bytes", out.len());
    for first in (0..whole).step_by(TURNED) {
        // SAFETY: 32 rows have 32 columns of two bytes from there, and the panel room for them.
        unsafe {
            turn_words(rows.as_ptr().add(first * 2), row_bytes, out.as_mut_ptr().add(first * PANEL * 2))
        };
    }
    turn::<F>(rows, columns, whole..columns, out);
}

/// Exchanges rows and columns of 32 by 32 words: blocks of 16 by 16 first, then those inside them, down to single words.
///
/// # Safety
/// AVX-512 F and BW; 64 readable bytes at every multiple of `row_bytes` below 32, and 2048 writable bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_words(rows: *const u8, row_bytes: usize, out: *mut u8) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let mut words = [_mm512_setzero_si512(); PANEL];
        for (lane, words) in words.iter_mut().enumerate() {
            *words = _mm512_loadu_si512(rows.add(lane * row_bytes).cast());
        }
        macro_rules! exchange {
            ($($distance:literal),*) => { $({
                const LOW: [u16; 32] = exchanged($distance, 0);
                const HIGH: [u16; 32] = exchanged($distance, $distance);
                let low = _mm512_loadu_si512(LOW.as_ptr().cast());
                let high = _mm512_loadu_si512(HIGH.as_ptr().cast());
                for index in 0..PANEL {
                    if index & $distance == 0 {
                        let (a, b) = (words[index], words[index + $distance]);
                        words[index] = _mm512_permutex2var_epi16(a, low, b);
                        words[index + $distance] = _mm512_permutex2var_epi16(a, high, b);
                    }
                }
            })* };
        }
        exchange!(16, 8, 4, 2, 1);
        for (column, words) in words.into_iter().enumerate() {
            _mm512_storeu_si512(out.add(column * 64).cast(), words);
        }
    }
}

/// Which words of two registers (the second one's from 32 on) are put together where blocks `distance` wide change
/// places: those that begin at `from`, of the first register at the places of the first block and of the second one
/// at the others.
#[cfg(target_arch = "x86_64")]
const fn exchanged(distance: usize, from: usize) -> [u16; 32] {
    let mut places = [0; 32];
    let mut at = 0;
    while at < 32 {
        let second = at & distance != 0;
        let first = at & !distance;
        places[at] = (first + from + if second { 32 } else { 0 }) as u16;
        at += 1;
    }
    places
}

/// As [`unpack`], for a type of floats.
pub(super) fn unpack_floats<F: Float>(panel: &[u8], row: usize, out: &mut [f32]) {
    for (column, out) in panel.chunks_exact(PANEL * F::BYTES).zip(out) {
        *out = F::read(&column[row * F::BYTES..]);
    }
}
