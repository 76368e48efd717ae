//! Tensors of the memory map: matrices are used where they lie in the file, small vectors become f32.

use super::ModelError;
use atlas_format::{Gguf, TensorInfo, TensorType};
use atlas_kernels::{BlockType, MappedFile, Pool, Weights};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A weight matrix of `rows` by `columns` in the mapped file.
pub struct Matrix {
    file: Arc<MappedFile>,
    range: Range<usize>,
    block: BlockType,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// `out[t] = W x[t]`.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`; the result: `[T, rows]`; row-major f32.
    pub fn apply(&self, pool: &Pool, x: &[f32]) -> Result<Vec<f32>, ModelError> {
        let mut out = vec![0.0; x.len() / self.columns * self.rows];
        self.weights()?.multiply(pool, x, &mut out);
        Ok(out)
    }

    /// The rows of these indices, as `[ids, columns]`.
    ///
    /// # Panics
    /// An index is no row; requests are checked against the vocabulary.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let weights = self.weights()?;
        let mut out = vec![0.0; ids.len() * self.columns];
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(self.columns)) {
            weights.row(*id as usize, row);
        }
        Ok(out)
    }

    /// Bytes in the file.
    pub fn byte_count(&self) -> usize {
        self.range.len()
    }

    fn weights(&self) -> Result<Weights<'_>, ModelError> {
        Ok(Weights::new(self.block, &self.file[self.range.clone()], self.rows, self.columns)?)
    }
}

/// The tensors of a file, by name.
pub struct Tensors<'a> {
    file: &'a Arc<MappedFile>,
    by_name: HashMap<&'a str, &'a TensorInfo>,
}

impl<'a> Tensors<'a> {
    /// Indexes the tensors of a file by its header.
    pub fn new(header: &'a Gguf, file: &'a Arc<MappedFile>) -> Self {
        Self { file, by_name: header.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect() }
    }

    /// Whether the file has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A matrix of this shape.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type without kernel.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix, ModelError> {
        let info = self.info(name, &[columns as u64, rows as u64])?;
        let block = BlockType::from_ggml(info.tensor_type.number()).ok_or_else(|| no_kernel(info))?;
        let matrix = Matrix { file: self.file.clone(), range: self.range(info)?, block, rows, columns };
        // Found out here rather than in the first step.
        matrix.weights()?;
        Ok(matrix)
    }

    /// A vector of f32.
    ///
    /// # Errors
    /// It is missing, of another shape or type.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let info = self.info(name, &[length as u64])?;
        if info.tensor_type != TensorType::F32 {
            return Err(no_kernel(info));
        }
        let (values, _) = self.file[self.range(info)?].as_chunks();
        Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn info(&self, name: &str, expected: &[u64]) -> Result<&'a TensorInfo, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let info = *self.by_name.get(name).ok_or_else(missing)?;
        if info.shape != expected {
            let (found, expected) = (info.shape.clone(), expected.to_vec());
            return Err(ModelError::TensorShape { name: name.to_owned(), found, expected });
        }
        Ok(info)
    }

    fn range(&self, info: &TensorInfo) -> Result<Range<usize>, ModelError> {
        let range = info.byte_range().ok_or_else(|| no_kernel(info))?;
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let range =
            range.map(|(start, end)| start..end).filter(|range| self.file.get(range.clone()).is_some());
        // The header was parsed from the whole file, so the range lies inside it.
        range.ok_or_else(|| ModelError::MissingTensor { name: info.name.clone() })
    }
}

fn no_kernel(info: &TensorInfo) -> ModelError {
    ModelError::TensorType { name: info.name.clone(), tensor_type: info.tensor_type.to_string() }
}
