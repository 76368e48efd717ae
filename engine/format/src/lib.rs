//! Headers of model files, parsed from a prefix of the file.
//!
//! The planner reads a few hundred kilobytes over HTTP and the engine reads a memory map; both use these parsers.
//! Nothing here does IO, keeps tensor data or panics, whatever the bytes are.

mod bytes;
mod file_type;
pub mod gguf;
pub mod safetensors;
mod tensor_types;
mod value;
mod writer;

pub use gguf::{Gguf, GgufError, Parsed, TensorInfo};
pub use safetensors::{Dtype, Safetensors, SafetensorsError, SafetensorsIndex, StoredTensor};
pub use tensor_types::TensorType;
pub use value::{MetadataError, Value, ValueKind};
pub use writer::HeaderWriter;
