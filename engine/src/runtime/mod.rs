//! The worker thread and the handle that the async side holds.
//!
//! One synchronous thread owns scheduler and model. Requests reach it through a bounded inbox, tokens leave through a
//! channel a choice; a dropped receiver ends its sequence, and frees its blocks, before the next step.

mod embed;
mod handle;
mod metrics;
mod smoke;
mod stepper;
pub mod watchdog;
mod worker;

pub use embed::Pooling;
pub use handle::{ChoiceEvent, EngineHandle, PromptReport, Submission, TokenEvent};
pub use metrics::SchedulerMetrics;
pub use worker::{Worker, WorkerSettings};

#[cfg(test)]
#[path = "company_tests.rs"]
mod tests;
