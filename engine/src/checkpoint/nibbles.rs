//! Matrices of 4-bit codes with a scale and a zero point a group, AWQ's and GPTQ's, in the blocks that kernels read.
//!
//! Groups of 128 or multiples of it become AWQ4's blocks, which keep scale and zero point as they are. Smaller groups
//! become Q4_1's blocks of 32, whose offset is scale times zero point rounded to f16: at most 1/128 of a step off, and
//! exact where the zero point is 8, as symmetric quantization has it.

use super::CheckpointError;
use crate::model::ModelError;
use atlas_format::TensorType;
use half::f16;
use serde_json::Value;

/// Longest group that is taken for one.
const MAX_GROUP: i64 = 1 << 20;

/// Bytes before a block's codes, in either kind.
pub const HEAD: usize = 4;

/// The blocks that a matrix is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Of 128 codes: an f16 scale, a byte of zero point, one that is empty.
    Awq4,
    /// Of 32 codes: an f16 scale and an f16 offset.
    Q4_1,
}

impl Blocks {
    /// Those for groups of so many inputs.
    pub const fn of_group(group: usize) -> Self {
        if group.is_multiple_of(128) { Self::Awq4 } else { Self::Q4_1 }
    }

    /// Elements and bytes of a block.
    pub const fn size(self) -> (usize, usize) {
        match self {
            Self::Awq4 => (128, 68),
            Self::Q4_1 => (32, 20),
        }
    }

    /// Their type.
    pub const fn tensor_type(self) -> TensorType {
        match self {
            Self::Awq4 => TensorType::AWQ4,
            Self::Q4_1 => TensorType::Q4_1,
        }
    }

    /// Bytes of a matrix whose rows are whole blocks.
    pub const fn bytes_of(self, rows: usize, columns: usize) -> usize {
        let (elements, bytes) = self.size();
        rows * (columns / elements) * bytes
    }

    /// A block's first bytes, from an f16 scale and a zero point of up to 16.
    pub fn head(self, scale: [u8; 2], zero: u8) -> [u8; HEAD] {
        let [low, high] = scale;
        match self {
            Self::Awq4 => [low, high, zero, 0],
            Self::Q4_1 => {
                let offset = -f16::from_le_bytes(scale).to_f32() * f32::from(zero);
                let [offset_low, offset_high] = f16::from_f32(offset).to_le_bytes();
                [low, high, offset_low, offset_high]
            }
        }
    }
}

/// Byte behind a block's head, and shift, of the code of an input: as in Q4_0, the first half of 32 lies in low
/// nibbles, the second in high ones.
pub const fn place_of(input: usize) -> (usize, usize) {
    (input / 32 * 16 + input % 16, input % 32 / 16 * 4)
}

/// A little-endian word; 0 beyond the end.
pub fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.as_chunks().0.get(index).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Inputs a group, as `quantization_config` tells by one of these keys; 0 where a group is the whole row.
///
/// # Errors
/// Another number, or none.
pub fn group_size(settings: &Value, keys: &[&str]) -> Result<usize, CheckpointError> {
    let found = keys.iter().find_map(|key| settings.get(*key));
    match found.and_then(Value::as_i64) {
        Some(-1) => Ok(0),
        Some(group @ 32..=MAX_GROUP) if group % 32 == 0 => Ok(group as usize),
        _ => Err(refused(settings, "group_size", "groups of 32 or multiples of it are built")),
    }
}

/// A setting of `quantization_config` that would be computed wrongly.
pub fn refused(settings: &Value, key: &str, reason: &'static str) -> CheckpointError {
    let value = settings.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
    ModelError::Unsupported { key: format!("quantization_config.{key}"), value, reason }.into()
}
