//! Ops to launches: addresses are fixed here, only counts of rows are left open.
//!
//! Quantized activations have a memory of their own. The op that makes an activation writes its q8 blocks at once
//! where a product reads them next; an activation that changes in place is quantized again.

use super::compile::Launch;
use super::{Weight, shape};
use crate::hip::arena::Span;
use crate::hip::attention::Layer;
use crate::hip::products::{Matrix, Output};
use atlas_engine_core::backend::DeviceError;
use atlas_engine_core::program::{Buf, Op, Pairing, Rows, Segment, WeightId};

/// The state of a compilation.
pub struct Compiler<'a> {
    pub segment: &'a Segment,
    pub weights: &'a [Weight],
    pub offsets: Vec<usize>,
    pub scratch: Span,
    pub launches: Vec<Launch>,
    /// Whose q8 and h16 blocks are there now.
    pub quantized: Option<Buf>,
    pub halved: Option<Buf>,
}

impl Compiler<'_> {
    pub fn span(&self, buffer: Buf) -> Span {
        self.scratch.after(self.offsets[usize::from(buffer.0)] as u64 * 4)
    }

    fn columns(&self, buffer: Buf) -> u32 {
        self.segment.shape(buffer).columns as u32
    }

    pub fn expect_columns(
        &self,
        what: &'static str,
        buffer: Buf,
        expected: usize,
    ) -> Result<(), DeviceError> {
        let found = self.segment.shape(buffer).columns;
        if found == expected { Ok(()) } else { Err(shape(what, found, expected)) }
    }

    fn weight(&self, id: WeightId) -> Result<&Weight, DeviceError> {
        self.weights.get(id.0 as usize).ok_or(shape("a weight's id", id.0 as usize, self.weights.len()))
    }

    pub fn matrix(&self, id: WeightId) -> Result<(u32, &[Matrix]), DeviceError> {
        match self.weight(id)? {
            Weight::Matrix { parts, n, .. } => Ok((*n, parts)),
            Weight::Vector { .. } => Err(shape("columns of a matrix", 1, 32)),
        }
    }

    pub fn single(&self, id: WeightId) -> Result<Matrix, DeviceError> {
        match self.matrix(id)? {
            (_, [matrix]) => Ok(*matrix),
            (_, parts) => Err(shape("parts of an embedding", parts.len(), 1)),
        }
    }

    fn vector(&self, id: WeightId, length: usize) -> Result<Span, DeviceError> {
        match self.weight(id)? {
            Weight::Vector { span, n } if *n as usize == length => Ok(*span),
            Weight::Vector { n, .. } => Err(shape("a vector's length", *n as usize, length)),
            Weight::Matrix { k, .. } => Err(shape("columns of a vector", *k as usize, 1)),
        }
    }

    /// A buffer's contents are new: its blocks are not there yet.
    fn changed(&mut self, buffer: Buf) {
        for blocks in [&mut self.quantized, &mut self.halved] {
            if *blocks == Some(buffer) {
                *blocks = None;
            }
        }
    }

    /// Whether a product with integer weights reads the buffer before it changes; then its maker quantizes it.
    fn is_quantized_next(&self, buffer: Buf, after: usize) -> bool {
        for op in &self.segment.ops[after + 1..] {
            let weight = match op {
                Op::Linear { x, weight, .. } | Op::Logits { x, weight } if *x == buffer => weight,
                Op::Add { out, .. } if *out == buffer => return false,
                Op::Norm { x, add: Some(_), .. } | Op::HeadNorm { x, .. } if *x == buffer => return false,
                _ => continue,
            };
            let parts = self.matrix(*weight).map_or(&[][..], |(_, parts)| parts);
            return parts.iter().any(|part| part.format.is_integer());
        }
        false
    }

    pub fn product(
        &mut self,
        x: Buf,
        weight: WeightId,
        bias: Option<Span>,
        out: Span,
        stride: u32,
    ) -> Result<(), DeviceError> {
        let (_, parts) = self.matrix(weight)?;
        let parts = parts.to_vec();
        let rows = self.segment.shape(x).rows;
        let (source, k) = (self.span(x), self.columns(x));
        let mut first = 0;
        for w in parts {
            if w.k != k {
                return Err(shape("columns of a product's input", k as usize, w.k as usize));
            }
            if w.format.is_integer() && self.quantized != Some(x) {
                self.launches.push(Launch::Quantize { x: source, k, rows, after_tiles: false });
                self.quantized = Some(x);
            }
            if !w.format.is_integer() && self.halved != Some(x) {
                self.launches.push(Launch::Halve { x: source, k, rows });
                self.halved = Some(x);
            }
            let at = u64::from(first) * 4;
            let out = Output { span: out.after(at), stride, bias: bias.map(|bias| bias.after(at)) };
            self.launches.push(Launch::Product { w, x: source, out, rows });
            first += w.n;
        }
        Ok(())
    }

    pub fn plain(&mut self, at: usize, op: &Op) -> Result<(), DeviceError> {
        let rows_of = |buffer: Buf| self.segment.shape(buffer).rows;
        match *op {
            Op::Norm { x, add, weight, epsilon, out } => {
                let d = self.columns(x);
                self.expect_columns("columns of a norm", out, d as usize)?;
                let weight = self.vector(weight, d as usize)?;
                let rows = rows_of(x);
                let blocks = d.is_multiple_of(32) && self.is_quantized_next(out, at);
                if add.is_some() {
                    self.changed(x);
                }
                self.made(out, blocks);
                let (x, out, add) = (self.span(x), self.span(out), add.map(|add| self.span(add)));
                self.launches.push(Launch::Norm { x, add, weight, epsilon, out, blocks, d, rows });
            }
            Op::Linear { x, weight, bias, out } => {
                let (n, _) = self.matrix(weight)?;
                self.expect_columns("columns of a product", out, n as usize)?;
                let bias = bias.map(|bias| self.vector(bias, n as usize)).transpose()?;
                let to = self.span(out);
                self.changed(out);
                self.product(x, weight, bias, to, n)?;
            }
            Op::HeadNorm { x, weight, ref heads, size, epsilon } => {
                let weight = self.vector(weight, size)?;
                self.changed(x);
                let launch = Launch::HeadNorm {
                    x: self.span(x).after((heads.start * size) as u64 * 4),
                    weight,
                    size: size as u32,
                    heads: heads.len() as u32,
                    stride: self.columns(x),
                    epsilon,
                };
                self.launches.push(launch);
            }
            Op::SwiGlu { x, out } => {
                let f = self.columns(out);
                self.expect_columns("columns of a gate", x, 2 * f as usize)?;
                let rows = rows_of(out);
                let blocks = f.is_multiple_of(32) && self.is_quantized_next(out, at);
                self.made(out, blocks);
                let (x, out) = (self.span(x), self.span(out));
                self.launches.push(Launch::Swiglu { x, out, f, rows, blocks });
            }
            Op::Add { x, out } => {
                let columns = self.columns(out);
                self.expect_columns("columns of a sum", x, columns as usize)?;
                self.changed(out);
                let rows = rows_of(out);
                let (x, out) = (self.span(x), self.span(out));
                self.launches.push(Launch::Add { x, out, columns, rows });
            }
            Op::Gather { x, out } => {
                let d = self.columns(out);
                self.expect_columns("columns of gathered rows", x, d as usize)?;
                self.changed(out);
                let rows = rows_of(out);
                let (x, out) = (self.span(x), self.span(out));
                self.launches.push(Launch::Gather { x, out, d, rows });
            }
            // The caller has these.
            Op::Embed { .. }
            | Op::Logits { .. }
            | Op::Hidden { .. }
            | Op::RopeKv { .. }
            | Op::Attend { .. } => {}
        }
        Ok(())
    }

    pub fn attention(&mut self, at: usize, op: &Op, layer: Layer) -> Result<(), DeviceError> {
        match *op {
            Op::RopeKv { qkv, rope, heads, .. } => {
                let turn = self.segment.ropes.get(rope);
                let turn = turn.ok_or(shape("a rotary embedding", rope, self.segment.ropes.len()))?;
                if turn.frequencies.len() * 2 > heads.size {
                    return Err(shape("pairs of a head", turn.frequencies.len(), heads.size / 2));
                }
                self.expect_columns("columns of queries, keys and values", qkv, heads.qkv_columns())?;
                let halves = turn.pairing == Pairing::Halves;
                self.changed(qkv);
                let qkv = self.span(qkv);
                self.launches.push(Launch::RopeKv { qkv, rope, halves, layer });
            }
            Op::Attend { qkv, heads, scale, out, .. } => {
                self.expect_columns("columns of queries, keys and values", qkv, heads.qkv_columns())?;
                self.expect_columns("columns of attention", out, heads.query * heads.size)?;
                // The merge writes a head at a time, and a wave of it a block.
                let blocks = heads.size.is_multiple_of(32) && self.is_quantized_next(out, at);
                self.made(out, blocks);
                let (qkv, k) = (self.span(qkv), self.columns(out));
                let out = self.span(out);
                self.launches.push(Launch::Attend { qkv, layer, scale, out, blocks });
                if blocks {
                    let rows = Rows::Tokens;
                    self.launches.push(Launch::Quantize { x: out, k, rows, after_tiles: true });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn made(&mut self, out: Buf, blocks: bool) {
        self.changed(out);
        if blocks {
            self.quantized = Some(out);
        }
    }
}
