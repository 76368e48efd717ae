//! The model: from memory-mapped tensors to logits.
//!
//! `config` reads and checks the numbers, `tensors` the weights, `program` says what to compute; a backend computes.
//! It knows nothing of requests, sampling or text, nor of what a step's rows are for.

mod config;
mod program;
mod rope;
mod tensors;

pub use config::{ModelConfig, check_whole_heads};
pub use program::{Loading, ROPE_FACTORS};
pub use rope::{BETA_FAST, BETA_SLOW, Yarn, yarn_attention};
pub use tensors::{Tensor, Tensors};

use crate::backend::Devices;
use atlas_engine_core::backend::{Backend, KvSpec, KvType, MemoryUse, ProgramId, StepOut};
use atlas_engine_core::program::MaxShape;
use atlas_engine_core::step::StepArrays;
use atlas_engine_core::{DeviceError, StepPlan};

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

/// A loaded model on its device, or its first layers on one and the rest on another.
pub struct Model {
    config: ModelConfig,
    parts: Vec<(Box<dyn Backend>, ProgramId)>,
    arrays: StepArrays,
    out: StepOut,
    handoff: Vec<f32>,
}

impl Model {
    /// All of it on one device, as [`Self::load_parts`] does it, with nothing put off.
    ///
    /// # Errors
    /// The same.
    pub fn load(
        config: &ModelConfig,
        tensors: &Tensors,
        backend: Box<dyn Backend>,
        shape: &ModelShape,
    ) -> Result<Self, ModelError> {
        let mut model = Self::load_parts(config, tensors, vec![(backend, usize::MAX)], shape, &mut |_| {})?;
        while model.settle()? > 0 {}
        Ok(model)
    }

    /// Does the next piece of what loading put off, and says how many are left: see [`Backend::settle`].
    ///
    /// # Errors
    /// No memory.
    pub fn settle(&mut self) -> Result<usize, ModelError> {
        self.parts.iter_mut().try_fold(0, |left, (backend, _)| Ok(left + backend.settle()?))
    }

    /// Loads weights into devices, each of which takes the next so many layers, as far as there
    /// are any, makes the KV caches and compiles the programs. A step crosses from each device to the next once.
    /// `tell` hears how far loading has come: layers of all devices, bytes of the last one, which is the card where
    /// there is one. What devices put off is for [`Self::settle`].
    ///
    /// # Errors
    /// A tensor is missing or wrong, or a device refuses.
    pub fn load_parts(
        config: &ModelConfig,
        tensors: &Tensors,
        devices: Devices,
        shape: &ModelShape,
        tell: &mut dyn FnMut(Loading),
    ) -> Result<Self, ModelError> {
        let all = u16::try_from(config.layers).map_err(|_| ModelError::Inconsistent {
            what: "number of layers",
            found: config.layers as u64,
            other: "limit",
            expected: u16::MAX.into(),
        })?;
        let mut parts = Vec::new();
        let (mut next, last) = (0, devices.len().saturating_sub(1));
        for (index, (mut backend, count)) in devices.into_iter().enumerate() {
            let end = next + u16::try_from(count).unwrap_or(u16::MAX).min(all - next);
            let mut of_last = |loading| {
                if index == last || !matches!(loading, Loading::Bytes(_)) {
                    tell(loading);
                }
            };
            let segment = program::build(config, tensors, &mut *backend, next..end, &mut of_last)?;
            let spec = config.kv_spec(shape.kv_type, shape.blocks);
            backend.allocate_kv(&KvSpec { layers: next..end, ..spec })?;
            let program = backend.compile(&segment, &shape.max)?;
            parts.push((backend, program));
            next = end;
        }
        let (arrays, out, handoff) = (StepArrays::default(), StepOut::default(), Vec::new());
        Ok(Self { config: config.clone(), parts, arrays, out, handoff })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory that weights, cache and scratch take.
    pub fn memory_use(&self) -> MemoryUse {
        self.parts.iter().map(|(backend, _)| backend.memory_use()).fold(MemoryUse::default(), |sum, part| {
            MemoryUse {
                weights: sum.weights + part.weights,
                kv_cache: sum.kv_cache + part.kv_cache,
                scratch: sum.scratch + part.scratch,
            }
        })
    }

    /// Memory that the last device holds, which is the card where there is one.
    pub fn last_memory_use(&self) -> MemoryUse {
        self.parts.last().map(|(backend, _)| backend.memory_use()).unwrap_or_default()
    }

    /// Computes a step: the wanted logits, to be changed at will.
    ///
    /// # Shapes
    /// `[plan.logit_count(), vocabulary]`.
    ///
    /// # Errors
    /// The device fails.
    pub fn run(&mut self, plan: &StepPlan) -> Result<&mut [f32], ModelError> {
        let batch = self.arrays.fill(plan);
        for (index, (backend, program)) in self.parts.iter_mut().enumerate() {
            if !plan.copies.is_empty() {
                backend.copy_blocks(&plan.copies)?;
            }
            let handoff = (index > 0).then_some(self.handoff.as_slice());
            backend.run(*program, &batch, handoff, &mut self.out)?;
            std::mem::swap(&mut self.handoff, &mut self.out.handoff);
        }
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
    /// The model computes no numbers, every time alike: its file is broken.
    #[error("the model computes values that are not finite: its weights are broken")]
    NotFinite,
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

#[cfg(all(test, feature = "hip"))]
pub(crate) mod hip_tests;
