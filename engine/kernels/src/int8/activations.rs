//! Rows of activations made ready for products: int8 groups for quantized weights, f32 for weights of floats.
//!
//! A row is quantized once, whoever multiplies with it. Rows stand in tiles of 6, 4, 2 or 1; a tile is one stretch of
//! memory that a kernel reads from front to back. Tiles divide work only: the numbers of a row are those it would have
//! alone.

use super::quants::{GROUP, QUADS};
use super::{Isa, Operands};
use crate::pool::Pool;
use std::ops::Range;

/// Rows of the largest tile.
pub(super) const TILE: usize = 6;
/// Elements that a thread takes at a time.
const SMALL: usize = 1 << 13;
/// Bytes of one row's group in a tile: 32 values, and four words (see [`write_group`]).
pub(super) const GROUP_BYTES: usize = GROUP + 16;

/// The rows of the tile that begins at `first` of `count` rows.
pub(super) fn tile_rows(count: usize, first: usize) -> usize {
    match count - first {
        0 => 0,
        left @ (1 | 2 | 4) => left,
        3 => 2,
        5 => 4,
        _ => TILE,
    }
}

/// The tile that a row is in: its first row, its height.
fn tile_of(count: usize, row: usize) -> (usize, usize) {
    let mut first = row / TILE * TILE;
    loop {
        let height = tile_rows(count, first);
        if row < first + height {
            return (first, height);
        }
        first += height;
    }
}

/// Rows of activations, in memory that is used again.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    rows: usize,
    operands: Operands,
    /// `[tile][group]` of `[quad][row][4]` values, `[row]` scales, `[row]` scaled sums, `[row]` sums and `[row]` sums
    /// of the first half; as words, for their alignment.
    int8: Vec<u32>,
    /// `[tile][column][row]`.
    floats: Vec<f32>,
}

impl Activations {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for rows of this length; afterwards every row is to be written by [`Activations::writer`].
    pub fn reset(&mut self, rows: usize, columns: usize, operands: Operands) {
        (self.rows, self.columns, self.operands) = (rows, columns, operands);
        let grow = |length: usize, wanted: usize| length.max(wanted);
        if operands.int8 {
            let length = rows * columns.div_ceil(GROUP) * (GROUP_BYTES / 4);
            self.int8.resize(grow(self.int8.len(), length), 0);
        }
        if operands.floats {
            self.floats.resize(grow(self.floats.len(), rows * columns), 0.0);
        }
    }

    /// Fills it with these rows.
    ///
    /// # Shapes
    /// `x`: `[rows, columns]`.
    ///
    /// # Panics
    /// `x` is not made of whole rows, or its rows not of whole groups of 32 where int8 is asked for.
    pub fn fill(&mut self, pool: &Pool, x: &[f32], columns: usize, operands: Operands) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "whole rows");
        let rows = x.len() / columns;
        self.reset(rows, columns, operands);
        let writer = self.writer();
        let height = if x.len() < SMALL { rows } else { (SMALL / columns).max(1) };
        pool.run(rows.div_ceil(height.max(1)), &|item| {
            for row in item * height..((item + 1) * height).min(rows) {
                // SAFETY: each row belongs to one item.
                unsafe { writer.write(row, &x[row * columns..(row + 1) * columns]) };
            }
        });
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What lets several threads write rows.
    pub fn writer(&mut self) -> RowWriter {
        RowWriter {
            isa: Isa::detect(),
            rows: self.rows,
            columns: self.columns,
            int8: self.operands.int8.then_some(self.int8.as_mut_ptr()),
            floats: self.operands.floats.then_some(self.floats.as_mut_ptr()),
        }
    }

    /// What of them is there.
    pub(super) fn operands(&self) -> Operands {
        self.operands
    }

    /// The bytes of the tile that begins at row `first`.
    pub(super) fn int8_tile(&self, first: usize, rows: usize) -> &[u32] {
        let row = self.columns / GROUP * (GROUP_BYTES / 4);
        &self.int8[first * row..(first + rows) * row]
    }

    /// The floats of the tile that begins at row `first`.
    pub(super) fn float_tile(&self, first: usize, rows: usize) -> &[f32] {
        &self.floats[first * self.columns..(first + rows) * self.columns]
    }

    /// The tiles of these rows, which begin where a tile does.
    pub(super) fn tiles(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (count, mut first) = (self.rows, rows.start);
        std::iter::from_fn(move || {
            let tile = (first < rows.end).then(|| (first, tile_rows(count, first)))?;
            first += tile.1;
            Some(tile)
        })
    }
}

/// Writes rows of an [`Activations`], which it borrows without the compiler's knowledge, so that threads can share it.
pub struct RowWriter {
    isa: Isa,
    rows: usize,
    columns: usize,
    int8: Option<*mut u32>,
    floats: Option<*mut f32>,
}

// SAFETY: `write` is unsafe and asks for disjoint rows.
unsafe impl Sync for RowWriter {}
// SAFETY: as above.
unsafe impl Send for RowWriter {}

impl RowWriter {
    /// Writes one row.
    ///
    /// # Safety
    /// The activations are neither moved, reset nor read meanwhile, and no other thread writes this row.
    ///
    /// # Panics
    /// There is no such row, or it has another length.
    pub unsafe fn write(&self, index: usize, row: &[f32]) {
        assert!(index < self.rows && row.len() == self.columns, "row {index} of {}", self.rows);
        let (first, height) = tile_of(self.rows, index);
        if let Some(int8) = self.int8 {
            assert!(
                self.columns.is_multiple_of(GROUP),
                "whole groups of {GROUP}, not {} columns",
                self.columns
            );
            let at = first * (self.columns / GROUP) * (GROUP_BYTES / 4);
            // SAFETY: the tile has `height` rows of whole groups from there, within what `reset` allocated.
            unsafe { quantize(self.isa, row, int8.add(at), height, index - first) };
        }
        if let Some(floats) = self.floats {
            for (column, value) in row.iter().enumerate() {
                // SAFETY: as above, with a float a column and row.
                unsafe { *floats.add(first * self.columns + column * height + index - first) = *value };
            }
        }
    }
}

