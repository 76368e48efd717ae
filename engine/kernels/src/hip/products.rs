//! Launches of what multiplies weights, and of what prepares activations for it.

use super::arena::Span;
use super::device::{Address, Device, Kernel};
use super::error::HipError;
use super::format::Format;
use super::kernels::{Kernels, MATVEC_ROWS, MATVEC_TOKENS, MATVEC_WAVE_ROWS};

/// Activations in blocks: the elements and the scales of 32 each.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// i8 or f16 `[rows, k]`.
    pub elements: Span,
    /// `{d, d * sum}` `[rows, k / 32]`.
    pub scales: Span,
}

impl Blocks {
    /// The rows from this one on.
    fn rows_from(&self, row: u32, k: u32, element: u64) -> Self {
        let count = u64::from(row) * u64::from(k);
        Self { elements: self.elements.after(count * element), scales: self.scales.after(count / 32 * 8) }
    }
}

/// A weight matrix of one format.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its rows.
    pub bytes: Span,
    /// Their format.
    pub format: Format,
    /// How many.
    pub n: u32,
    /// Elements a row.
    pub k: u32,
}

impl Matrix {
    fn row_bytes(&self) -> Result<u32, HipError> {
        let row = self.format.row_bytes(self.k as usize).and_then(|bytes| u32::try_from(bytes).ok());
        row.ok_or(HipError::Bounds { what: "a weight's row", found: self.k.into(), needed: 32 })
    }

    fn at(&self) -> Result<(Address, u32), HipError> {
        let row_bytes = self.row_bytes()?;
        Ok((self.bytes.at_least("a weight", u64::from(row_bytes) * u64::from(self.n))?, row_bytes))
    }
}

/// Where products go: element n of row t at `t * stride + n` after the span's begin.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// f32.
    pub span: Span,
    /// f32 from row to row.
    pub stride: u32,
    /// `[n]` added, or nothing.
    pub bias: Option<Span>,
}

impl Output {
    /// The rows from this one on.
    fn rows_from(&self, row: u32) -> Self {
        Self { span: self.span.after(f32s(row, self.stride)), ..*self }
    }
}

#[repr(C)]
struct ProductArgs {
    w: Address,
    x: Address,
    scales: Address,
    bias: Address,
    out: Address,
    n: u32,
    k: u32,
    row_bytes: u32,
    tokens: u32,
    stride: u32,
    zero: u32,
}

#[repr(C)]
struct EmbedArgs {
    w: Address,
    ids: Address,
    out: Address,
    d: u32,
    row_bytes: u32,
}

#[repr(C)]
struct QuantizeArgs {
    x: Address,
    q: Address,
    scales: Address,
    k: u32,
    zero: u32,
}

pub(super) fn f32s(rows: u32, columns: u32) -> u64 {
    u64::from(rows) * u64::from(columns) * 4
}

pub(super) fn both(
    blocks: Option<Blocks>,
    rows: u32,
    k: u32,
    element: u64,
) -> Result<(Address, Address), HipError> {
    let Some(Blocks { elements, scales }) = blocks else { return Ok((Address::NULL, Address::NULL)) };
    let count = u64::from(rows) * u64::from(k);
    Ok((
        elements.at_least("activation blocks", count * element)?,
        scales.at_least("activation scales", count / 32 * 8)?,
    ))
}

