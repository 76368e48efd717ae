//! The model: from a memory-mapped GGUF to logits.
//!
//! Activations are f32 slices; products and attention are atlas-kernels', everything between them is here.
//! An output row depends on its own inputs alone, however many rows, chunks or threads a step has.
//! It knows nothing of requests, sampling or text.

mod attention;
mod config;
mod kv;
mod llama;
mod math;
mod rope;
mod weights;

pub use config::ModelConfig;
pub use llama::Llama;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The header cannot be parsed.
    #[error("the model file's header is wrong")]
    Header(#[from] atlas_format::GgufError),
    /// The header lacks a key or has it of the wrong kind.
    #[error("the model file's metadata is incomplete")]
    Metadata(#[from] atlas_format::MetadataError),
    /// The architecture is not served.
    #[error(
        "the model's architecture is {found:?}, and this engine serves \"llama\" (Llama, Mistral, CodeLlama, DeepSeek Coder, SmolLM)"
    )]
    Architecture {
        /// `general.architecture`.
        found: String,
    },
    /// A part of the architecture is not served.
    #[error("the model sets {key:?} to {value}, which this engine does not serve: {reason}")]
    Unsupported {
        /// The metadata key.
        key: String,
        /// Its value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// Two numbers of the header contradict each other.
    #[error("the model's {what} is {found}, which does not go with its {other} of {expected}")]
    Inconsistent {
        /// What is off.
        what: &'static str,
        /// Its value.
        found: u64,
        /// What it is checked against.
        other: &'static str,
        /// That one's value.
        expected: u64,
    },
    /// A tensor is missing.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the header's numbers say.
    #[error("tensor {name:?} has the shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// What the file has.
        found: Vec<u64>,
        /// What the metadata ask for.
        expected: Vec<u64>,
    },
    /// A tensor has a type without CPU kernel.
    #[error("tensor {name:?} has the type {tensor_type}, which the CPU backend cannot compute with")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        tensor_type: String,
    },
    /// A tensor's bytes are not those of its shape.
    #[error("a tensor's bytes do not fit its shape")]
    Bytes(#[from] atlas_kernels::ShapeError),
    /// The compute threads cannot be started.
    #[error("cannot start the compute threads")]
    Threads(#[from] std::io::Error),
}
