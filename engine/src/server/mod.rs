//! The HTTP side: the OpenAI-compatible API on one port, probes and status on another.

pub mod api;
mod chat;
mod collect;
mod completions;
mod conversation;
mod fields;
mod generate;
pub mod health;
mod logprobs;
mod openai;
mod params;
mod reply;
mod tokenize;
mod tools;

use crate::config::Serve;
use crate::metrics::Metrics;
use crate::runtime::EngineHandle;
use crate::status::Status;
use crate::text::grammar::GrammarCompiler;
use crate::text::{ChatTemplate, TextTokenizer};
use atlas_engine_core::Limits;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a loaded model brings.
pub struct Engine {
    /// Where requests go.
    pub handle: EngineHandle,
    /// The model's tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// The model's chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// Compiles what answers must hold to.
    pub grammars: Arc<GrammarCompiler>,
    /// What requests may ask for.
    pub limits: Limits,
}

/// What every handler sees.
pub struct App {
    /// The process's status.
    pub status: Arc<Status>,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// Set once the model is loaded.
    pub engine: OnceLock<Engine>,
    /// Model ids that clients may ask for.
    pub served_model_names: Vec<String>,
    /// Time a request gets.
    pub request_timeout: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Requests that are being answered.
    pub in_flight: AtomicU64,
    /// Seconds since 1970 at the start of the process.
    pub created: u64,
}

impl App {
    /// The state of a process whose model is not loaded yet.
    pub fn new(arguments: &Serve, status: Arc<Status>, metrics: Arc<Metrics>) -> Self {
        Self {
            status,
            metrics,
            engine: OnceLock::new(),
            served_model_names: arguments.served_model_names.clone(),
            request_timeout: arguments.request_timeout,
            max_body_bytes: arguments.max_body_bytes,
            in_flight: AtomicU64::new(0),
            created: unix_seconds(),
        }
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
