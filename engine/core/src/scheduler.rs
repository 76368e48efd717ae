//! What the next step computes.
//!
//! There is no prefill and no decode mode: every running sequence lacks some tokens and gets some of them, first one
//! each, so that nobody waits for another's long prompt, then the rest of the budget in order of arrival. Where blocks
//! run short, the last in line gives its blocks up and starts over later; recomputing is cheap, since what it had is
//! still cached for a while. It knows no clock and no device.

mod planning;

use crate::admission::{Place, WaitingLine};
use crate::block_pool::{BlockId, BlockPool, Scope};
use crate::block_table::BlockTable;
use crate::plan::{Chunk, StepPlan};
use crate::request::ValidRequest;
use crate::sampler::Sampled;
use crate::sequence::{FinishReason, Sequence, SequenceId, TokenId};
use crate::speculation::{Acceptance, StepCost};
use std::sync::Arc;

/// Rows of a step that are for log-probabilities of prompts, beside one a sequence: logits take much memory.
pub const PROMPT_ROWS: usize = 16;

/// What a scheduler works with.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Sequences in a step, at most.
    pub max_batch: usize,
    /// Tokens in a step, at most; at least one a sequence whatever is set.
    pub token_budget: usize,
    /// Blocks of the KV cache.
    pub blocks: u32,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
    /// Whether to guess tokens.
    pub speculate: bool,
}

/// A sequence got a token, or had ended before it began.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// Which sequence.
    pub sequence: SequenceId,
    /// The token.
    pub sampled: Sampled,
    /// Set where it is the last one; the sequence is gone from the scheduler then.
    pub finish: Option<FinishReason>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that gave their blocks up to others.
    pub preemptions: u64,
    /// Tokens of admitted sequences.
    pub admitted_tokens: u64,
    /// Those of them that needed no computing.
    pub prefix_hit_tokens: u64,
    /// Guessed tokens.
    pub drafted_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    scope: Scope,
    sequence: Sequence,
    table: BlockTable,
    acceptance: Acceptance,
    /// The request's first choice, whose prompt the others share.
    leader: SequenceId,
}

/// The sequences and the blocks they use.
#[derive(Debug)]
pub struct Scheduler {
    settings: SchedulerSettings,
    pool: BlockPool,
    /// In order of their places.
    running: Vec<Entry>,
    waiting: WaitingLine<Entry>,
    /// Blocks that somebody outside computes in.
    lent: Vec<BlockId>,
    arrivals: u64,
    stats: SchedulerStats,
    cost: StepCost,
}

impl Scheduler {
    /// A scheduler without work.
    #[must_use]
    pub fn new(settings: SchedulerSettings) -> Self {
        let max_batch = settings.max_batch.max(1);
        let token_budget = settings.token_budget.max(max_batch);
        Self {
            pool: BlockPool::new(settings.blocks),
            settings: SchedulerSettings { max_batch, token_budget, ..settings },
            running: Vec::new(),
            waiting: WaitingLine::default(),
            lent: Vec::new(),
            arrivals: 0,
            stats: SchedulerStats::default(),
            cost: StepCost::default(),
        }
    }

    /// Puts every choice of a request in line. [`crate::admission::check`] has let the request in. The answer is each
    /// choice's sequence and, where its resumed tokens end it already, the reason; that one is not in line.
    pub fn submit(
        &mut self,
        request: &Arc<ValidRequest>,
        priority: i32,
        scope: Scope,
    ) -> Vec<(SequenceId, Option<FinishReason>)> {
        let leader = SequenceId(self.arrivals);
        let choices = 0..request.choices();
        choices
            .map(|choice| {
                let id = SequenceId(self.arrivals);
                let place = Place::new(priority, self.arrivals);
                self.arrivals += 1;
                let sequence = Sequence::new(id, request.clone(), choice);
                let finished = sequence.finished(&self.settings.end_tokens);
                if finished.is_none() {
                    let (table, acceptance) = (BlockTable::new(scope), Acceptance::default());
                    self.waiting.insert(place, Entry { place, scope, sequence, table, acceptance, leader });
                }
                (id, finished)
            })
            .collect()
    }

