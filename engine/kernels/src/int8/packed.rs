//! A weight matrix in panels and its product with rows of activations.
//!
//! Repacking is put off where a caller wants results soon: until [`Packed::settle`] the panels of an item are made from
//! the file's rows for each use, by the same function, so results are the same bit by bit.
//!
//! Blocking: an item is a few panels. It takes the rows of activations in chunks that fit the second cache, and for
//! each chunk and panel runs the kernel over the chunk's tiles, so weights come from memory once a product, however
//! many rows it has.

use super::activations::{Activations, TILE};
use super::format::PANEL;
use super::ops::{Ops, PackError, ops};
use super::storage::{Storage, with_scratch};
use super::{Isa, Operands};
use crate::blocks::BlockType;
use crate::pool::Pool;
use crate::product::Weights;
use atlas_engine_core::backend::SharedBytes;
use std::ops::Range;

/// Bytes of activations that an item holds in the second cache.
const CHUNK_BYTES: usize = 384 << 10;
/// Bytes of weights of an item where there are few rows: less is not worth the taking.
const ITEM_BYTES: usize = 32 << 10;
/// Panels of an item where there are many rows.
const ITEM_PANELS: usize = 4;

/// Rows of one type.
struct Part {
    ops: Ops,
    storage: Storage,
    /// First row of the matrix.
    first: usize,
    rows: usize,
    /// Superblocks a row.
    superblocks: usize,
    panel_bytes: usize,
}

impl Part {
    /// Calls `work` with these panels.
    #[inline]
    fn with_panels(&self, panels: Range<usize>, work: impl FnOnce(&[u8])) {
        match &self.storage {
            Storage::Panels(pages) => {
                work(&pages[panels.start * self.panel_bytes..panels.end * self.panel_bytes]);
            }
            Storage::Rows(bytes) => with_scratch(panels.len() * self.panel_bytes, |out| {
                self.ops.pack(bytes, self.rows, panels, self.superblocks, out);
                work(out);
            }),
        }
    }
}

/// A weight matrix in panels: one or several parts, one below the other, each of its own type.
pub struct Packed {
    parts: Vec<Part>,
    rows: usize,
    columns: usize,
}

impl Packed {
    /// Whether weights of this type can be repacked.
    #[must_use]
    pub fn supports(block: BlockType) -> bool {
        ops(block, Isa::Portable).is_some()
    }

    /// Repacks these parts into one matrix; nothing of them is needed afterwards.
    ///
    /// # Errors
    /// A type without kernel, parts of different columns, or no memory.
    pub fn new(pool: &Pool, parts: &[Weights<'_>]) -> Result<Self, PackError> {
        Self::on(Isa::detect(), pool, parts)
    }

    pub(super) fn on(isa: Isa, pool: &Pool, parts: &[Weights<'_>]) -> Result<Self, PackError> {
        let mut packed = Self::empty(parts.first().map_or(0, Weights::columns));
        for weights in parts {
            let (rows, columns) = (weights.rows(), weights.columns());
            let ops = packed.ops_of(isa, weights.block(), columns)?;
            let bytes = weights.rows_bytes(0..rows);
            let pages = ops.panels(bytes, rows, columns / ops.columns, pool, &|_| {})?;
            packed.push(ops, Storage::Panels(pages), rows);
        }
        Ok(packed)
    }

    /// One matrix of these parts, (type, bytes, rows) each of so many columns, that computes with their bytes as they
    /// are until [`Packed::settle`] repacks them.
    ///
    /// # Errors
    /// A type without kernel, or bytes of another shape.
    pub fn deferred(columns: usize, parts: &[(BlockType, SharedBytes, usize)]) -> Result<Self, PackError> {
        Self::deferred_on(Isa::detect(), columns, parts)
    }

    pub(super) fn deferred_on(
        isa: Isa,
        columns: usize,
        parts: &[(BlockType, SharedBytes, usize)],
    ) -> Result<Self, PackError> {
        let mut packed = Self::empty(columns);
        for (block, bytes, rows) in parts {
            Weights::new(*block, bytes, *rows, columns).map_err(PackError::Shape)?;
            let ops = packed.ops_of(isa, *block, columns)?;
            packed.push(ops, Storage::Rows(bytes.clone()), *rows);
        }
        Ok(packed)
    }

    fn empty(columns: usize) -> Self {
        Self { parts: Vec::new(), rows: 0, columns }
    }

    /// What the next part of so many columns is computed with.
    fn ops_of(&self, isa: Isa, block: BlockType, columns: usize) -> Result<Ops, PackError> {
        if columns != self.columns {
            return Err(PackError::Columns { found: columns, expected: self.columns });
        }
        ops(block, isa).ok_or(PackError::Type { block })
    }

    fn push(&mut self, ops: Ops, storage: Storage, rows: usize) {
        let superblocks = self.columns / ops.columns;
        let panel_bytes = superblocks * ops.bytes;
        self.parts.push(Part { ops, storage, first: self.rows, rows, superblocks, panel_bytes });
        self.rows += rows;
    }

    /// Whether all of it is repacked.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.parts.iter().all(|part| matches!(part.storage, Storage::Panels(_)))
    }

    /// Repacks what has not been, and lets the bytes that it lay in go.
    ///
    /// # Errors
    /// No memory; then it computes as before.
    pub fn settle(&mut self, pool: &Pool) -> Result<(), PackError> {
        for part in &mut self.parts {
            if let Storage::Rows(bytes) = &part.storage {
                let pages =
                    part.ops.panels(bytes, part.rows, part.superblocks, pool, &|done| bytes.release(done))?;
                part.storage = Storage::Panels(pages);
            }
        }
        Ok(())
    }

    /// Rows, of all parts.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.parts.iter().map(|part| part.storage.byte_count()).sum()
    }

