//! Products of a stored weight matrix with f32 rows.
//!
//! Four rows of weights are turned into f32 and multiplied with all rows of `x`, so a block is read once however many
//! rows there are. Each element of the result is summed over sixteen lanes in column order, however many rows, threads
//! or items there are: an output row does not depend on its company.

use crate::blocks::{BlockType, dequantize};
use crate::lanes::{LANES, Lanes, Level, Portable};
use crate::pool::Pool;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of weights in f32 at a time.
const PANEL: usize = 4;
/// Items a thread: enough that a thread that comes late finds something left.
const ITEMS_PER_THREAD: usize = 4;
/// Multiplications below which waking threads costs more than it saves.
const SMALL: usize = 1 << 17;

thread_local! {
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The bytes of a weight matrix do not fit its shape.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes are no {rows} x {columns} matrix of {block:?}")]
pub struct ShapeError {
    bytes: usize,
    rows: usize,
    columns: usize,
    block: BlockType,
}

/// A weight matrix as stored, row after row.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    block: BlockType,
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
}

impl<'a> Weights<'a> {
    /// A matrix over these bytes.
    ///
    /// # Errors
    /// They are too many or too few, or a row is no whole number of blocks.
    pub fn new(block: BlockType, bytes: &'a [u8], rows: usize, columns: usize) -> Result<Self, ShapeError> {
        let expected = block.row_bytes(columns).and_then(|row| row.checked_mul(rows));
        if expected != Some(bytes.len()) || columns == 0 {
            return Err(ShapeError { bytes: bytes.len(), rows, columns, block });
        }
        Ok(Self { block, bytes, rows, columns })
    }

    /// How it is stored.
    #[must_use]
    pub fn block(&self) -> BlockType {
        self.block
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

    pub(crate) fn rows_bytes(&self, rows: Range<usize>) -> &'a [u8] {
        let row = self.bytes.len() / self.rows.max(1);
        &self.bytes[rows.start * row..rows.end * row]
    }

    /// One row in f32.
    ///
    /// # Panics
    /// `index` is no row, or `out` is not as long as one.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.columns, "row {index} of {}", self.rows);
        dequantize(self.block, self.rows_bytes(index..index + 1), out);
    }

    /// `out[t] = W x[t]`.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`, `out`: `[T, rows]`.
    ///
    /// # Panics
    /// The lengths are others.
    pub fn multiply(&self, pool: &Pool, x: &[f32], out: &mut [f32]) {
        self.multiply_into(pool, x, out, self.rows, 0);
    }

    /// The same into columns `first..first + rows` of a wider result.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`, `out`: `[T, stride]`.
    ///
    /// # Panics
    /// The lengths are others, or the columns lie outside the result.
    pub fn multiply_into(&self, pool: &Pool, x: &[f32], out: &mut [f32], stride: usize, first: usize) {
        self.multiply_on(Level::detect(), pool, x, out, stride, first);
    }

    fn multiply_on(
        &self,
        level: Level,
        pool: &Pool,
        x: &[f32],
        out: &mut [f32],
        stride: usize,
        first: usize,
    ) {
        let count = x.len() / self.columns;
        assert!(x.len() == count * self.columns && out.len() == count * stride, "lengths of a product");
        assert!(first + self.rows <= stride, "columns {first} to {} of {stride}", first + self.rows);
        let out = Out { at: out.as_mut_ptr().wrapping_add(first), stride };
        let small = self.rows * self.columns * count < SMALL;
        let items = if small { 1 } else { pool.threads() * ITEMS_PER_THREAD };
        let height = self.rows.div_ceil(items).next_multiple_of(PANEL);
        pool.run(self.rows.div_ceil(height.max(1)), &|item| {
            let out = &out;
            let rows = item * height..((item + 1) * height).min(self.rows);
            WEIGHTS.with_borrow_mut(|panel| {
                panel.resize(PANEL * self.columns, 0.0);
                // SAFETY: `level` is one that this processor has. `out` has an element for each row of `x` and row
                // of weights, as asserted, and this item alone writes those of its rows.
                unsafe {
                    match level {
                        Level::Portable => portable(self, rows, x, panel, out),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => avx2(self, rows, x, panel, out),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => avx512(self, rows, x, panel, out),
                    }
                }
            });
        });
    }
}