/// Quantizes a row into place `row` of a tile of `height` rows.
///
/// # Safety
/// `tile` is valid for `height * GROUP_BYTES` bytes a group.
unsafe fn quantize(isa: Isa, values: &[f32], tile: *mut u32, height: usize, row: usize) {
    // SAFETY: `isa` is what the processor has; the rest is the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => quantize_avx512(values, tile, height, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => quantize_avx2(values, tile, height, row),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => quantize_groups(values, tile, height, row),
            Isa::Portable => quantize_groups(values, tile, height, row),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn quantize_avx2(values: &[f32], tile: *mut u32, height: usize, row: usize) {
    // SAFETY: the caller's promise.
    unsafe { quantize_groups(values, tile, height, row) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_avx512(values: &[f32], tile: *mut u32, height: usize, row: usize) {
    use std::arch::x86_64::*;
    let (groups, _) = values.as_chunks::<GROUP>();
    for (index, group) in groups.iter().enumerate() {
        let mut words = [0_u32; QUADS];
        // SAFETY: a group is 32 f32, `words` 32 bytes.
        let (largest, low) = unsafe {
            let (a, b) = (_mm512_loadu_ps(group.as_ptr()), _mm512_loadu_ps(group.as_ptr().add(16)));
            let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            let inverse = _mm512_set1_ps(inverse(largest));
            let (a, b) = (
                _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)),
                _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)),
            );
            _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(a));
            _mm_storeu_si128(words.as_mut_ptr().add(4).cast(), _mm512_cvtsepi32_epi8(b));
            (largest, (_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b)))
        };
        // SAFETY: the caller's promise.
        unsafe {
            write_group(tile.add(index * height * (GROUP_BYTES / 4)), height, row, words, largest, low)
        };
    }
}

/// What values are multiplied with to lie between -127 and 127: 0 where the quotient would be no number.
#[inline(always)]
fn inverse(largest: f32) -> f32 {
    if largest > 1e-35 { 127.0 / largest } else { 0.0 }
}

/// # Safety
/// As for [`quantize`].
#[inline(always)]
unsafe fn quantize_groups(values: &[f32], tile: *mut u32, height: usize, row: usize) {
    let (groups, _) = values.as_chunks::<GROUP>();
    for (index, group) in groups.iter().enumerate() {
        let largest = group.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let inverse = inverse(largest);
        let mut bytes = [0_i8; GROUP];
        for (byte, value) in bytes.iter_mut().zip(group) {
            *byte = (value * inverse).round_ties_even() as i8;
        }
        let sum = |bytes: &[i8]| bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
        let sums = (sum(&bytes[..GROUP / 2]), sum(&bytes[GROUP / 2..]));
        let mut words = [0; QUADS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(bytes.map(i8::cast_unsigned));
        }
        // SAFETY: the caller's promise.
        unsafe {
            write_group(tile.add(index * height * (GROUP_BYTES / 4)), height, row, words, largest, sums)
        };
    }
}

/// One group of one row: values, scale, sum of the values times the scale, sum, sum of the first half.
///
/// # Safety
/// `group` is valid for `height * GROUP_BYTES` bytes.
#[inline(always)]
unsafe fn write_group(
    group: *mut u32,
    height: usize,
    row: usize,
    words: [u32; QUADS],
    largest: f32,
    (first, second): (i32, i32),
) {
    let scale = largest / 127.0;
    let sum = first + second;
    let numbers =
        [scale.to_bits(), (scale * sum as f32).to_bits(), sum.cast_unsigned(), first.cast_unsigned()];
    for (place, word) in words.into_iter().chain(numbers).enumerate() {
        // SAFETY: the caller's promise: twelve words a row.
        unsafe { *group.add(place * height + row) = word };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        for count in 0..40 {
            let mut first = 0;
            while first < count {
                let height = tile_rows(count, first);
                assert!([1, 2, 4, 6].contains(&height));
                for row in first..first + height {
                    assert_eq!(tile_of(count, row), (first, height), "{row} of {count}");
                }
                first += height;
            }
            assert_eq!(first, count);
        }
    }

    #[test]
    fn every_instruction_set_quantizes_alike_and_near() {
        let values: Vec<f32> = (0..96).map(|at| ((at * 7919 + 13) % 1000) as f32 / 50.0 - 10.0).collect();
        for values in [values, vec![0.0; 64], vec![-1e-30; 32], vec![3.0; 32]] {
            let run = |isa| {
                let mut tile = vec![0; values.len() / GROUP * (GROUP_BYTES / 4) * 2];
                // SAFETY: a tile of two rows; the processor has what `available` names.
                unsafe { quantize(isa, &values, tile.as_mut_ptr(), 2, 1) };
                tile
            };
            let expected = run(Isa::Portable);
            for isa in Isa::available() {
                assert_eq!(run(isa), expected, "{isa:?}");
            }
            for (at, value) in values.iter().enumerate() {
                let group = &expected[at / GROUP * (GROUP_BYTES / 2)..];
                let byte = group[at % GROUP / 4 * 2 + 1].to_le_bytes()[at % 4].cast_signed();
                let scale = f32::from_bits(group[QUADS * 2 + 1]);
                assert!((f32::from(byte) * scale - value).abs() <= scale * 0.5001, "{value}");
            }
        }
    }
}
