//! The GGUF header: metadata and tensor infos of versions 2 and 3.
//!
//! Source of the layout: docs/gguf.md in ggml's repository.
//! Big-endian files and version 1 are refused by name.

use crate::bytes::{Cursor, Stop};
use crate::tensor_types::TensorType;
use crate::value::Value;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Bytes that start every GGUF file.
const MAGIC: &[u8] = b"GGUF";
/// Arrays of arrays deeper than this are refused, so that a file cannot exhaust the stack.
const MAX_ARRAY_DEPTH: usize = 4;
/// ggml's GGML_MAX_DIMS.
const MAX_DIMENSIONS: u32 = 4;
/// More than any model has; a larger count means a damaged header, not a longer one.
const MAX_TENSORS: u64 = 1 << 20;
/// More keys than any model has.
const MAX_KEYS: u64 = 1 << 16;
/// Longer than any vocabulary; a larger count means a damaged header.
const MAX_ARRAY: u64 = 1 << 26;
/// How `version https://git-lfs.github.com/spec/v1` begins.
const LFS_POINTER: &[u8] = b"vers";
/// Longer than any chat template.
const MAX_STRING: u64 = 1 << 26;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Why a header is refused. Offsets count from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The first bytes are not GGUF's.
    #[error("not a GGUF file: it starts with \"{}\" where \"GGUF\" is expected", found.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The file is written for machines that store numbers the other way round.
    #[error("the GGUF file is big-endian, version {version}: convert it to little-endian")]
    BigEndian {
        /// The version as such a machine reads it.
        version: u32,
    },
    /// What stands in for a file that git fetches from elsewhere.
    #[error("not a GGUF file but the pointer to one that Git LFS keeps: fetch it with `git lfs pull`")]
    LfsPointer,
    /// The version is not one that this parser knows.
    #[error("GGUF version {version} is not supported: convert the file to version 3 (little-endian)")]
    Version {
        /// The version field.
        version: u32,
    },
    /// A count or length is beyond anything a model has.
    #[error(
        "{what} at byte {offset} is {value}, more than the {limit} that any model has: the header is damaged"
    )]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        offset: u64,
        /// The count.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A metadata value has a type number that GGUF does not define.
    #[error("metadata key {key:?} at byte {offset} has the unknown value type {number}")]
    ValueType {
        /// The key.
        key: String,
        /// Where the type stands.
        offset: u64,
        /// The type number.
        number: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("metadata key {key:?} at byte {offset} has the boolean {value}, expected 0 or 1")]
    Bool {
        /// The key.
        key: String,
        /// Where the value stands.
        offset: u64,
        /// The value.
        value: u8,
    },
    /// Arrays nest too deeply.
    #[error("metadata key {key:?} at byte {offset} nests arrays deeper than {MAX_ARRAY_DEPTH}")]
    Nesting {
        /// The key.
        key: String,
        /// Where the innermost array stands.
        offset: u64,
    },
    /// A key or tensor name stands twice.
    #[error("{what} {name:?} stands twice in the header")]
    Duplicate {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// `general.alignment` is not usable.
    #[error("general.alignment is {value}, expected a power of two of at least 8")]
    Alignment {
        /// What the file has.
        value: String,
    },
    /// A tensor's shape is not usable.
    #[error("tensor {name:?} has the shape {shape:?}, which {why}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions, fastest first.
        shape: Vec<u64>,
        /// What is wrong.
        why: &'static str,
    },
    /// A tensor's data lies where no data can lie.
    #[error("tensor {name:?} has its data at offset {offset}, which {why}")]
    Offset {
        /// The tensor.
        name: String,
        /// Offset within the data section.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The file ends before the header or the data does.
    #[error("the file has {actual} bytes and needs {needed}: it is truncated")]
    Truncated {
        /// Bytes that there are.
        actual: u64,
        /// Bytes that are needed at least.
        needed: u64,
    },
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub tensor_type: TensorType,
    /// Dimensions, fastest first: a matrix with `n` rows of `k` elements is `[k, n]`.
    pub shape: Vec<u64>,
    /// Offset of the first byte from the start of the file.
    pub start: u64,
    /// Bytes of data, where the type's size is known.
    pub byte_count: Option<u64>,
}

impl TensorInfo {
    /// Number of elements. It does not wrap: the parser has checked the product.
    #[must_use]
    pub fn element_count(&self) -> u64 {
        self.shape.iter().fold(1, |product, dimension| product.saturating_mul(*dimension))
    }