    /// What its products need of activations.
    #[must_use]
    pub fn operands(&self) -> Operands {
        let floats = self.parts.iter().any(|part| part.ops.floats);
        Operands { int8: self.parts.iter().any(|part| !part.ops.floats), floats }
    }

    /// One row in f32.
    ///
    /// # Panics
    /// `index` is no row, or `out` is not as long as one.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.columns, "row {index} of {}", self.rows);
        let part =
            self.parts.iter().rfind(|part| part.first <= index).expect("the first part begins at row 0");
        let row = index - part.first;
        let panel = row / PANEL;
        part.with_panels(panel..panel + 1, |panel| (part.ops.unpack)(panel, row % PANEL, out));
    }

    /// `out[t] = W x[t]`.
    ///
    /// # Shapes
    /// `out`: `[T, rows]`.
    ///
    /// # Panics
    /// `x` has rows of another length or lacks what [`Packed::operands`] says, or `out` has another length.
    pub fn multiply(&self, pool: &Pool, x: &Activations, out: &mut [f32]) {
        assert_eq!(out.len(), x.rows() * self.rows, "an output a row of both sides");
        let items = self.items(x.rows(), pool.threads());
        let out = Output(out.as_mut_ptr());
        pool.run(items.count(), &|item| {
            // SAFETY: `out` has all rows of both sides, and each item is run once.
            unsafe { self.multiply_item(&items, item, x, &out) };
        });
    }

    /// How the product with this many rows is shared out.
    #[must_use]
    pub fn items(&self, rows: usize, threads: usize) -> Items {
        let panels = |part: &Part| part.rows.div_ceil(PANEL);
        let total: usize = self.parts.iter().map(panels).sum();
        let mut items = Vec::new();
        for (part, of_part) in self.parts.iter().enumerate() {
            let wanted = if matches!(of_part.storage, Storage::Rows(_)) {
                // Made for this use alone, a panel is multiplied while it is in the second cache.
                1
            } else if rows > TILE {
                ITEM_PANELS.min(total.div_ceil(threads * 4))
            } else {
                (ITEM_BYTES / of_part.panel_bytes.max(1)).min(total.div_ceil(threads * 4))
            };
            let step = wanted.max(1);
            let count = panels(of_part);
            items.extend((0..count).step_by(step).map(|first| (part, first, step.min(count - first))));
        }
        Items(items)
    }

    /// Computes one of [`Packed::items`].
    ///
    /// # Safety
    /// `out` is valid for `[x.rows(), rows]` and nobody else reads or writes what this item computes.
    ///
    /// # Panics
    /// `x` has rows of another length, or lacks what [`Packed::operands`] says.
    pub unsafe fn multiply_item(&self, items: &Items, item: usize, x: &Activations, out: &Output) {
        let (part, first, panels) = items.0[item];
        let part = &self.parts[part];
        let has = x.operands();
        assert_eq!(x.columns(), self.columns, "columns of activations and weights");
        assert!(
            if part.ops.floats { has.floats } else { has.int8 },
            "activations are made for these weights"
        );
        part.with_panels(first..first + panels, |weights| {
            // SAFETY: the caller's promise.
            unsafe { self.multiply_panels(part, first, weights, x, out) };
        });
    }

    /// # Safety
    /// As for [`Packed::multiply_item`], of which `weights` are the panels from `first` on.
    unsafe fn multiply_panels(
        &self,
        part: &Part,
        first: usize,
        weights: &[u8],
        x: &Activations,
        out: &Output,
    ) {
        let row_bytes = if part.ops.floats { self.columns * 4 } else { self.columns * 3 / 2 };
        let chunk = (CHUNK_BYTES / row_bytes / TILE).max(1) * TILE;
        for start in (0..x.rows()).step_by(chunk) {
            let rows = start..(start + chunk).min(x.rows());
            for (panel, weights) in (first..).zip(weights.chunks_exact(part.panel_bytes)) {
                let height = PANEL.min(part.rows - panel * PANEL);
                for (row, count) in x.tiles(rows.clone()) {
                    let tile = if part.ops.floats {
                        x.float_tile(row, count).as_ptr().cast()
                    } else {
                        x.int8_tile(row, count).as_ptr()
                    };
                    let mut sums = [[0.0; PANEL]; TILE];
                    // SAFETY: the panel is whole, the tile has its rows, and `ops` chose a kernel of this
                    // processor.
                    unsafe { (part.ops.kernel)(weights.as_ptr(), part.superblocks, tile, count, &mut sums) };
                    for (t, sums) in sums.iter().take(count).enumerate() {
                        let at = (row + t) * self.rows + part.first + panel * PANEL;
                        // SAFETY: the caller's promise.
                        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), out.0.add(at), height) };
                    }
                }
            }
        }
    }
}

/// A product shared out: which panels of which part each item has.
#[derive(Debug, Clone)]
pub struct Items(Vec<(usize, usize, usize)>);

impl Items {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// A result that several threads write to.
pub struct Output(*mut f32);

impl Output {
    /// Over this memory, which is to outlive it.
    #[must_use]
    pub fn new(out: *mut f32) -> Self {
        Self(out)
    }
}

// SAFETY: whoever writes through it promises to write alone.
unsafe impl Sync for Output {}
