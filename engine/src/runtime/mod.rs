//! The worker thread and the handle that the async side holds.
//!
//! One synchronous thread owns scheduler and model. Requests reach it through a bounded queue, tokens leave through a
//! channel a request; a dropped receiver ends its sequence before the next step.

mod handle;
mod worker;

pub use handle::{EngineHandle, TokenEvent};
pub use worker::{Worker, WorkerSettings};