impl Kernels {
    /// `out[t] = w[ids[t]]`; the ids are rows of `w`.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn embed(&self, device: &Device, w: Matrix, ids: Span, rows: u32, out: Span) -> Result<(), HipError> {
        let (at, row_bytes) = w.at()?;
        let arguments = EmbedArgs {
            w: at,
            ids: ids.at_least("token ids", u64::from(rows) * 4)?,
            out: out.at_least("embedded rows", f32s(rows, w.k))?,
            d: w.k,
            row_bytes,
        };
        // SAFETY: the operands have the kernel's shapes (embed.hip).
        unsafe { device.launch(self.of(w.format).embed, [(w.k / 32).div_ceil(64), rows, 1], &arguments) }
    }

    /// Products of few rows: `x` is q8 for integer formats, else f32. Every [`MATVEC_ROWS`] of them read the weights once.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn matvec(
        &self,
        device: &Device,
        w: Matrix,
        x: Blocks,
        tokens: u32,
        out: Output,
    ) -> Result<(), HipError> {
        let integer = w.format.is_integer();
        let element = if integer { 1 } else { 4 };
        for first in (0..tokens).step_by(MATVEC_ROWS as usize) {
            let rows = (tokens - first).min(MATVEC_ROWS);
            let (x, out) = (x.rows_from(first, w.k, element), out.rows_from(first));
            let arguments = Self::product(w, x, rows, out, element, integer)?;
            // The last variant takes the most rows.
            let variant = MATVEC_TOKENS.partition_point(|most| *most < rows);
            let kernel = self.of(w.format).matvec[variant];
            // SAFETY: the operands have the kernel's shapes (matvec.hip).
            unsafe { device.launch(kernel, [w.n.div_ceil(4 * MATVEC_WAVE_ROWS), 1, 1], &arguments)? };
        }
        Ok(())
    }

    /// Products of many rows: `x` is q8 for integer formats, else h16.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn matmul(
        &self,
        device: &Device,
        w: Matrix,
        x: Blocks,
        tokens: u32,
        out: Output,
    ) -> Result<(), HipError> {
        let element = if w.format.is_integer() { 1 } else { 2 };
        let arguments = Self::product(w, x, tokens, out, element, true)?;
        let grid = [w.n.div_ceil(128), tokens.div_ceil(64), 1];
        // SAFETY: the operands have the kernel's shapes (matmul.hip).
        unsafe { device.launch(self.of(w.format).matmul, grid, &arguments) }
    }

    fn product(
        w: Matrix,
        x: Blocks,
        tokens: u32,
        out: Output,
        element: u64,
        scaled: bool,
    ) -> Result<ProductArgs, HipError> {
        let (at, row_bytes) = w.at()?;
        let count = u64::from(tokens) * u64::from(w.k);
        let last = u64::from(tokens.saturating_sub(1)) * u64::from(out.stride) + u64::from(w.n);
        let bias = out.bias.map(|bias| bias.at_least("a bias", u64::from(w.n) * 4)).transpose()?;
        let scales =
            if scaled { x.scales.at_least("activation scales", count / 32 * 8)? } else { Address::NULL };
        Ok(ProductArgs {
            w: at,
            x: x.elements.at_least("activations", count * element)?,
            scales,
            bias: bias.unwrap_or(Address::NULL),
            out: out.span.at_least("products", last * 4)?,
            n: w.n,
            k: w.k,
            row_bytes,
            tokens,
            stride: out.stride,
            zero: 0,
        })
    }

    /// `x` f32 `[rows, k]` to q8.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn quantize_q8(
        &self,
        device: &Device,
        x: Span,
        rows: u32,
        k: u32,
        out: Blocks,
    ) -> Result<(), HipError> {
        self.quantize(device, self.quantize_q8, x, [rows, k], out, 1)
    }

    /// `x` f32 `[rows, k]` to h16.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn quantize_h16(
        &self,
        device: &Device,
        x: Span,
        rows: u32,
        k: u32,
        out: Blocks,
    ) -> Result<(), HipError> {
        self.quantize(device, self.quantize_h16, x, [rows, k], out, 2)
    }

    fn quantize(
        &self,
        device: &Device,
        kernel: Kernel,
        x: Span,
        [rows, k]: [u32; 2],
        out: Blocks,
        element: u64,
    ) -> Result<(), HipError> {
        let (q, scales) = both(Some(out), rows, k, element)?;
        let arguments = QuantizeArgs { x: x.at_least("activations", f32s(rows, k))?, q, scales, k, zero: 0 };
        // SAFETY: the operands have the kernel's shapes (quantize.hip).
        unsafe { device.launch(kernel, [k.div_ceil(256), rows, 1], &arguments) }
    }
}
