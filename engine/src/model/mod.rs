//! The model: from a memory-mapped GGUF to logits.
//!
//! `config` reads and checks the numbers, `tensors` the weights, `program` says what to compute; a backend computes.
//! It knows nothing of requests, sampling or text, nor of what a step's rows are for.

mod config;
mod program;
mod tensors;

pub use config::ModelConfig;

use atlas_engine_core::backend::{Backend, KvType, MemoryUse, ProgramId, StepOut};
use atlas_engine_core::program::MaxShape;
use atlas_engine_core::step::StepArrays;
use atlas_engine_core::{DeviceError, StepPlan};
use atlas_format::Gguf;
use atlas_kernels::MappedFile;
use std::sync::Arc;
use tensors::Tensors;

/// What a model is loaded for.
#[derive(Debug, Clone, Copy)]
pub struct ModelShape {
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Blocks of the KV cache.
    pub blocks: u32,
    /// The largest step.
    pub max: MaxShape,
}

/// A loaded model on its device.
pub struct Model {
    config: ModelConfig,
    backend: Box<dyn Backend>,
    program: ProgramId,
    arrays: StepArrays,
    out: StepOut,
}

impl Model {
    /// Loads the weights of a mapped file into a backend, makes the KV cache and compiles the program.
    ///
    /// # Errors
    /// The architecture is not served, a tensor is missing or wrong, or the device refuses.
    pub fn load(
        header: &Gguf,
        file: &Arc<MappedFile>,
        mut backend: Box<dyn Backend>,
        shape: &ModelShape,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::from_gguf(header)?;
        let segment = program::build(&config, &Tensors::new(header, file), &mut *backend)?;
        backend.allocate_kv(&config.kv_spec(shape.kv_type, shape.blocks))?;
        let program = backend.compile(&segment, &shape.max)?;
        Ok(Self { config, backend, program, arrays: StepArrays::default(), out: StepOut::default() })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory that weights, cache and scratch take.
    pub fn memory_use(&self) -> MemoryUse {
        self.backend.memory_use()
    }

    /// Computes a step: the wanted logits, to be changed at will.
    ///
    /// # Shapes
    /// `[plan.logit_count(), vocabulary]`.
    ///
    /// # Errors
    /// The device fails.
    pub fn run(&mut self, plan: &StepPlan) -> Result<&mut [f32], ModelError> {
        if !plan.copies.is_empty() {
            self.backend.copy_blocks(&plan.copies)?;
        }
        self.backend.run(self.program, &self.arrays.fill(plan), None, &mut self.out)?;
        Ok(&mut self.out.logits)
    }

    /// The normed hidden states that the last step was asked for.
    ///
    /// # Shapes
    /// `[hidden rows of the plan, hidden]`.
    pub fn hidden(&self) -> &[f32] {
        &self.out.hidden
    }
}

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
        "the model's architecture is {found:?}, and this engine serves \"llama\" (Llama, Mistral, CodeLlama, \
         DeepSeek Coder, SmolLM), \"qwen2\" and \"qwen3\""
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
    /// A tensor that must be a vector of f32 is of another type.
    #[error("tensor {name:?} has the type {tensor_type}, and norms and biases must be F32")]
    VectorType {
        /// The tensor.
        name: String,
        /// Its type.
        tensor_type: String,
    },
    /// A tensor has a type whose size is not known.
    #[error("tensor {name:?} has {tensor_type}, which this engine does not know")]
    TensorSize {
        /// The tensor.
        name: String,
        /// Its type.
        tensor_type: String,
    },
    /// The device refused or failed.
    #[error("the device refuses")]
    Device(#[from] DeviceError),
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
