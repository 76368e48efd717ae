//! The serving core: what to compute next and which token to take, as plain functions and state.
//!
//! No tokio, no candle, no clock and no global randomness: the worker passes logits in and gets token ids out.
//! The KV cache still belongs to each sequence; a paged pool will sit behind [`scheduler::Scheduler::plan`], which
//! is the only place that hands out work.

pub mod admission;
pub mod backend;
pub mod exit_code;
pub mod mask;
pub mod program;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod sequence;

pub use admission::{AdmissionQueue, QueueFull};
pub use backend::{Backend, DeviceError};
pub use exit_code::ExitCode;
pub use mask::{BitMask, TokenMask};
pub use request::{Draft, Limits, RequestError, SamplingParams, ValidRequest};
pub use scheduler::{Advance, Chunk, Scheduler, StepPlan};
pub use sequence::{FinishReason, Sequence, SequenceId, TokenId};
