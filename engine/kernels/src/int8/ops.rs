//! What each type of weights is computed with, and how its panels are made.

use super::activations::TILE;
use super::floats::{self, Bf16, F16, F32, Float};
use super::format::{Format, PANEL, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, with_format};
use super::quants::GROUP;
use super::{Isa, pack, portable};
use crate::blocks::BlockType;
use crate::pages::Pages;
use crate::pool::Pool;
use crate::product::ShapeError;
use std::io;
use std::ops::Range;

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

/// Bytes that are repacked before those that they came from are let go: what a large weight takes twice.
const AT_ONCE: usize = 16 << 20;

/// How one type is laid out and computed with.
#[derive(Clone, Copy)]
pub(super) struct Ops {
    pub(super) kernel: Kernel,
    pack: pack::Pack,
    pub(super) unpack: fn(&[u8], usize, &mut [f32]),
    /// Columns a superblock.
    pub(super) columns: usize,
    /// Bytes of a superblock of a panel.
    pub(super) bytes: usize,
    /// Whether it is a type of floats.
    pub(super) floats: bool,
}

fn quantized<F: Format>(isa: Isa) -> Ops {
    let (kernel, pack): (Kernel, pack::Pack) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => (super::avx512::multiply::<F>, pack::pack_avx512::<F>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (super::avx2::multiply::<F>, pack::pack_avx2::<F>),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => (super::neon::multiply::<F>, pack::pack::<F>),
        Isa::Portable => (portable::multiply::<F>, pack::pack::<F>),
    };
    let (columns, bytes) = (F::GROUPS * GROUP, F::SUPERBLOCK_BYTES);
    Ops { kernel, pack, unpack: pack::unpack::<F>, columns, bytes, floats: false }
}

fn of_floats<F: Float>(isa: Isa) -> Ops {
    let (kernel, pack): (Kernel, pack::Pack) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => (floats::avx512::<F>, pack::pack_floats_avx512::<F>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (floats::avx2::<F>, pack::pack_floats::<F>),
        // The compiler makes NEON of it, which every such processor has.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => (floats::portable::<F>, pack::pack_floats::<F>),
        Isa::Portable => (floats::portable::<F>, pack::pack_floats::<F>),
    };
    Ops { kernel, pack, unpack: pack::unpack_floats::<F>, columns: 1, bytes: PANEL * F::BYTES, floats: true }
}

/// How this type is computed with on this instruction set; `None` where there is no kernel.
pub(super) fn ops(block: BlockType, isa: Isa) -> Option<Ops> {
    match block {
        BlockType::F16 => Some(of_floats::<F16>(isa)),
        BlockType::Bf16 => Some(of_floats::<Bf16>(isa)),
        BlockType::F32 => Some(of_floats::<F32>(isa)),
        block => with_format!(block, quantized(isa)),
    }
}

impl Ops {
    /// Makes panels from the bytes of `rows` rows; `out` is that many whole panels of zeros.
    pub(super) fn pack(
        &self,
        bytes: &[u8],
        rows: usize,
        panels: Range<usize>,
        superblocks: usize,
        out: &mut [u8],
    ) {
        let row_bytes = bytes.len() / rows;
        for (panel, out) in panels.zip(out.chunks_exact_mut(superblocks * self.bytes)) {
            let (first, end) = (panel * PANEL, ((panel + 1) * PANEL).min(rows));
            // SAFETY: they were chosen for an instruction set that this processor has.
            unsafe { (self.pack)(&bytes[first * row_bytes..end * row_bytes], superblocks, out) };
        }
    }

    /// All panels, made by all threads. `done` hears from time to time which bytes will not be read again.
    pub(super) fn panels(
        &self,
        bytes: &[u8],
        rows: usize,
        superblocks: usize,
        pool: &Pool,
        done: &dyn Fn(Range<usize>),
    ) -> Result<Pages, PackError> {
        let (count, panel_bytes) = (rows.div_ceil(PANEL), superblocks * self.bytes);
        let length = count * panel_bytes;
        let mut pages = Pages::new(length).map_err(|source| PackError::Memory { bytes: length, source })?;
        let out = Shared(pages.as_mut_ptr());
        let at_once = (AT_ONCE / panel_bytes.max(1)).max(1);
        for first in (0..count).step_by(at_once) {
            let end = (first + at_once).min(count);
            pool.run(end - first, &|index| {
                let (out, panel) = (&out, first + index);
                // SAFETY: each item has a panel of its own, all within the pages.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(out.0.add(panel * panel_bytes), panel_bytes) };
                self.pack(bytes, rows, panel..panel + 1, superblocks, out);
            });
            let row_bytes = bytes.len() / rows;
            done(first * PANEL * row_bytes..(end * PANEL).min(rows) * row_bytes);
        }
        Ok(pages)
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
    /// Bytes of a part that are another matrix's.
    #[error("a part's bytes do not fit its shape")]
    Shape(#[source] ShapeError),
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

/// Memory that is filled by several threads.
struct Shared(*mut u8);

// SAFETY: each item writes its own panel.
unsafe impl Sync for Shared {}
