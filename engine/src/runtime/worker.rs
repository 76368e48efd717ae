//! The worker's loop: admit, plan, compute, sample, commit.

use super::handle::{EngineHandle, Inbox, Submission, TokenEvent};
use crate::metrics::Metrics;
use crate::model::{Llama, ModelError};
use crate::status::Status;
use atlas_engine_core::sampler::{History, Rules, sample};
use atlas_engine_core::{BitMask, Chunk, Scheduler, Sequence, SequenceId, StepPlan, TokenId, TokenMask};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc::UnboundedSender;

/// Tokens a step. A step should stay well under a second on two cores, so that a long prompt does not hold up others.
const TOKEN_BUDGET: usize = 128;

/// What a worker needs besides the model.
pub struct WorkerSettings {
    /// Sequences computed at the same time.
    pub max_batch: usize,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
    /// Where progress is counted.
    pub status: Arc<Status>,
    /// Where times are counted.
    pub metrics: Arc<Metrics>,
}

/// Owns scheduler and model.
pub struct Worker {
    model: Llama,
    scheduler: Scheduler,
    inbox: Arc<Inbox>,
    events: HashMap<SequenceId, UnboundedSender<TokenEvent>>,
    masks: HashMap<SequenceId, Box<dyn TokenMask>>,
    end_tokens: Vec<TokenId>,
    next_id: u64,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Worker {
    /// A worker and the handle to it.
    pub fn new(model: Llama, settings: WorkerSettings) -> (Self, EngineHandle) {
        let WorkerSettings { max_batch, queue_limit, end_tokens, status, metrics } = settings;
        let (handle, inbox) = EngineHandle::new(queue_limit, status.clone());
        let scheduler = Scheduler::new(max_batch, TOKEN_BUDGET, end_tokens.clone());
        let (events, masks) = (HashMap::new(), HashMap::new());
        (Self { model, scheduler, inbox, events, masks, end_tokens, next_id: 0, status, metrics }, handle)
    }

    /// Computes one token and forgets it, so that weights are paged in before the first request.
    ///
    /// # Errors
    /// The model fails.
    pub fn warm_up(&mut self) -> Result<(), ModelError> {
        let sequence = SequenceId(u64::MAX);
        let chunk = Chunk { sequence, start: 0, tokens: vec![0], wants_logits: true };
        self.model.forward(&StepPlan { chunks: vec![chunk] })?;
        self.model.release(sequence);
        Ok(())
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// The model fails; requests that run see their channels close.
    pub fn run(mut self) -> Result<(), ModelError> {
        loop {
            self.drop_abandoned();
            self.admit();
            self.step()?;
        }
    }

    /// Ends the sequences whose clients are gone.
    fn drop_abandoned(&mut self) {
        let gone: Vec<SequenceId> =
            self.events.iter().filter(|(_, events)| events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.scheduler.remove(id);
            self.end(id);
        }
    }

    /// Fills the batch from the queue; sleeps while there is nothing to do at all.
    fn admit(&mut self) {
        while self.scheduler.has_room() {
            let idle = self.scheduler.running().is_empty();
            let Some(Submission { request, mask, events, queued }) = self.inbox.take(idle) else { break };
            self.metrics.queue_seconds.observe(queued.elapsed().as_secs_f64());
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            self.scheduler.admit(Sequence::new(id, request));
            self.events.insert(id, events);
            self.masks.extend(mask.map(|mask| (id, mask)));
            self.count();
        }
    }

    fn step(&mut self) -> Result<(), ModelError> {
        let plan = self.scheduler.plan();
        let mut logits = self.model.forward(&plan)?;
        let wanted = plan.chunks.iter().filter(|chunk| chunk.wants_logits);
        let mut sampled = Vec::with_capacity(logits.len());
        let mut logprobs = HashMap::new();
        for (chunk, logits) in wanted.zip(&mut logits) {
            let id = chunk.sequence;
            let Some(sequence) = self.scheduler.running().iter().find(|sequence| sequence.id() == id) else {
                sampled.push(0);
                continue;
            };
            let mut allowed = self.masks.contains_key(&id).then(|| BitMask::new(logits.len()));
            if let (Some(grammar), Some(allowed)) = (self.masks.get_mut(&id), &mut allowed) {
                grammar.allowed(allowed);
            }
            let history = History { prompt: sequence.prompt(), generated: sequence.generated() };
            let ends = [sequence.stop_tokens(), &self.end_tokens].concat();
            let rules = Rules { ends: &ends, allowed: allowed.as_mut().map(|allowed| &*allowed.words_mut()) };
            let picked = sample(logits, sequence.sampling(), &history, &rules);
            if let Some(grammar) = self.masks.get_mut(&id) {
                grammar.accept(picked.token);
            }
            sampled.push(picked.token);
            logprobs.extend(picked.logprobs.map(|logprobs| (id, logprobs)));
        }
        let advances = self.scheduler.commit(&plan, &sampled);
        self.status.progress.add_tokens(advances.len() as u64);
        for advance in advances {
            if let Some(events) = self.events.get(&advance.sequence) {
                let logprobs = logprobs.remove(&advance.sequence);
                // A client that is gone is noticed before the next step.
                let _ = events.send(TokenEvent { token: advance.token, logprobs, finish: advance.finish });
            }
            if advance.finish.is_some() {
                self.end(advance.sequence);
            }
        }
        Ok(())
    }

    /// Forgets a sequence that the scheduler has given up already.
    fn end(&mut self, id: SequenceId) {
        self.events.remove(&id);
        self.masks.remove(&id);
        self.model.release(id);
        self.count();
    }

    fn count(&self) {
        self.status.progress.running.store(self.events.len() as u64, Relaxed);
    }
}
