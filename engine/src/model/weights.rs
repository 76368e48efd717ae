//! Tensors out of the memory map: quantized matrices as candle stores them, small vectors as f32.

use super::ModelError;
use atlas_format::{Gguf, TensorInfo, TensorType};
use candle_core::backend::BackendStorage;
use candle_core::quantized::{GgmlDType, QuantizedType};
use std::borrow::Cow;
use std::collections::HashMap;

/// A weight matrix of `rows` by `columns`, as stored in the file or, for types without vector kernel, as Q8_0.
pub struct Matrix {
    data: Box<dyn QuantizedType>,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// `out[t] = W x[t]`.
    ///
    /// # Shapes
    /// `x`: `[T, columns]`; the result: `[T, rows]`; row-major f32.
    pub fn apply(&self, x: &[f32]) -> Result<Vec<f32>, ModelError> {
        let count = x.len() / self.columns;
        let mut out = vec![0.0; count * self.rows];
        self.data.matmul_t((count, self.columns, self.rows), x, &mut out)?;
        Ok(out)
    }

    /// The rows of these indices, as `[ids, columns]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        match self.data.embedding(ids, self.rows, self.columns)? {
            candle_core::CpuStorage::F32(values) => Ok(values),
            other => Err(candle_core::Error::Msg(format!("embedding rows are {:?}", other.dtype())).into()),
        }
    }

    /// Bytes in memory.
    pub fn byte_count(&self) -> usize {
        self.data.storage_size_in_bytes()
    }
}

/// The tensors of a file, by name.
pub struct Tensors<'a> {
    file: &'a [u8],
    by_name: HashMap<&'a str, &'a TensorInfo>,
}

impl<'a> Tensors<'a> {
    /// Indexes a header's tensors; `file` is the whole file.
    pub fn new(header: &'a Gguf, file: &'a [u8]) -> Self {
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
        let dtype = kernel_type(info)?;
        let data = dtype.from_data(Cow::Borrowed(self.bytes(info)?));
        Ok(Matrix { data: with_vector_kernel(data, rows * columns)?, rows, columns })
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
        let (values, _) = self.bytes(info)?.as_chunks();
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

    fn bytes(&self, info: &TensorInfo) -> Result<&'a [u8], ModelError> {
        let range = info.byte_range().ok_or_else(|| no_kernel(info))?;
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = range.and_then(|(start, end)| self.file.get(start..end));
        // The header was parsed from the whole file, so the range lies inside it unless the file shrank since.
        bytes.ok_or_else(|| ModelError::MissingTensor { name: info.name.clone() })
    }
}

/// candle multiplies Q4_1 and Q5_1 with scalar code on x86, ten times slower than Q8_0: such weights become Q8_0,
/// which holds their 16 or 32 steps a block to within 0.4 % of the block's largest value.
fn with_vector_kernel(
    data: Box<dyn QuantizedType>,
    elements: usize,
) -> Result<Box<dyn QuantizedType>, ModelError> {
    if !matches!(data.dtype(), GgmlDType::Q4_1 | GgmlDType::Q5_1) {
        return Ok(data);
    }
    let values = data.dequantize(elements)?;
    let mut converted = GgmlDType::Q8_0.cpu_zeros(elements);
    converted.from_float(values.as_slice::<f32>()?);
    Ok(converted)
}

fn no_kernel(info: &TensorInfo) -> ModelError {
    ModelError::TensorType { name: info.name.clone(), tensor_type: info.tensor_type.to_string() }
}

fn kernel_type(info: &TensorInfo) -> Result<GgmlDType, ModelError> {
    Ok(match info.tensor_type.number() {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return Err(no_kernel(info)),
    })
}
