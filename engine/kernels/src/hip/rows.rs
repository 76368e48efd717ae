//! Launches of what works on rows of activations: norms, gates, additions, gathers, copies, the largest logits.

use super::arena::Span;
use super::device::{Address, Device};
use super::error::HipError;
use super::kernels::Kernels;
use super::products::{Blocks, both, f32s};

/// Most results of [`Kernels::top_k`].
pub const TOP_K: u32 = 64;

/// Operands of [`Kernels::norm`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Norm {
    pub x: Span,
    pub add: Option<Span>,
    pub weight: Span,
    pub epsilon: f32,
    pub out: Span,
    pub blocks: Option<Blocks>,
    pub d: u32,
}

#[repr(C)]
struct NormArgs {
    x: Address,
    add: Address,
    weight: Address,
    out: Address,
    q: Address,
    scales: Address,
    d: u32,
    epsilon: f32,
}

#[repr(C)]
struct HeadNormArgs {
    x: Address,
    weight: Address,
    size: u32,
    heads: u32,
    stride: u32,
    rows: u32,
    epsilon: f32,
    zero: u32,
}

#[repr(C)]
struct SwigluArgs {
    x: Address,
    out: Address,
    q: Address,
    scales: Address,
    f: u32,
    zero: u32,
}

#[repr(C)]
struct AddArgs {
    x: Address,
    out: Address,
    count: u64,
}

#[repr(C)]
struct GatherArgs {
    x: Address,
    rows: Address,
    out: Address,
    d: u32,
    zero: u32,
}

#[repr(C)]
struct CopyBlocksArgs {
    cache: Address,
    pairs: Address,
    plane_bytes: u64,
    block_bytes: u32,
    zero: u32,
}

#[repr(C)]
struct TopKArgs {
    logits: Address,
    values: Address,
    indices: Address,
    n: u32,
    k: u32,
}

#[repr(C)]
struct CopyArgs {
    from: Address,
    to: Address,
    count: u64,
}

