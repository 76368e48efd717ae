//! A repacked weight matrix and its product with rows of activations.
//!
//! Blocking: an item is a few panels. It takes the rows of activations in chunks that fit the second cache, and for
//! each chunk and panel runs the kernel over the chunk's tiles, so weights come from memory once a product, however
//! many rows it has.

use super::activations::{Activations, TILE};
use super::floats::{self, Bf16, F16, F32, Float};
use super::format::{Format, PANEL, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, with_format};
use super::quants::GROUP;
use super::{Isa, Operands, pack, portable};
use crate::blocks::BlockType;
use crate::pages::Pages;
use crate::pool::Pool;
use crate::product::Weights;
use std::io;

/// Adds the products of the rows of a panel with the rows of a tile to `sums[row of tile][row of panel]`.
///
/// # Safety
/// The panel has that many superblocks (or columns, where it holds floats), the tile that many too of `height` rows,
/// which is 1, 2, 4 or [`TILE`]; the processor has the kernel's instruction set.
pub(super) type Kernel = unsafe fn(
    panel: *const u8,
    superblocks: usize,
    x: *const u32,
    height: usize,
    sums: &mut [[f32; PANEL]; TILE],
);

/// Bytes of activations that an item holds in the second cache.
const CHUNK_BYTES: usize = 384 << 10;
/// Bytes of weights of an item where there are few rows: less is not worth the taking.
const ITEM_BYTES: usize = 32 << 10;
/// Panels of an item where there are many rows.
const ITEM_PANELS: usize = 4;

/// How one type is laid out and computed with.
#[derive(Clone, Copy)]
struct Ops {
    kernel: Kernel,
    pack: pack::Pack,
    unpack: fn(&[u8], usize, &mut [f32]),
    /// Columns a superblock.
    columns: usize,
    /// Bytes of a superblock of a panel.
    bytes: usize,
    /// Whether it is a type of floats.
    floats: bool,
}

fn quantized<F: Format>(isa: Isa) -> Ops {
    let (kernel, pack): (Kernel, pack::Pack) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => (super::avx512::multiply::<F>, pack::pack_avx512::<F>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (super::avx2::multiply::<F>, pack::pack_avx2::<F>),
        Isa::Portable => (portable::multiply::<F>, pack::pack::<F>),
    };
    let (columns, bytes) = (F::GROUPS * GROUP, F::SUPERBLOCK_BYTES);
    Ops { kernel, pack, unpack: pack::unpack::<F>, columns, bytes, floats: false }
}

fn of_floats<F: Float>(isa: Isa) -> Ops {
    let kernel: Kernel = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => floats::avx512::<F>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => floats::avx2::<F>,
        Isa::Portable => floats::portable::<F>,
    };
    let (pack, unpack) = (pack::pack_floats::<F>, pack::unpack_floats::<F>);
    Ops { kernel, pack, unpack, columns: 1, bytes: PANEL * F::BYTES, floats: true }
}

fn ops(block: BlockType, isa: Isa) -> Option<Ops> {
    match block {
        BlockType::F16 => Some(of_floats::<F16>(isa)),
        BlockType::Bf16 => Some(of_floats::<Bf16>(isa)),
        BlockType::F32 => Some(of_floats::<F32>(isa)),
        block => with_format!(block, quantized(isa)),
    }
}

/// Why weights cannot be repacked.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// There is no kernel for the type.
    #[error("there is no kernel for repacked weights of {block:?}")]
    Type {
        /// The type.
        block: BlockType,
    },
    /// Parts that are to be one matrix have rows of different lengths.
    #[error("a part has {found} columns where the first one has {expected}")]
    Columns {
        /// Of the part.
        found: usize,
        /// Of the first part.
        expected: usize,
    },
    /// There is no memory for it.
    #[error("cannot reserve {bytes} bytes for repacked weights")]
    Memory {
        /// Wanted.
        bytes: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Rows of one type.
struct Part {
    ops: Ops,
    pages: Pages,
    /// First row of the matrix.
    first: usize,
    rows: usize,
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
        let columns = parts.first().map_or(0, Weights::columns);
        let mut packed = Self { parts: Vec::with_capacity(parts.len()), rows: 0, columns };
        for weights in parts {
            let (rows, block) = (weights.rows(), weights.block());
            let ops = ops(block, isa).ok_or(PackError::Type { block })?;
            if weights.columns() != columns {
                return Err(PackError::Columns { found: weights.columns(), expected: columns });
            }
            let superblocks = columns / ops.columns;
            let panel_bytes = superblocks * ops.bytes;
            let bytes = rows.div_ceil(PANEL) * panel_bytes;
            let mut pages = Pages::new(bytes).map_err(|source| PackError::Memory { bytes, source })?;
            let out = Shared(pages.as_mut_ptr());
            pool.run(rows.div_ceil(PANEL), &|panel| {
                let out = &out;
                let source = weights.rows_bytes(panel * PANEL..((panel + 1) * PANEL).min(rows));
                // SAFETY: each item has a panel of its own, all within the pages.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(out.0.add(panel * panel_bytes), panel_bytes) };
                // SAFETY: `isa` is one that this processor has.
                unsafe { (ops.pack)(source, superblocks, out) };
            });
            packed.parts.push(Part { ops, pages, first: packed.rows, rows });
            packed.rows += rows;
        }
        Ok(packed)
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
        self.parts.iter().map(|part| part.pages.len()).sum()
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
        let (row, panel_bytes) = (index - part.first, self.panel_bytes(part));
        (part.ops.unpack)(&part.pages[row / PANEL * panel_bytes..][..panel_bytes], row % PANEL, out);
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
            let wanted = if rows > TILE {
                ITEM_PANELS.min(total.div_ceil(threads * 4))
            } else {
                (ITEM_BYTES / self.panel_bytes(of_part).max(1)).min(total.div_ceil(threads * 4))
            };
            let step = wanted.max(1);
            let count = panels(of_part);
            items.extend((0..count).step_by(step).map(|first| (part, first, step.min(count - first))));
        }
        Items(items)
    }

    fn panel_bytes(&self, part: &Part) -> usize {
        self.columns / part.ops.columns * part.ops.bytes
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
        let superblocks = self.columns / part.ops.columns;
        let panel_bytes = self.panel_bytes(part);
        let row_bytes = if part.ops.floats { self.columns * 4 } else { self.columns * 3 / 2 };
        let chunk = (CHUNK_BYTES / row_bytes / TILE).max(1) * TILE;
        for start in (0..x.rows()).step_by(chunk) {
            let rows = start..(start + chunk).min(x.rows());
            for panel in first..first + panels {
                let weights = part.pages[panel * panel_bytes..][..panel_bytes].as_ptr();
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
                    unsafe { (part.ops.kernel)(weights, superblocks, tile, count, &mut sums) };
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

/// Memory that is filled by several threads.
struct Shared(*mut u8);

// SAFETY: each item writes its own panel.
unsafe impl Sync for Shared {}
