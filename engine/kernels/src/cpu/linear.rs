//! Weights as loaded, and the products with them.
//!
//! Matrices are computed with by the kernels of [`crate::int8`]: panel by panel from the file's bytes at first, so that
//! a model answers as soon as it is mapped; [`Weight::settle`] repacks them and lets the bytes in the file go. Types
//! without such a kernel (Q2_K, Q3_K, NF4, AWQ4) are multiplied where they lie, and all are where exact products are
//! asked for.

use super::check::shape;
use crate::blocks::{BlockType, dequantize};
use crate::int8::{Activations, PackError, Packed};
use crate::pool::Pool;
use crate::product::Weights;
use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::{RawTensor, SharedBytes};

/// How matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    /// Repacked, quantized weights with int8 activations.
    Repacked,
    /// Where they lie, with f32 activations.
    Exact,
    /// The same with the activations of quantized weights rounded to int8 blocks first, as cards round them.
    Rounded,
}

/// A weight of one or several parts of equal columns.
pub(crate) struct Weight {
    stored: Stored,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

enum Stored {
    /// The values of a weight of one column; small, and read by every row.
    Vector(Vec<f32>),
    Packed(Packed),
    Mapped {
        parts: Vec<Part>,
        rounded: bool,
    },
}

/// A matrix of one type, as it lies in a file.
struct Part {
    block: BlockType,
    bytes: SharedBytes,
    rows: usize,
}

impl Weight {
    /// Checks the parts' types and sizes.
    pub(crate) fn load(tensors: &[RawTensor], products: Products, device: &str) -> Result<Self, DeviceError> {
        let columns = tensors.first().map_or(0, |tensor| tensor.columns);
        let parts = tensors
            .iter()
            .map(|tensor| Part::load(tensor, columns, device))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = parts.iter().map(|part| part.rows).sum();
        if rows == 0 {
            return Err(shape("rows of a weight", 0, 1));
        }
        let stored = if columns == 1 {
            Stored::Vector(values(&parts, rows))
        } else if products == Products::Repacked && parts.iter().all(|part| Packed::supports(part.block)) {
            let parts: Vec<_> =
                parts.into_iter().map(|Part { block, bytes, rows }| (block, bytes, rows)).collect();
            Stored::Packed(Packed::deferred(columns, &parts).map_err(refused)?)
        } else {
            Stored::Mapped { parts, rounded: products == Products::Rounded }
        };
        Ok(Self { stored, rows, columns })
    }

    /// Whether repacking is still to be done.
    pub(crate) fn is_put_off(&self) -> bool {
        matches!(&self.stored, Stored::Packed(packed) if !packed.is_settled())
    }

    /// Repacks it where that has been put off; no result changes.
    pub(crate) fn settle(&mut self, pool: &Pool) -> Result<(), DeviceError> {
        match &mut self.stored {
            Stored::Packed(packed) => packed.settle(pool).map_err(refused),
            Stored::Vector(_) | Stored::Mapped { .. } => Ok(()),
        }
    }

    pub(crate) fn byte_count(&self) -> u64 {
        match &self.stored {
            Stored::Vector(values) => size_of_val(&values[..]) as u64,
            Stored::Packed(packed) => packed.byte_count() as u64,
            Stored::Mapped { parts, .. } => parts.iter().map(|part| part.bytes.len() as u64).sum(),
        }
    }

    /// The values of a weight of one column.
    pub(crate) fn vector(&self) -> Option<&[f32]> {
        match &self.stored {
            Stored::Vector(values) => Some(values),
            Stored::Packed(_) | Stored::Mapped { .. } => None,
        }
    }

    /// `out[t] = W x[t]`. `activations` is memory for what the kernels make of `x`.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`, `out`: `[T, rows]`.
    pub(crate) fn multiply(&self, pool: &Pool, activations: &mut Activations, x: &[f32], out: &mut [f32]) {
        match &self.stored {
            Stored::Packed(packed) => {
                activations.fill(pool, x, self.columns, packed.operands());
                packed.multiply(pool, activations, out);
            }
            Stored::Mapped { parts, rounded } => {
                let blocks = rounded.then(|| round_to_blocks(x));
                let mut first = 0;
                for part in parts {
                    let x = blocks.as_deref().filter(|_| !part.block.takes_floats()).unwrap_or(x);
                    part.weights(self.columns).multiply_into(pool, x, out, self.rows, first);
                    first += part.rows;
                }
            }
            Stored::Vector(values) => {
                for (x, out) in x.iter().zip(out.chunks_exact_mut(self.rows)) {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = value * x;
                    }
                }
            }
        }
    }

    /// One row in f32.
    pub(crate) fn row(&self, mut index: usize, out: &mut [f32]) {
        match &self.stored {
            Stored::Packed(packed) => packed.row(index, out),
            Stored::Vector(values) => out.copy_from_slice(&values[index..=index]),
            Stored::Mapped { parts, .. } => {
                for part in parts {
                    match index.checked_sub(part.rows) {
                        None => return part.weights(self.columns).row(index, out),
                        Some(rest) => index = rest,
                    }
                }
            }
        }
    }
}

fn values(parts: &[Part], rows: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows];
    let mut rest = values.as_mut_slice();
    for part in parts {
        let (own, others) = rest.split_at_mut(part.rows);
        dequantize(part.block, &part.bytes, own);
        rest = others;
    }
    values
}

/// What int8 blocks of 32 keep of activations: `d * q` with d = max / 127 and q rounded to even.
fn round_to_blocks(x: &[f32]) -> Vec<f32> {
    let mut rounded = x.to_vec();
    for block in rounded.chunks_mut(32) {
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let (step, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
        block.iter_mut().for_each(|value| *value = step * (*value * inverse).round_ties_even());
    }
    rounded
}

/// Types and columns were checked, so only memory can be short.
fn refused(error: PackError) -> DeviceError {
    match error {
        PackError::Memory { bytes, source: _ } => {
            DeviceError::OutOfMemory { what: "a weight", needed: bytes as u64, available: 0 }
        }
        PackError::Columns { found, expected } => shape("columns of a weight's part", found, expected),
        PackError::Type { block: _ } => shape("a weight's kernels", 0, 1),
        PackError::Shape(_) => shape("bytes of a weight", 0, 1),
    }
}

impl Part {
    fn load(tensor: &RawTensor, expected: usize, device: &str) -> Result<Self, DeviceError> {
        let RawTensor { name, tensor_type, rows, columns, bytes } = tensor;
        let unknown = || DeviceError::TensorType {
            name: name.clone(),
            tensor_type: *tensor_type,
            device: device.to_owned(),
        };
        let block = BlockType::from_ggml(tensor_type.number()).ok_or_else(unknown)?;
        if *columns != expected {
            return Err(shape("columns of a weight's part", *columns, expected));
        }
        let length = block.row_bytes(*columns).and_then(|row| row.checked_mul(*rows));
        if *columns == 0 || length != Some(bytes.len()) {
            return Err(shape("bytes of a weight", bytes.len(), length.unwrap_or(0)));
        }
        Ok(Self { block, bytes: bytes.clone(), rows: *rows })
    }

    fn weights(&self, columns: usize) -> Weights<'_> {
        Weights::new(self.block, &self.bytes, self.rows, columns).expect("checked when it was loaded")
    }
}