impl Kernels {
    /// RMS norm of rows of `d`, after the addition in place where there is one; q8 of the result where asked for.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn norm(&self, device: &Device, operands: Norm, rows: u32) -> Result<(), HipError> {
        let Norm { x, add, weight, epsilon, out, blocks, d } = operands;
        if !d.is_multiple_of(4) {
            return Err(HipError::Bounds {
                what: "a normed row",
                found: d.into(),
                needed: d.next_multiple_of(4).into(),
            });
        }
        let (q, scales) = both(blocks, rows, d, 1)?;
        let add = add.map(|add| add.at_least("what a norm adds", f32s(rows, d))).transpose()?;
        let arguments = NormArgs {
            x: x.at_least("what a norm reads", f32s(rows, d))?,
            add: add.unwrap_or(Address::NULL),
            weight: weight.at_least("a norm's weight", f32s(1, d))?,
            out: out.at_least("normed rows", f32s(rows, d))?,
            q,
            scales,
            d,
            epsilon,
        };
        // SAFETY: the operands have the kernel's shapes (norm.hip).
        unsafe { device.launch(self.norm, [rows, 1, 1], &arguments) }
    }

    /// RMS norm of `heads` heads of `size` in place, from the begin of `x` on, rows `stride` f32 apart.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn head_norm(
        &self,
        device: &Device,
        x: Span,
        weight: Span,
        [size, heads, stride, rows]: [u32; 4],
        epsilon: f32,
    ) -> Result<(), HipError> {
        let last = f32s(rows.saturating_sub(1), stride) + f32s(heads, size);
        let arguments = HeadNormArgs {
            x: x.at_least("heads", last)?,
            weight: weight.at_least("a head norm's weight", f32s(1, size))?,
            size,
            heads,
            stride,
            rows,
            epsilon,
            zero: 0,
        };
        // SAFETY: the operands have the kernel's shapes (norm.hip).
        unsafe { device.launch(self.head_norm, [(rows * heads).div_ceil(4), 1, 1], &arguments) }
    }

    /// `out = silu(x[.., ..f]) * x[.., f..]`; q8 of it where asked for.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn swiglu(
        &self,
        device: &Device,
        x: Span,
        out: Span,
        blocks: Option<Blocks>,
        [rows, f]: [u32; 2],
    ) -> Result<(), HipError> {
        let (q, scales) = both(blocks, rows, f, 1)?;
        let arguments = SwigluArgs {
            x: x.at_least("gates", f32s(rows, f) * 2)?,
            out: out.at_least("gated rows", f32s(rows, f))?,
            q,
            scales,
            f,
            zero: 0,
        };
        // SAFETY: the operands have the kernel's shapes (elementwise.hip).
        unsafe { device.launch(self.swiglu, [f.div_ceil(256), rows, 1], &arguments) }
    }

    /// `out += x` over `count` elements.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn add(&self, device: &Device, x: Span, out: Span, count: u64) -> Result<(), HipError> {
        let arguments = AddArgs {
            x: x.at_least("what is added", count * 4)?,
            out: out.at_least("sums", count * 4)?,
            count,
        };
        let blocks = u32::try_from(count.div_ceil(256)).unwrap_or(u32::MAX);
        // SAFETY: the operands have the kernel's shapes (elementwise.hip).
        unsafe { device.launch(self.add, [blocks, 1, 1], &arguments) }
    }

    /// `out[i] = x[rows[i]]`, `count` rows of `d`; the indices are rows of `x`.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn gather(
        &self,
        device: &Device,
        x: Span,
        rows: Span,
        out: Span,
        [count, d]: [u32; 2],
    ) -> Result<(), HipError> {
        let arguments = GatherArgs {
            x: x.at_least("rows to gather", f32s(1, d))?,
            rows: rows.at_least("row numbers", u64::from(count) * 4)?,
            out: out.at_least("gathered rows", f32s(count, d))?,
            d,
            zero: 0,
        };
        // SAFETY: the operands have the kernel's shapes (elementwise.hip).
        unsafe { device.launch(self.gather, [d.div_ceil(256), count, 1], &arguments) }
    }

    /// Copies blocks of the cache in all `planes`; the pairs are blocks of it.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn copy_blocks(
        &self,
        device: &Device,
        cache: Span,
        pairs: Span,
        count: u32,
        [planes, plane_bytes, block_bytes]: [u64; 3],
    ) -> Result<(), HipError> {
        let whole = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let arguments = CopyBlocksArgs {
            cache: cache.at_least("the KV cache", planes * plane_bytes)?,
            pairs: pairs.at_least("block pairs", u64::from(count) * 8)?,
            plane_bytes,
            block_bytes: whole(block_bytes),
            zero: 0,
        };
        let grid = [whole(block_bytes.div_ceil(4096)), count, whole(planes)];
        // SAFETY: the operands have the kernel's shapes (elementwise.hip).
        unsafe { device.launch(self.copy_blocks, grid, &arguments) }
    }

    /// The `k` largest of each row of `n` logits, at most [`TOP_K`].
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn top_k(
        &self,
        device: &Device,
        logits: Span,
        values: Span,
        indices: Span,
        [rows, n, k]: [u32; 3],
    ) -> Result<(), HipError> {
        let k = k.min(n).min(TOP_K);
        let arguments = TopKArgs {
            logits: logits.at_least("logits", f32s(rows, n))?,
            values: values.at_least("top values", f32s(rows, k))?,
            indices: indices.at_least("top indices", f32s(rows, k))?,
            n,
            k,
        };
        // SAFETY: the operands have the kernel's shapes (sample.hip).
        unsafe { device.launch(self.top_k, [rows, 1, 1], &arguments) }
    }

    /// Copies whole 16 bytes.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn copy(&self, device: &Device, from: Span, to: Span, bytes: u64) -> Result<(), HipError> {
        let count = bytes / 16;
        let arguments = CopyArgs {
            from: from.at_least("a copy's source", bytes)?,
            to: to.at_least("a copy's target", bytes)?,
            count,
        };
        let blocks = u32::try_from(count.div_ceil(256)).unwrap_or(u32::MAX);
        // SAFETY: the operands have the kernel's shapes (copy.hip).
        unsafe { device.launch(self.copy, [blocks, 1, 1], &arguments) }
    }
}