    /// Ends a sequence that nobody waits for any more; its blocks are free at once.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|entry| entry.sequence.id() == id) {
            let mut entry = self.running.remove(index);
            entry.table.release(&mut self.pool, entry.scope);
        } else if let Some(place) = self.waiting_place(id) {
            self.waiting.take(place);
        }
        self.debug_check();
    }

    fn waiting_place(&self, id: SequenceId) -> Option<Place> {
        let mut waiting = self.waiting.iter();
        waiting.find(|(_, entry)| entry.sequence.id() == id).map(|(place, _)| place)
    }

    /// A running sequence.
    #[must_use]
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().map(|entry| &entry.sequence).find(|sequence| sequence.id() == id)
    }

    /// Sequences that have blocks.
    #[must_use]
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    /// Sequences in line.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The blocks.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        self.stats
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.settings.end_tokens
    }

    /// Changes how many tokens a step computes at most.
    pub fn set_token_budget(&mut self, tokens: usize) {
        self.settings.token_budget = tokens.max(self.settings.max_batch);
    }

    /// Tells what steps cost, for drafts to be weighed against.
    pub fn set_step_cost(&mut self, cost: StepCost) {
        self.cost = cost;
    }

    /// Lends blocks for work that is no sequence, such as an embedding, and leaves one to each that runs; `None` where
    /// that many are not free now.
    pub fn lend(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count + self.running.len() > self.pool.free_count() {
            return None;
        }
        let blocks: Vec<BlockId> = (0..count).filter_map(|_| self.pool.take()).collect();
        self.lent.extend_from_slice(&blocks);
        Some(blocks)
    }

    /// Takes all lent blocks back.
    pub fn take_back(&mut self) {
        for id in self.lent.drain(..) {
            self.pool.release(id);
        }
        self.debug_check();
    }

    /// Takes over a computed step: the tokens drawn for each chunk, in the plan's order; none where no logits were
    /// wanted, else at least one and as many more as drafts were right.
    pub fn commit(&mut self, plan: &StepPlan, results: Vec<Vec<Sampled>>) -> Vec<Advance> {
        debug_assert_eq!(results.len(), plan.chunks.len());
        let mut advances = Vec::new();
        for (chunk, results) in plan.chunks.iter().zip(results) {
            self.commit_chunk(chunk, results, &mut advances);
        }
        self.debug_check();
        advances
    }

    fn commit_chunk(&mut self, chunk: &Chunk, results: Vec<Sampled>, advances: &mut Vec<Advance>) {
        let index = self.running.iter().position(|entry| entry.sequence.id() == chunk.sequence);
        let Some(index) = index else { return };
        let Entry { sequence, table, acceptance, scope, .. } = &mut self.running[index];
        let draw_rows = chunk.draw_rows();
        debug_assert!(results.len() <= draw_rows && results.is_empty() == (draw_rows == 0));
        sequence.tell_prompt_rows(chunk.prompt_rows);
        let accepted = results.len().saturating_sub(1);
        self.stats.accepted_tokens += accepted as u64;
        if draw_rows > 0 {
            acceptance.learn(chunk.drafted, accepted);
        }
        let mut finished = None;
        for sampled in results {
            sequence.push(sampled.token);
            finished = sequence.finished(&self.settings.end_tokens);
            advances.push(Advance { sequence: chunk.sequence, sampled, finish: finished });
            if finished.is_some() {
                break;
            }
        }
        // A right draft's keys and values are those of the token; a wrong one's are written over.
        let computed = chunk.start + chunk.tokens.len() - chunk.drafted + accepted;
        sequence.set_computed(computed.min(sequence.token_count()));
        let tokens = sequence.tokens();
        table.publish(&mut self.pool, |position| tokens[position], sequence.num_computed_tokens());
        table.shrink(&mut self.pool, sequence.token_count());
        if finished.is_some() {
            table.release(&mut self.pool, *scope);
            self.running.remove(index);
        }
    }

    /// What must hold between calls, in debug builds.
    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.assert_consistent();
        }
    }

    /// Asserts that every block is referenced by exactly the tables that name it.
    ///
    /// # Panics
    /// It is not, which is a defect.
    pub fn assert_consistent(&self) {
        self.pool.assert_consistent();
        let mut references = vec![0; self.pool.len()];
        for block in self.running.iter().flat_map(|entry| entry.table.blocks()).chain(&self.lent) {
            references[*block as usize] += 1;
        }
        for (block, references) in references.into_iter().enumerate() {
            assert_eq!(self.pool.references(block as u32), references, "block {block}");
        }
        assert!(self.running.is_sorted_by_key(|entry| entry.place), "running sequences stand in line");
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
