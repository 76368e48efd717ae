//! The safetensors header, and the index of a model that is split over several such files.
//!
//! Source of the layout: the format section in the README of the safetensors project.
//! As there, tensors have to fill the data section without gaps, so that every byte of a file is accounted for.

use crate::Parsed;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// The file of a folder whose weights are in one.
pub const WEIGHTS: &str = "model.safetensors";
/// The index of a folder whose weights are in several.
pub const INDEX: &str = "model.safetensors.index.json";

/// Whether a file's name says that its folder is the model: weights, or an index of them.
#[must_use]
pub fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

/// Longest header, as in the format's own reader.
const MAX_HEADER: u64 = 100_000_000;
/// The one key of a header that is no tensor.
const METADATA: &str = "__metadata__";

/// Why a header or an index is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SafetensorsError {
    /// The length field is beyond anything a file has.
    #[error("the safetensors header claims {found} bytes, more than the {MAX_HEADER} that any file has")]
    TooLong {
        /// The claim.
        found: u64,
    },
    /// The header or index is not the JSON of one.
    #[error("the {what} is not the JSON that safetensors has: {reason}")]
    Json {
        /// `header` or `index`.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A name stands twice.
    #[error("tensor {name:?} stands twice in the header")]
    Duplicate {
        /// The tensor.
        name: String,
    },
    /// A shape and a dtype do not give the bytes that the offsets span.
    #[error("tensor {name:?} of {dtype} has the shape {shape:?} and {found} bytes, which do not go together")]
    Size {
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Bytes between its offsets.
        found: u64,
    },
    /// Offsets run backwards, overlap or leave a gap.
    #[error("tensor {name:?} has the data offsets [{begin}, {end}], expected to begin at {expected}")]
    Offsets {
        /// The tensor.
        name: String,
        /// Its first byte within the data section.
        begin: u64,
        /// The byte behind its last one.
        end: u64,
        /// Where the tensor before it ends.
        expected: u64,
    },
    /// The file is not as long as its header says.
    #[error(
        "the file has {actual} bytes and its header speaks of {expected}: it is damaged or was cut short"
    )]
    Length {
        /// Bytes that there are.
        actual: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// An index names a file outside its folder.
    #[error("the index keeps tensor {tensor:?} in {file:?}, expected the name of a file beside it")]
    Shard {
        /// The tensor.
        tensor: String,
        /// What stands for its file.
        file: String,
    },
    /// An index does not say how many bytes its files hold.
    #[error("the index has no metadata.total_size")]
    NoTotal,
}

/// A tensor's element type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    /// Another one, by its name; nothing is known of its size.
    Other(String),
}

impl Dtype {
    const KNOWN: [(Self, &'static str, u64); 10] = [
        (Self::F64, "F64", 8),
        (Self::F32, "F32", 4),
        (Self::F16, "F16", 2),
        (Self::Bf16, "BF16", 2),
        (Self::I64, "I64", 8),
        (Self::I32, "I32", 4),
        (Self::I16, "I16", 2),
        (Self::I8, "I8", 1),
        (Self::U8, "U8", 1),
        (Self::Bool, "BOOL", 1),
    ];

    fn from_name(name: String) -> Self {
        match Self::KNOWN.into_iter().find(|(_, known, _)| *known == name) {
            Some((dtype, ..)) => dtype,
            None => Self::Other(name),
        }
    }

    /// Bytes an element, where they are known.
    #[must_use]
    pub fn byte_count(&self) -> Option<u64> {
        Self::KNOWN.iter().find(|(dtype, ..)| dtype == self).map(|(_, _, bytes)| *bytes)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.pad(name),
            known => f.pad(Self::KNOWN.iter().find(|(dtype, ..)| dtype == known).map_or("", |row| row.1)),
        }
    }
}

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest first: a matrix with `n` rows of `k` elements is `[n, k]`.
    pub shape: Vec<u64>,
    /// Where the data lies in the file.
    pub bytes: Range<u64>,
}

/// A parsed header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Safetensors {
    /// Offset of the data section.
    pub data_start: u64,
    tensors: Vec<StoredTensor>,
}

