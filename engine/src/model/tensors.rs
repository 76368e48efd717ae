//! A file's tensors, checked against the shapes that the model's numbers ask for and handed on where they lie.

use super::ModelError;
use atlas_engine_core::backend::{RawTensor, SharedBytes};
use atlas_format::{Gguf, TensorInfo, TensorType};
use atlas_kernels::MappedFile;
use std::collections::HashMap;
use std::sync::Arc;

/// The tensors of a mapped file, by name.
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
    /// It is missing or of another shape.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<RawTensor, ModelError> {
        let info = self.info(name, &[columns as u64, rows as u64])?;
        self.raw(info, rows, columns)
    }

    /// A vector of f32.
    ///
    /// # Errors
    /// It is missing, of another length or type.
    pub fn vector(&self, name: &str, length: usize) -> Result<RawTensor, ModelError> {
        let info = self.info(name, &[length as u64])?;
        if info.tensor_type != TensorType::F32 {
            let (name, tensor_type) = (info.name.clone(), info.tensor_type.to_string());
            return Err(ModelError::VectorType { name, tensor_type });
        }
        self.raw(info, length, 1)
    }

    /// A vector's values.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn values(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let raw = self.vector(name, length)?;
        Ok(raw.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
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

    fn raw(&self, info: &TensorInfo, rows: usize, columns: usize) -> Result<RawTensor, ModelError> {
        // A type of unknown size has no range: its number tells the backend's user what it is.
        let unknown =
            || ModelError::TensorSize { name: info.name.clone(), tensor_type: info.tensor_type.to_string() };
        let range = info.byte_range().ok_or_else(unknown)?;
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = range.and_then(|(start, end)| SharedBytes::new(self.file.clone(), start..end));
        // The header was parsed from the whole file, so the range lies inside it.
        let bytes = bytes.ok_or_else(|| ModelError::MissingTensor { name: info.name.clone() })?;
        Ok(RawTensor { name: info.name.clone(), tensor_type: info.tensor_type, rows, columns, bytes })
    }
}
