//! A model's tensors under GGUF's names, checked against the shapes that the model's numbers ask for and handed on
//! where they lie.

use super::ModelError;
use atlas_engine_core::backend::{RawTensor, SharedBytes, SharedOwner};
use atlas_format::{Gguf, TensorType};
use atlas_kernels::MappedFile;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A tensor and its bytes.
#[derive(Debug)]
pub struct Tensor {
    /// Element type.
    pub tensor_type: TensorType,
    /// Dimensions, fastest first.
    pub shape: Vec<u64>,
    bytes: Bytes,
}

/// Makes a tensor's bytes when it is loaded, so that no more than one is in memory twice.
pub type Make = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

enum Bytes {
    /// Where they lie.
    Shared(SharedBytes),
    /// So many, to be made.
    Made(usize, Make),
    /// The type's size is not known.
    Unknown,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shared(bytes) => bytes.fmt(f),
            Self::Made(length, _) => write!(f, "Made({length} bytes)"),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

impl Tensor {
    /// A tensor in a range of what `owner` holds; without bytes where the range does not lie inside it.
    pub fn new(
        tensor_type: TensorType,
        shape: Vec<u64>,
        owner: Arc<dyn SharedOwner>,
        range: Range<u64>,
    ) -> Self {
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = range.and_then(|(start, end)| SharedBytes::new(owner, start..end));
        Self { tensor_type, shape, bytes: bytes.map_or(Bytes::Unknown, Bytes::Shared) }
    }

    /// A tensor whose bytes, so many, are made when it is loaded.
    pub fn made(tensor_type: TensorType, shape: Vec<u64>, byte_count: usize, make: Make) -> Self {
        Self { tensor_type, shape, bytes: Bytes::Made(byte_count, make) }
    }

    /// A vector of f32 of its own.
    pub fn of_values(values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let length = bytes.len() as u64;
        Self::new(TensorType::F32, vec![values.len() as u64], Arc::new(bytes), 0..length)
    }

    /// Bytes that it takes.
    pub fn byte_count(&self) -> u64 {
        match &self.bytes {
            Bytes::Shared(bytes) => bytes.len() as u64,
            Bytes::Made(length, _) => *length as u64,
            Bytes::Unknown => 0,
        }
    }
}

/// The tensors of a model, by GGUF's names.
#[derive(Debug, Default)]
pub struct Tensors {
    by_name: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// Those of a mapped GGUF file, by its header.
    pub fn of_gguf(header: &Gguf, file: &Arc<MappedFile>) -> Self {
        let tensors = header.tensors().iter().map(|info| {
            let (tensor_type, shape) = (info.tensor_type, info.shape.clone());
            let tensor = match info.byte_range() {
                Some(range) => Tensor::new(tensor_type, shape, file.clone(), range),
                None => Tensor { tensor_type, shape, bytes: Bytes::Unknown },
            };
            (info.name.clone(), tensor)
        });
        Self { by_name: tensors.collect() }
    }

    /// Adds one; the answer is whether its name is new.
    pub fn insert(&mut self, name: String, tensor: Tensor) -> bool {
        self.by_name.insert(name, tensor).is_none()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Bytes of all of them.
    pub fn byte_count(&self) -> u64 {
        self.by_name.values().map(Tensor::byte_count).sum()
    }

    /// Whether there is this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A matrix of this shape.
    ///
    /// # Errors
    /// It is missing or of another shape.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<RawTensor, ModelError> {
        let tensor = self.tensor(name, &[columns as u64, rows as u64])?;
        raw(name, tensor, rows, columns)
    }

    /// A vector of f32.
    ///
    /// # Errors
    /// It is missing, of another length or type.
    pub fn vector(&self, name: &str, length: usize) -> Result<RawTensor, ModelError> {
        let tensor = self.tensor(name, &[length as u64])?;
        if tensor.tensor_type != TensorType::F32 {
            let (name, tensor_type) = (name.to_owned(), tensor.tensor_type.to_string());
            return Err(ModelError::VectorType { name, tensor_type });
        }
        raw(name, tensor, length, 1)
    }

    /// A vector's values.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn values(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let raw = self.vector(name, length)?;
        Ok(raw.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn tensor(&self, name: &str, expected: &[u64]) -> Result<&Tensor, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let tensor = self.by_name.get(name).ok_or_else(missing)?;
        if tensor.shape != expected {
            let (found, expected) = (tensor.shape.clone(), expected.to_vec());
            return Err(ModelError::TensorShape { name: name.to_owned(), found, expected });
        }
        Ok(tensor)
    }
}

fn raw(name: &str, tensor: &Tensor, rows: usize, columns: usize) -> Result<RawTensor, ModelError> {
    let (name, tensor_type) = (name.to_owned(), tensor.tensor_type);
    let bytes = match &tensor.bytes {
        Bytes::Shared(bytes) => Some(bytes.clone()),
        Bytes::Made(_, make) => {
            let made = make();
            let length = made.len();
            SharedBytes::new(Arc::new(made), 0..length)
        }
        // A type of unknown size has no range: its number tells the backend's user what it is.
        Bytes::Unknown => None,
    };
    match bytes {
        Some(bytes) => Ok(RawTensor { name, tensor_type, rows, columns, bytes }),
        None => Err(ModelError::TensorSize { name, tensor_type: tensor_type.to_string() }),
    }
}