    /// Where the data lies in the file, where the type's size is known.
    #[must_use]
    pub fn byte_range(&self) -> Option<Range<u64>> {
        self.byte_count.map(|count| self.start..self.start.saturating_add(count))
    }
}

/// A parsed header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Alignment of tensor data.
    pub alignment: u64,
    /// Offset of the data section: the header's length, aligned.
    pub data_start: u64,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
}

/// What a prefix of a file gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed<T = Gguf> {
    /// The whole header was in the prefix.
    Complete(Box<T>),
    /// The header goes on; at least this many bytes from the start of the file are needed to get further.
    NeedMore {
        /// A lower bound, not the header's length.
        bytes: u64,
    },
}

impl Gguf {
    /// Parses the header from the first bytes of a file.
    ///
    /// # Errors
    /// The bytes are wrong, however many follow.
    pub fn parse(prefix: &[u8]) -> Result<Parsed, GgufError> {
        match parse_header(&mut Cursor::new(prefix)) {
            Ok(header) => Ok(Parsed::Complete(Box::new(header))),
            Err(Stop::NeedMore(bytes)) => Ok(Parsed::NeedMore { bytes }),
            Err(Stop::Bad(error)) => Err(error),
        }
    }

    /// Parses the header of a whole file, and checks that every tensor's data lies inside it.
    ///
    /// # Errors
    /// The bytes are wrong or too few.
    pub fn parse_file(file: &[u8]) -> Result<Self, GgufError> {
        let actual = file.len() as u64;
        let header = match Self::parse(file)? {
            Parsed::Complete(header) => *header,
            Parsed::NeedMore { bytes } => return Err(GgufError::Truncated { actual, needed: bytes }),
        };
        let needed = header.tensors.iter().filter_map(TensorInfo::byte_range).map(|range| range.end).max();
        match needed {
            Some(needed) if needed > actual => Err(GgufError::Truncated { actual, needed }),
            _ => Ok(header),
        }
    }

    /// A metadata value by key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All tensors, in the file's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
}

fn bounded(what: &'static str, offset: u64, value: u64, limit: u64) -> Result<u64, GgufError> {
    if value > limit { Err(GgufError::TooMany { what, offset, value, limit }) } else { Ok(value) }
}

fn parse_header(cursor: &mut Cursor<'_>) -> Result<Gguf, Stop> {
    let magic = cursor.take(4)?;
    if magic != MAGIC {
        if magic == LFS_POINTER {
            return Err(GgufError::LfsPointer.into());
        }
        let mut found = [0; 4];
        found.copy_from_slice(magic);
        return Err(GgufError::Magic { found }.into());
    }
    let version = cursor.u32()?;
    if (1..=3).contains(&version.swap_bytes()) {
        return Err(GgufError::BigEndian { version: version.swap_bytes() }.into());
    }
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { version }.into());
    }
    let tensor_count = bounded("the tensor count", cursor.offset(), cursor.u64()?, MAX_TENSORS)?;
    let key_count = bounded("the metadata count", cursor.offset(), cursor.u64()?, MAX_KEYS)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = string(cursor, "the length of a metadata key")?;
        let value = value(cursor, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufError::Duplicate { what: "metadata key", name: key }.into());
        }
    }
    let alignment = alignment(metadata.get("general.alignment"))?;
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(tensor(cursor, alignment)?);
    }
    let too_long =
        GgufError::TooMany { what: "the header's end", offset: 0, value: u64::MAX, limit: i64::MAX as u64 };
    let data_start = cursor.offset().checked_next_multiple_of(alignment).ok_or(too_long)?;
    place(&mut tensors, data_start)?;
    Ok(Gguf { version, alignment, data_start, metadata, tensors })
}

fn alignment(value: Option<&Value>) -> Result<u64, GgufError> {
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_u32() {
            Some(alignment) if alignment >= 8 && alignment.is_power_of_two() => Ok(u64::from(alignment)),
            _ => Err(GgufError::Alignment { value: value.to_string() }),
        },
    }
}

fn string(cursor: &mut Cursor<'_>, what: &'static str) -> Result<String, Stop> {
    let length = bounded(what, cursor.offset(), cursor.u64()?, MAX_STRING)?;
    Ok(String::from_utf8_lossy(cursor.take(length)?).into_owned())
}

fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Stop> {
    let number = cursor.u32()?;
    value_of_type(cursor, key, number, 0)
}