impl Safetensors {
    /// Parses the header from the first bytes of a file.
    ///
    /// # Errors
    /// The bytes are wrong, however many follow.
    pub fn parse(prefix: &[u8]) -> Result<Parsed<Self>, SafetensorsError> {
        let Some(length) = prefix.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
            return Ok(Parsed::NeedMore { bytes: 8 });
        };
        if length > MAX_HEADER {
            return Err(SafetensorsError::TooLong { found: length });
        }
        let data_start = length + 8;
        let text = usize::try_from(data_start).ok().and_then(|end| prefix.get(8..end));
        let Some(text) = text else { return Ok(Parsed::NeedMore { bytes: data_start }) };
        let entries: Entries = serde_json::from_slice(text).map_err(|error| json("header", &error))?;
        let tensors = place(entries.0, data_start)?;
        Ok(Parsed::Complete(Box::new(Self { data_start, tensors })))
    }

    /// Parses the header of a whole file, and checks that its tensors fill the rest of it.
    ///
    /// # Errors
    /// The bytes are wrong, too few or too many.
    pub fn parse_file(file: &[u8]) -> Result<Self, SafetensorsError> {
        let actual = file.len() as u64;
        let header = match Self::parse(file)? {
            Parsed::Complete(header) => *header,
            Parsed::NeedMore { bytes } => {
                return Err(SafetensorsError::Length { actual, expected: bytes });
            }
        };
        let expected = header.tensors.last().map_or(header.data_start, |tensor| tensor.bytes.end);
        if expected == actual { Ok(header) } else { Err(SafetensorsError::Length { actual, expected }) }
    }

    /// All tensors, in the order of their data.
    #[must_use]
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }
}

fn json(what: &'static str, error: &serde_json::Error) -> SafetensorsError {
    SafetensorsError::Json { what, reason: error.to_string() }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A header's tensors as written: a map would hide a name that stands twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Checks sizes, and that the tensors lie one behind the other.
fn place(mut entries: Vec<(String, Entry)>, data_start: u64) -> Result<Vec<StoredTensor>, SafetensorsError> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let (mut names, mut tensors, mut expected) = (BTreeSet::new(), Vec::new(), 0_u64);
    for (name, Entry { dtype, shape, data_offsets: (begin, end) }) in entries {
        if !names.insert(name.clone()) {
            return Err(SafetensorsError::Duplicate { name });
        }
        // Files are no longer than this, and sums with the header's length cannot wrap.
        if begin != expected || end < begin || end > i64::MAX as u64 {
            return Err(SafetensorsError::Offsets { name, begin, end, expected });
        }
        let dtype = Dtype::from_name(dtype);
        let elements = shape.iter().try_fold(1_u64, |product, length| product.checked_mul(*length));
        if let Some(element_bytes) = dtype.byte_count() {
            let bytes = elements.and_then(|elements| elements.checked_mul(element_bytes));
            if bytes != Some(end - begin) {
                return Err(SafetensorsError::Size { name, dtype, shape, found: end - begin });
            }
        }
        tensors.push(StoredTensor { name, dtype, shape, bytes: data_start + begin..data_start + end });
        expected = end;
    }
    Ok(tensors)
}

/// A `model.safetensors.index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsIndex {
    /// Bytes of all tensors, where it says.
    pub total_bytes: Option<u64>,
    /// The files beside it that hold tensors, in order.
    pub files: BTreeSet<String>,
    /// The file of each tensor.
    pub file_of: BTreeMap<String, String>,
}

impl SafetensorsIndex {
    /// Parses an index.
    ///
    /// # Errors
    /// It is not the JSON of an index, or names files that are not beside it.
    pub fn parse(text: &[u8]) -> Result<Self, SafetensorsError> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default)]
            metadata: Metadata,
            weight_map: BTreeMap<String, String>,
        }
        #[derive(Deserialize, Default)]
        struct Metadata {
            // Written as a float by some tools.
            total_size: Option<serde_json::Number>,
        }
        let index: Index = serde_json::from_slice(text).map_err(|error| json("index", &error))?;
        for (tensor, file) in &index.weight_map {
            if file.contains(['/', '\\', '\0']) || !file.ends_with(".safetensors") || file.starts_with('.') {
                return Err(SafetensorsError::Shard { tensor: tensor.clone(), file: file.clone() });
            }
        }
        let total = index.metadata.total_size;
        let total = total.and_then(|size| size.as_u64().or_else(|| size.as_f64().map(|float| float as u64)));
        let files = index.weight_map.values().cloned().collect();
        Ok(Self { total_bytes: total, files, file_of: index.weight_map })
    }
}
