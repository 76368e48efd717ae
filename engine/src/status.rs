//! What the process tells about itself: shared between the loader, the worker and both servers.

use crate::fetch::display_name;
use crate::startup::{Download, Startup};
use crate::vram::Vram;
use atlas_kernels::hip::Card;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Where the process stands. The names are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The model file is downloaded or checked.
    Fetching,
    /// Weights are copied.
    Loading,
    /// The first step runs.
    WarmingUp,
    /// Requests are served.
    Serving,
    /// Running requests finish, new ones are refused.
    Draining,
    /// The process is about to end with an error.
    Failed,
}

const PHASES: [Phase; 6] =
    [Phase::Fetching, Phase::Loading, Phase::WarmingUp, Phase::Serving, Phase::Draining, Phase::Failed];

/// Counters of the worker.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    /// Sequences that are computed.
    pub running: AtomicU64,
    /// Requests in the queue.
    pub waiting: AtomicU64,
    tokens_generated: AtomicU64,
    /// Milliseconds after `started`; meaningless before the first token.
    last_token: AtomicU64,
    steps_begun: AtomicU64,
    /// Equal to `steps_begun` between steps.
    steps_done: AtomicU64,
    /// Milliseconds after `started`.
    last_change: AtomicU64,
    slowest_step_millis: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            started: Instant::now(),
            running: zero(),
            waiting: zero(),
            tokens_generated: zero(),
            last_token: zero(),
            steps_begun: zero(),
            steps_done: zero(),
            last_change: zero(),
            slowest_step_millis: zero(),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A step begins.
    pub fn begin_step(&self) {
        self.last_change.store(self.millis(), Relaxed);
        self.steps_begun.fetch_add(1, Relaxed);
    }

    /// A step brought tokens.
    pub fn count_tokens(&self, tokens: u64) {
        if tokens > 0 {
            self.last_token.store(self.millis(), Relaxed);
            self.tokens_generated.fetch_add(tokens, Relaxed);
        }
    }

    /// The device is done with the step.
    pub fn end_step(&self, time: Duration) {
        let now = self.millis();
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.slowest_step_millis.fetch_max(millis, Relaxed);
        self.last_change.store(now, Relaxed);
        self.steps_done.fetch_add(1, Relaxed);
    }

    /// The number of the step that runs, where one does, and the time of the slowest that came back.
    pub fn step(&self) -> (Option<u64>, Duration) {
        let (done, begun) = (self.steps_done.load(Relaxed), self.steps_begun.load(Relaxed));
        let slowest = Duration::from_millis(self.slowest_step_millis.load(Relaxed));
        ((begun != done).then_some(begun), slowest)
    }

    fn json(&self) -> Value {
        let tokens = self.tokens_generated.load(Relaxed);
        let silence = (tokens > 0).then(|| self.millis().saturating_sub(self.last_token.load(Relaxed)));
        let (step, slowest) = self.step();
        let in_step = step.map(|_| self.millis().saturating_sub(self.last_change.load(Relaxed)));
        json!({
            "steps": self.steps_done.load(Relaxed),
            "millisInStep": in_step,
            "slowestStepMillis": u64::try_from(slowest.as_millis()).unwrap_or(u64::MAX),
            "tokensGenerated": tokens,
            "millisSinceLastToken": silence,
        })
    }
}

fn card_json(card: &Card) -> Value {
    let Card { pci_address, gfx_target, vram_bytes, .. } = card;
    json!({"pciAddress": pci_address, "gfxTarget": gfx_target, "vramBytes": vram_bytes})
}

/// Everything that `/internal/status` and `/readyz` show.
#[derive(Debug)]
pub struct Status {
    phase: AtomicU8,
    /// Milliseconds after the start of the process.
    phase_since: AtomicU64,
    error: Mutex<Option<String>>,
    /// Download of the model.
    pub download: Download,
    /// Loading and warming up.
    pub startup: Startup,
    /// The worker's counters.
    pub progress: Progress,
    served_model_names: Vec<String>,
    model_file: String,
    context_tokens: usize,
    max_batch: usize,
    backend: &'static str,
    /// The card, with the hip backend.
    pub card: Option<Card>,
    /// Its memory.
    pub vram: Option<Vram>,
    /// What the model's header says, once it is read.
    pub header: OnceLock<Value>,
}

impl Status {
    /// The status of a process that has just begun.
    pub fn new(arguments: &crate::config::Serve, card: Option<Card>) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Fetching as u8),
            phase_since: AtomicU64::new(0),
            error: Mutex::new(None),
            download: Download::default(),
            startup: Startup::default(),
            progress: Progress::new(),
            served_model_names: arguments.names(),
            model_file: display_name(&arguments.model),
            context_tokens: arguments.context_tokens.get(),
            max_batch: arguments.max_batch.get(),
            backend: if card.is_some() { "hip" } else { "cpu" },
            vram: card.clone().map(Vram::watch),
            card,
            header: OnceLock::new(),
        }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        PHASES.get(usize::from(self.phase.load(Relaxed))).copied().unwrap_or(Phase::Failed)
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        let now = self.progress.millis();
        let milliseconds_before = now.saturating_sub(self.phase_since.swap(now, Relaxed));
        self.phase.store(phase as u8, Relaxed);
        tracing::info!(?phase, milliseconds_before, "phase");
    }

    /// Enters the last phase with its reason.
    pub fn fail(&self, message: &str) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_owned());
        self.phase.store(Phase::Failed as u8, Relaxed);
    }

    /// The model file's name without its extension.
    pub fn model_file(&self) -> &str {
        &self.model_file
    }

    /// The body of `/readyz`.
    pub fn readiness(&self) -> Value {
        let phase = self.phase();
        json!({
            "ready": phase == Phase::Serving,
            "phase": format!("{phase:?}"),
            "millisInPhase": self.progress.millis().saturating_sub(self.phase_since.load(Relaxed)),
            "download": self.download.json(),
            "loading": self.startup.loading(),
            "warmUp": self.startup.warm_up(),
            "error": *self.error.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// The body of `/internal/status`.
    pub fn json(&self) -> Value {
        let phase = self.phase();
        json!({
            "phase": format!("{phase:?}"),
            "ready": phase == Phase::Serving,
            "servedModelNames": self.served_model_names,
            "modelFile": self.model_file,
            "backend": self.backend,
            "contextTokens": self.context_tokens,
            "maxBatch": self.max_batch,
            "download": self.download.json(),
            "queue": {"running": self.progress.running.load(Relaxed), "waiting": self.progress.waiting.load(Relaxed)},
            "progress": self.progress.json(),
            "card": self.card.as_ref().map(card_json),
            "vram": self.vram.as_ref().map(Vram::json),
            "header": self.header.get(),
            "error": *self.error.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }
}
