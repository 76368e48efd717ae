//! Metadata values and their typed getters.

use crate::gguf::Gguf;
use std::fmt;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A float; 32-bit floats are widened exactly.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string; bytes that are not UTF-8 are replaced.
    String(String),
    /// An array of values of one kind.
    Array(Vec<Value>),
}

/// The kind of a [`Value`], for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// An integer of either sign.
    Integer,
    /// A float.
    Float,
    /// A boolean.
    Bool,
    /// A string.
    String,
    /// An array.
    Array,
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Integer => "an integer",
            Self::Float => "a float",
            Self::Bool => "a boolean",
            Self::String => "a string",
            Self::Array => "an array",
        })
    }
}

impl Value {
    /// What kind of value this is.
    #[must_use]
    pub fn kind(&self) -> ValueKind {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => ValueKind::Integer,
            Self::Float(_) => ValueKind::Float,
            Self::Bool(_) => ValueKind::Bool,
            Self::String(_) => ValueKind::String,
            Self::Array(_) => ValueKind::Array,
        }
    }

    fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value as u32, where it is an integer that fits.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        self.as_u64().and_then(|value| u32::try_from(value).ok())
    }

    /// The value as f32, where it is a float.
    #[must_use]
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Self::Float(value) => Some(*value as f32),
            _ => None,
        }
    }

    /// The value as a string slice, where it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(value) => write!(f, "{value}"),
            Self::Array(values) => write!(f, "[{} values]", values.len()),
        }
    }
}

/// A metadata key that a reader needs is missing or of another kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The file has no such key.
    #[error("metadata key {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// The key holds something else, or a number out of range.
    #[error("metadata key {key:?} holds {found}, expected {expected}")]
    WrongKind {
        /// The key.
        key: String,
        /// What the file has.
        found: ValueKind,
        /// What the reader needs.
        expected: &'static str,
    },
}

/// Getters answer `None` for a missing key and an error for one of the wrong kind.
impl Gguf {
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(MetadataError::WrongKind { key: key.to_owned(), found: value.kind(), expected }),
        }
    }

    /// An integer that fits 32 bits.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, MetadataError> {
        self.typed(key, "an integer between 0 and 4294967295", Value::as_u32)
    }

    /// A float.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, MetadataError> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A boolean.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of strings.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, MetadataError> {
        self.array(key, "an array of strings", Value::as_str)
    }

    /// An array of integers.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, MetadataError> {
        self.array(key, "an array of integers between 0 and 4294967295", Value::as_u32)
    }

    /// An array of floats.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, MetadataError> {
        self.array(key, "an array of floats", Value::as_f32)
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, MetadataError> {
        self.typed(key, expected, |value| match value {
            Value::Array(values) => values.iter().map(read).collect(),
            _ => None,
        })
    }

    /// An integer that the reader cannot do without.
    ///
    /// # Errors
    /// The key is missing or holds something else.
    pub fn require_u32(&self, key: &str) -> Result<u32, MetadataError> {
        self.u32(key)?.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }

    /// A string that the reader cannot do without.
    ///
    /// # Errors
    /// The key is missing or holds something else.
    pub fn require_str(&self, key: &str) -> Result<&str, MetadataError> {
        self.str(key)?.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }
}
