//! The HTTP side: the OpenAI-compatible API on one port, probes and status on another.

mod access;
mod anthropic;
mod anthropic_writer;
pub mod api;
mod blocks;
mod chat;
mod collect;
mod completions;
mod constraint;
mod conversation;
mod delta;
mod echo;
mod embeddings;
mod encode;
mod envelope;
mod fields;
mod framing;
mod generate;
mod health;
pub mod internal;
mod linger;
pub mod listen;
mod logprobs;
mod marks;
mod openai;
mod params;
mod reply;
mod responses;
mod responses_writer;
mod running;
mod tokenize;
mod tools;
mod trace;
mod unserved;

use crate::config::Serve;
use crate::error::Fatal;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::runtime::EngineHandle;
use crate::status::Status;
use crate::text::grammar::GrammarCompiler;
use crate::text::{ChatTemplate, TextTokenizer};
use access::ApiKeys;
use atlas_engine_core::Limits;
pub use encode::Encoder;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// What a loaded model brings.
pub struct Engine {
    /// Where requests go.
    pub handle: EngineHandle,
    /// The model's tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// Cuts prompts into tokens.
    pub encoder: Encoder,
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
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Requests answered at a time.
    pub max_concurrent: usize,
    /// Who may use the API; everybody where there are none.
    pub api_keys: Option<ApiKeys>,
    /// Web origins that browsers let use the API.
    pub cors_origins: Vec<String>,
    /// Where spans of requests go.
    pub spans: Option<Exporter>,
    /// Requests that are being answered.
    pub in_flight: AtomicU64,
    /// Set when the time to finish them is over.
    pub cut_off: watch::Sender<bool>,
    /// Seconds since 1970 at the start of the process.
    pub created: u64,
}

impl App {
    /// The state of a process whose model is not loaded yet.
    ///
    /// # Errors
    /// The file of API keys cannot be read.
    pub fn new(
        arguments: &Serve,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
        spans: Option<Exporter>,
    ) -> Result<Self, Fatal> {
        let keys = arguments
            .api_keys_file
            .clone()
            .map(|path| ApiKeys::open(path.clone()).map_err(|source| Fatal::ApiKeysFile { path, source }));
        Ok(Self {
            status,
            metrics,
            engine: OnceLock::new(),
            served_model_names: arguments.names(),
            request_timeout: arguments.request_timeout,
            max_body_bytes: arguments.max_body_bytes,
            queue_limit: arguments.queue,
            max_concurrent: arguments.max_concurrent_requests.get(),
            api_keys: keys.transpose()?,
            cors_origins: arguments.cors_allow_origins.clone(),
            spans,
            in_flight: AtomicU64::new(0),
            cut_off: watch::Sender::new(false),
            created: unix_seconds(),
        })
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
