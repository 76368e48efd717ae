//! One step after the other: plan, compute, choose, commit. No thread, no channel, no clock.

use crate::model::{Model, ModelError};
use atlas_engine_core::choose::{Grammar, choose, prompt_logprobs};
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{Advance, MaskError, Scheduler, SequenceId, StepPlan};
use std::collections::HashMap;

/// What came of a step.
pub struct Stepped {
    /// What was computed.
    pub plan: StepPlan,
    /// Tokens.
    pub advances: Vec<Advance>,
    /// Log-probabilities of prompts, for sequences that tell them; each follows on what was told before.
    pub prompts: Vec<(SequenceId, Vec<TokenLogprobs>)>,
    /// Sequences whose grammar cannot tell how they may go on; they are ended.
    pub failed: Vec<(SequenceId, MaskError)>,
}

/// Scheduler and model together.
pub struct Stepper {
    /// Which sequences there are and what they have.
    pub scheduler: Scheduler,
    /// What computes.
    pub model: Model,
    grammars: HashMap<SequenceId, Grammar>,
}

impl Stepper {
    /// A stepper without work.
    pub fn new(scheduler: Scheduler, model: Model) -> Self {
        Self { scheduler, model, grammars: HashMap::new() }
    }

    /// Gives a sequence a grammar.
    pub fn set_grammar(&mut self, id: SequenceId, grammar: Grammar) {
        self.grammars.insert(id, grammar);
    }

    /// Ends a sequence.
    pub fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        self.grammars.remove(&id);
    }

    /// Computes one step. `computed` is called once the device is done, before tokens are chosen.
    ///
    /// # Errors
    /// The device fails.
    pub fn step(&mut self, computed: impl FnOnce()) -> Result<Stepped, ModelError> {
        let plan = self.scheduler.plan();
        if plan.chunks.is_empty() {
            return Ok(Stepped { plan, advances: Vec::new(), prompts: Vec::new(), failed: Vec::new() });
        }
        let vocabulary = self.model.config().vocabulary;
        let mut logits = self.model.run(&plan)?;
        computed();
        let mut results = Vec::with_capacity(plan.chunks.len());
        let (mut prompts, mut failed) = (Vec::new(), Vec::new());
        for chunk in &plan.chunks {
            let (own, rest) = std::mem::take(&mut logits).split_at_mut(chunk.logit_rows * vocabulary);
            logits = rest;
            let sequence = self.scheduler.sequence(chunk.sequence).filter(|_| chunk.logit_rows > 0);
            let (of_prompt, own) = own.split_at_mut(chunk.prompt_rows * vocabulary);
            if let Some(sequence) = sequence.filter(|_| chunk.prompt_rows > 0) {
                let told =
                    prompt_logprobs(chunk, of_prompt, sequence.prompt(), sequence.prompt_alternatives());
                prompts.push((chunk.sequence, told));
            }
            let sequence = sequence.filter(|_| chunk.draw_rows() > 0);
            let chosen = sequence.map_or(Ok(Vec::new()), |sequence| {
                let grammar = self.grammars.get_mut(&chunk.sequence);
                choose(chunk, own, sequence, self.scheduler.end_tokens(), grammar)
            });
            results.push(chosen.unwrap_or_else(|error| {
                failed.push((chunk.sequence, error));
                Vec::new()
            }));
        }
        // What is gone takes nothing over.
        failed.iter().for_each(|(id, _)| self.cancel(*id));
        let advances = self.scheduler.commit(&plan, results);
        for advance in advances.iter().filter(|advance| advance.finish.is_some()) {
            self.grammars.remove(&advance.sequence);
        }
        Ok(Stepped { plan, advances, prompts, failed })
    }
}
