//! The worker's loop: take what arrived, drop what nobody waits for, step, tell.

use super::embed::EmbeddingJob;
use super::handle::{Arrival, Client, EngineHandle, Inbox, PromptReport, Submission, TokenEvent};
use super::smoke;
use super::stepper::{Stepped, Stepper};
use crate::metrics::Metrics;
use crate::model::{Model, ModelError};
use crate::status::Status;
use atlas_engine_core::admission::Capacity;
use atlas_engine_core::choose::Grammar;
use atlas_engine_core::pacing::{Pacer, STEP_TARGET};
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::BLOCK_TOKENS;
use atlas_engine_core::sampler::Sampled;
use atlas_engine_core::{DeviceError, Scheduler, SchedulerSettings, SequenceId, StepPlan, TokenId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What a worker needs besides the model.
pub struct WorkerSettings {
    /// Sequences computed at the same time.
    pub max_batch: usize,
    /// Rows of a step, at most; the model was loaded for as many.
    pub max_rows: usize,
    /// Blocks of the KV cache.
    pub blocks: u32,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
    /// Whether to guess tokens.
    pub speculate: bool,
    /// Where progress is counted.
    pub status: Arc<Status>,
    /// Where times are counted.
    pub metrics: Arc<Metrics>,
}

/// Who waits for a sequence.
struct Choice {
    client: Client,
    began: bool,
    /// Until its first token has told it.
    prompt: Option<PromptReport>,
}

/// Owns scheduler and model.
pub struct Worker {
    stepper: Stepper,
    inbox: Arc<Inbox>,
    choices: HashMap<SequenceId, Choice>,
    job: Option<EmbeddingJob>,
    pacer: Pacer,
    blocks: u32,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Worker {
    /// A worker and the handle to it.
    pub fn new(model: Model, settings: WorkerSettings) -> (Self, EngineHandle) {
        let WorkerSettings {
            max_batch,
            max_rows,
            blocks,
            queue_limit,
            end_tokens,
            speculate,
            status,
            metrics,
        } = settings;
        let capacity = Capacity { queue: queue_limit, blocks: blocks as usize };
        let (handle, inbox) = EngineHandle::new(capacity, status.clone());
        let pacer = Pacer::new(max_batch, max_rows);
        let token_budget = pacer.budget();
        let settings = SchedulerSettings { max_batch, token_budget, blocks, end_tokens, speculate };
        let stepper = Stepper::new(Scheduler::new(settings), model);
        let choices = HashMap::new();
        (Self { stepper, inbox, choices, job: None, pacer, blocks, status, metrics }, handle)
    }

    /// Computes ever larger steps into blocks that nobody uses yet: weights are paged in before the first request, and
    /// the token budget is known.
    ///
    /// # Errors
    /// The device fails.
    pub fn warm_up(&mut self) -> Result<(), ModelError> {
        let most = self.blocks as usize * BLOCK_TOKENS;
        let mut last = None;
        // The first step of all pages weights in and says nothing about later ones.
        self.probe(1)?;
        while let Some(rows) = self.pacer.next_probe(last).filter(|rows| *rows <= most) {
            let mut time = self.probe(rows)?;
            // Others may share the machine: of short steps the fastest of three says most.
            for _ in 0..if time < STEP_TARGET / 2 { 2 } else { 0 } {
                time = time.min(self.probe(rows)?);
            }
            self.pacer.record(rows, time);
            last = Some((rows, time));
        }
        self.apply_pace();
        // What one sequence can expect with little context: what an experimental split over devices costs shows here.
        let rate = 1.0 / self.probe(1)?.as_secs_f64().max(1e-6);
        tracing::info!(token_budget = self.pacer.budget(), tokens_per_second = rate, "warmed up");
        smoke::check(&mut self.stepper.model, self.blocks)
    }

    fn probe(&mut self, rows: usize) -> Result<Duration, ModelError> {
        let chunk = Chunk {
            sequence: SequenceId(u64::MAX),
            start: 0,
            tokens: vec![0; rows],
            drafted: 0,
            logit_rows: 1,
            prompt_rows: 0,
            hidden_rows: 0,
            blocks: (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect(),
        };
        let began = Instant::now();
        self.stepper.model.run(&StepPlan { copies: Vec::new(), chunks: vec![chunk] })?;
        self.status.startup.count_warm_up(rows);
        Ok(began.elapsed())
    }

    fn apply_pace(&mut self) {
        self.stepper.scheduler.set_token_budget(self.pacer.budget());
        self.stepper.scheduler.set_step_cost(self.pacer.step_cost());
        self.metrics.scheduler.token_budget.set(self.pacer.budget() as i64);
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// The device fails; the streams of all requests close.
    pub fn run(mut self) -> Result<(), ModelError> {
        loop {
            self.receive();
            self.drop_abandoned();
            if !self.stepper.scheduler.is_idle() {
                self.step()?;
            }
            self.embed()?;
            self.count();
        }
    }

    /// Puts what arrived in line; sleeps while there is nothing to do at all.
    fn receive(&mut self) {
        let idle = self.stepper.scheduler.is_idle() && self.job.is_none();
        for Arrival { submission, clients } in self.inbox.take(idle) {
            let Submission { request, priority, scope, masks } = submission;
            let sequences = self.stepper.scheduler.submit(&Arc::new(request), priority, scope);
            let mut masks = masks.into_iter();
            for ((id, finished), client) in sequences.into_iter().zip(clients) {
                let mask = masks.next();
                // What has ended already has nobody to wait for; its channel closes.
                if finished.is_none() {
                    if let Some(mask) = mask {
                        let vocabulary = self.stepper.model.config().vocabulary;
                        self.stepper.set_grammar(id, Grammar::new(mask, vocabulary));
                    }
                    self.choices.insert(id, Choice { client, began: false, prompt: None });
                }
            }
        }
    }

    /// Ends the sequences that nobody waits for any more.
    fn drop_abandoned(&mut self) {
        let gone = self.choices.iter().filter(|(_, choice)| choice.client.events.is_closed());
        let gone: Vec<SequenceId> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            self.stepper.cancel(id);
            self.choices.remove(&id);
        }
    }

    /// Gives up what is in line and running: memory that a device lacks for a moment must not end the process. Their
    /// channels close without a finish, which clients are told to try again for.
    fn shed(&mut self, error: &DeviceError) {
        let choices = std::mem::take(&mut self.choices);
        tracing::warn!(choices = choices.len(), %error, "the device is short of memory; requests are given up");
        for (id, choice) in choices {
            self.stepper.cancel(id);
            self.metrics.shed.inc();
            // Only now: whoever is told looks at blocks and metrics of what has happened.
            drop(choice);
        }
    }

    fn step(&mut self) -> Result<(), ModelError> {
        self.status.progress.begin_step();
        let began = Instant::now();
        // What the device takes is watched, and sets the pace; a grammar's time says nothing about either.
        let mut time = Duration::ZERO;
        let computed = || {
            time = began.elapsed();
            self.status.progress.end_step(time);
        };
        let Stepped { plan, advances, prompts, failed } = match self.stepper.step(computed) {
            Ok(done) => done,
            Err(ModelError::Device(error @ DeviceError::OutOfMemory { .. })) => {
                self.status.progress.end_step(began.elapsed());
                self.shed(&error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.status.progress.count_tokens(advances.len() as u64);
        self.pacer.record(plan.token_count(), time);
        self.apply_pace();
        self.metrics.scheduler.observe(&plan, time);
        for chunk in &plan.chunks {
            if let Some(choice) = self.choices.get_mut(&chunk.sequence).filter(|choice| !choice.began) {
                choice.began = true;
                choice.prompt =
                    Some(PromptReport { began, cached_tokens: chunk.start, logprobs: Vec::new() });
                let queued = began.duration_since(choice.client.queued);
                self.metrics.queue_seconds.observe(queued.as_secs_f64());
            }
        }
        for (sequence, told) in prompts {
            let choice = self.choices.get_mut(&sequence);
            if let Some(report) = choice.and_then(|choice| choice.prompt.as_mut()) {
                report.logprobs.extend(told);
            }
        }
        for advance in advances {
            let Some(choice) = self.choices.get_mut(&advance.sequence) else { continue };
            let Sampled { token, logprobs } = advance.sampled;
            let prompt = choice.prompt.take();
            let event = TokenEvent { token, logprobs, finish: advance.finish, prompt };
            // A client that is gone is noticed before the next step.
            let _ = choice.client.events.send(Ok(event));
            if advance.finish.is_some() {
                self.choices.remove(&advance.sequence);
            }
        }
        for (sequence, error) in failed {
            if let Some(choice) = self.choices.remove(&sequence) {
                // As above: nobody is told where the client has left.
                let _ = choice.client.events.send(Err(error));
            }
        }
        Ok(())
    }

    /// Goes on with the text that is being embedded, or begins with the next one.
    fn embed(&mut self) -> Result<(), ModelError> {
        if self.job.as_ref().is_some_and(EmbeddingJob::is_abandoned) {
            self.job = None;
            self.stepper.scheduler.take_back();
        }
        let next = || self.inbox.take_embedding();
        let job = match self.job.take() {
            Some(job) => job,
            None => match next().map(|embedding| EmbeddingJob::begin(embedding, &mut self.stepper)) {
                Some(Ok(job)) => job,
                Some(Err(embedding)) => {
                    self.inbox.put_back(embedding);
                    return Ok(());
                }
                None => return Ok(()),
            },
        };
        self.status.progress.begin_step();
        let began = Instant::now();
        self.job = job.advance(&mut self.stepper, self.pacer.budget())?;
        self.status.progress.end_step(began.elapsed());
        Ok(())
    }

    fn count(&self) {
        let scheduler = &self.stepper.scheduler;
        self.status.progress.running.store(scheduler.running_count() as u64, Relaxed);
        self.inbox.set_in_line(scheduler.waiting_count());
        self.metrics.scheduler.set(scheduler.stats(), scheduler.pool());
    }
}