fn value_of_type(cursor: &mut Cursor<'_>, key: &str, number: u32, depth: usize) -> Result<Value, Stop> {
    let offset = cursor.offset();
    Ok(match number {
        0 => Value::Unsigned(u64::from(cursor.u8()?)),
        1 => Value::Signed(i64::from(cursor.u8()?.cast_signed())),
        2 => Value::Unsigned(u64::from(cursor.u16()?)),
        3 => Value::Signed(i64::from(cursor.u16()?.cast_signed())),
        4 => Value::Unsigned(u64::from(cursor.u32()?)),
        5 => Value::Signed(i64::from(cursor.u32()?.cast_signed())),
        6 => Value::Float(f64::from(cursor.f32()?)),
        7 => match cursor.u8()? {
            value @ 0..=1 => Value::Bool(value == 1),
            value => return Err(GgufError::Bool { key: key.to_owned(), offset, value }.into()),
        },
        8 => Value::String(string(cursor, "the length of a string")?),
        9 => {
            if depth == MAX_ARRAY_DEPTH {
                return Err(GgufError::Nesting { key: key.to_owned(), offset }.into());
            }
            let element = cursor.u32()?;
            let count = bounded("the length of an array", cursor.offset(), cursor.u64()?, MAX_ARRAY)?;
            // Grown as elements are read: a count alone never allocates.
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(value_of_type(cursor, key, element, depth + 1)?);
            }
            Value::Array(values)
        }
        10 => Value::Unsigned(cursor.u64()?),
        11 => Value::Signed(cursor.u64()?.cast_signed()),
        12 => Value::Float(cursor.f64()?),
        number => return Err(GgufError::ValueType { key: key.to_owned(), offset, number }.into()),
    })
}

/// Reads one tensor info; `start` still counts from the data section.
fn tensor(cursor: &mut Cursor<'_>, alignment: u64) -> Result<TensorInfo, Stop> {
    let name = string(cursor, "the length of a tensor's name")?;
    let dimensions = cursor.offset();
    let dimensions = bounded(
        "a tensor's dimension count",
        dimensions,
        u64::from(cursor.u32()?),
        u64::from(MAX_DIMENSIONS),
    )?;
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64()?);
    }
    let tensor_type = TensorType::from_number(cursor.u32()?);
    let start = cursor.u64()?;
    let byte_count = byte_count(&name, &shape, tensor_type)?;
    if !start.is_multiple_of(alignment) {
        return Err(GgufError::Offset { name, offset: start, why: "is not aligned" }.into());
    }
    Ok(TensorInfo { name, tensor_type, shape, start, byte_count })
}

fn byte_count(name: &str, shape: &[u64], tensor_type: TensorType) -> Result<Option<u64>, GgufError> {
    let bad = |why| GgufError::Shape { name: name.to_owned(), shape: shape.to_vec(), why };
    let elements = shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
    let elements = elements.ok_or_else(|| bad("has more elements than 64 bits can count"))?;
    if elements == 0 {
        return Err(bad("has no elements"));
    }
    let Some((block_elements, block_bytes)) = tensor_type.block() else { return Ok(None) };
    if !shape.first().copied().unwrap_or(1).is_multiple_of(block_elements) {
        return Err(bad("has rows that are not whole blocks of its type"));
    }
    let bytes = (elements / block_elements).checked_mul(block_bytes);
    bytes.map(Some).ok_or_else(|| bad("has more bytes than 64 bits can count"))
}

/// Turns offsets within the data section into offsets within the file, and checks that no two tensors overlap.
fn place(tensors: &mut [TensorInfo], data_start: u64) -> Result<(), GgufError> {
    let mut names = HashSet::new();
    let mut ranges = Vec::new();
    for tensor in tensors.iter_mut() {
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::Duplicate { what: "tensor", name: tensor.name.clone() });
        }
        let offset = tensor.start;
        let beyond = |why| GgufError::Offset { name: tensor.name.clone(), offset, why };
        let start = data_start.checked_add(offset).ok_or_else(|| beyond("is beyond any file"))?;
        let end = start
            .checked_add(tensor.byte_count.unwrap_or(0))
            .ok_or_else(|| beyond("ends beyond any file"))?;
        tensor.start = start;
        ranges.push((start, end, tensor.name.clone()));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, _), (start, _, name)] = pair
            && start < end
        {
            let offset = start - data_start;
            return Err(GgufError::Offset { name: name.clone(), offset, why: "overlaps another tensor" });
        }
    }
    Ok(())
}
