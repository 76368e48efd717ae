//! The serving core: what to compute next and which token to take, as plain functions and state.
//!
//! No tokio, no candle, no clock and no global randomness: the worker passes logits in and gets token ids out.

pub mod admission;
pub mod backend;
pub mod block_pool;
pub mod block_table;
pub mod choose;
pub mod exit_code;
pub mod mask;
pub mod memory_plan;
pub mod pacing;
pub mod plan;
pub mod program;
pub mod request;
pub mod sampler;
mod sampling_params;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
pub mod step;

pub use backend::{Backend, DeviceError};
pub use block_pool::Scope;
pub use exit_code::ExitCode;
pub use mask::{BitMask, MaskError, TokenMask};
pub use plan::StepPlan;
pub use request::{Draft, Limits, RequestError, ValidRequest};
pub use sampling_params::SamplingParams;
pub use scheduler::{Advance, Scheduler, SchedulerSettings, SchedulerStats};
pub use sequence::{FinishReason, Sequence, SequenceId, TokenId};
