//! Weights as loaded, and the products with them.
//!
//! [`Weight::multiply`] is the one place where activations meet weight matrices: a faster kernel for a type belongs
//! in there.

use super::check::shape;
use crate::blocks::{BlockType, dequantize};
use crate::pool::Pool;
use crate::product::Weights;
use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::{RawTensor, SharedBytes};

/// A matrix of one type, as it lies in a file.
struct Part {
    block: BlockType,
    bytes: SharedBytes,
    rows: usize,
}

/// A weight of one or several parts of equal columns.
pub(crate) struct Weight {
    parts: Vec<Part>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// The values of a weight of one column; small, and read by every row.
    vector: Option<Vec<f32>>,
}

impl Weight {
    /// Checks the parts' types and sizes. Their bytes stay where they are.
    pub(crate) fn load(tensors: &[RawTensor], device: &str) -> Result<Self, DeviceError> {
        let columns = tensors.first().map_or(0, |tensor| tensor.columns);
        let parts = tensors
            .iter()
            .map(|tensor| Part::load(tensor, columns, device))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = parts.iter().map(|part| part.rows).sum();
        if rows == 0 {
            return Err(shape("rows of a weight", 0, 1));
        }
        let vector = (columns == 1).then(|| {
            let mut values = vec![0.0; rows];
            let mut rest = values.as_mut_slice();
            for part in &parts {
                let (own, others) = rest.split_at_mut(part.rows);
                dequantize(part.block, &part.bytes, own);
                rest = others;
            }
            values
        });
        Ok(Self { parts, rows, columns, vector })
    }

    pub(crate) fn byte_count(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// The values of a weight of one column.
    pub(crate) fn vector(&self) -> Option<&[f32]> {
        self.vector.as_deref()
    }

    /// `out[t] = W x[t]`.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`, `out`: `[T, rows]`.
    pub(crate) fn multiply(&self, pool: &Pool, x: &[f32], out: &mut [f32]) {
        let mut first = 0;
        for part in &self.parts {
            part.weights(self.columns).multiply_into(pool, x, out, self.rows, first);
            first += part.rows;
        }
    }

    /// One row in f32.
    pub(crate) fn row(&self, mut index: usize, out: &mut [f32]) {
        for part in &self.parts {
            match index.checked_sub(part.rows) {
                None => return part.weights(self.columns).row(index, out),
                Some(rest) => index = rest,
            }
        }
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