/// The result, written to by several threads: the element of the first row of `x` and the first row of weights, and
/// the distance between rows of `x`.
struct Out {
    at: *mut f32,
    stride: usize,
}

// SAFETY: threads write disjoint elements, and nobody reads before all are done.
unsafe impl Sync for Out {}

unsafe fn portable(w: &Weights<'_>, rows: Range<usize>, x: &[f32], panel: &mut [f32], out: &Out) {
    // SAFETY: the caller's promise.
    unsafe { multiply_rows::<Portable, 2, 2>(w, rows, x, panel, out) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(w: &Weights<'_>, rows: Range<usize>, x: &[f32], panel: &mut [f32], out: &Out) {
    // SAFETY: the caller's promise. Sixteen registers hold 2 x 2 sums of two registers each.
    unsafe { multiply_rows::<crate::lanes::Avx2, 2, 2>(w, rows, x, panel, out) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(w: &Weights<'_>, rows: Range<usize>, x: &[f32], panel: &mut [f32], out: &Out) {
    // SAFETY: the caller's promise. Thirty-two registers hold 4 x 4 sums of one register each.
    unsafe { multiply_rows::<crate::lanes::Avx512, 4, 4>(w, rows, x, panel, out) };
}

/// The results of these weight rows with every row of `x`, in tiles of `R` by `T`.
///
/// # Safety
/// The processor has the instruction set of `L`; `out` is valid for all results of the whole product.
#[inline(always)]
unsafe fn multiply_rows<L: Lanes, const R: usize, const T: usize>(
    w: &Weights<'_>,
    rows: Range<usize>,
    x: &[f32],
    panel: &mut [f32],
    out: &Out,
) {
    const { assert!(PANEL.is_multiple_of(R)) };
    let columns = w.columns;
    let count = x.len() / columns;
    for first in rows.clone().step_by(PANEL) {
        let height = PANEL.min(rows.end - first);
        dequantize(w.block, w.rows_bytes(first..first + height), panel);
        let mut t = 0;
        while t + T <= count {
            for r in (0..height).step_by(R) {
                // SAFETY: the panel has PANEL rows, of which those beyond `height` hold old values that are not
                // written out; `x` has T rows from t.
                unsafe {
                    let sums = tile::<L, R, T>(&panel[r * columns..], &x[t * columns..], columns);
                    write(&sums, r, height, out.at.add(t * out.stride + first), out.stride);
                }
            }
            t += T;
        }
        while t < count {
            // SAFETY: as above.
            unsafe {
                let sums = tile::<L, PANEL, 1>(panel, &x[t * columns..], columns);
                write(&sums, 0, height, out.at.add(t * out.stride + first), out.stride);
            }
            t += 1;
        }
    }
}

/// # Safety
/// `out` is valid from the first row of the panel, with `stride` between rows of `x`.
#[inline(always)]
unsafe fn write<const R: usize, const T: usize>(
    sums: &[[f32; R]; T],
    r: usize,
    height: usize,
    out: *mut f32,
    stride: usize,
) {
    for (t, sums) in sums.iter().enumerate() {
        for (row, sum) in (r..height).zip(sums) {
            // SAFETY: the caller's promise.
            unsafe { *out.add(t * stride + row) = *sum };
        }
    }
}

/// `sums[t][r] = w[r] . x[t]`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const T: usize>(
    w: &[f32],
    x: &[f32],
    columns: usize,
) -> [[f32; R]; T] {
    assert!(w.len() >= R * columns && x.len() >= T * columns, "rows of a tile");
    let whole = columns - columns % LANES;
    let mut out = [[0.0; R]; T];
    // SAFETY: every load is of LANES floats from a column below `whole` of one of the R or T rows asserted above.
    unsafe {
        let mut sums = [[L::zero(); R]; T];
        let mut at = 0;
        while at < whole {
            let mut weights = [L::zero(); R];
            for (r, weights) in weights.iter_mut().enumerate() {
                *weights = L::load(w.as_ptr().add(r * columns + at));
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = L::load(x.as_ptr().add(t * columns + at));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = sum.add_product(weights, x);
                }
            }
            at += LANES;
        }
        for t in 0..T {
            for r in 0..R {
                out[t][r] = sums[t][r].sum();
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            for column in whole..columns {
                out[t][r] += w[r * columns + column] * x[t * columns + column];
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
