//! What the next step computes.
//!
//! There is no prefill and no decode mode: every running sequence lacks some tokens and gets some of them, first one
//! each, so that nobody waits for another's long prompt, then the rest of the budget in order of arrival.

use crate::sequence::{FinishReason, Sequence, SequenceId, TokenId};

/// Consecutive tokens of one sequence, to be computed in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whose tokens they are.
    pub sequence: SequenceId,
    /// Position of the first one.
    pub start: usize,
    /// The tokens; never empty.
    pub tokens: Vec<TokenId>,
    /// Whether the last one's logits are wanted: it is the last token that the sequence has.
    pub wants_logits: bool,
}

/// The work of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepPlan {
    /// At most one chunk a sequence.
    pub chunks: Vec<Chunk>,
}

impl StepPlan {
    /// Tokens in all chunks.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }
}

/// A sequence got a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// Which sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: TokenId,
    /// Set where it is the last one; the sequence is gone from the scheduler then.
    pub finish: Option<FinishReason>,
}

/// The running sequences.
#[derive(Debug)]
pub struct Scheduler {
    running: Vec<Sequence>,
    max_batch: usize,
    token_budget: usize,
    end_tokens: Vec<TokenId>,
}

impl Scheduler {
    /// A scheduler that runs at most `max_batch` sequences and computes at most `token_budget` tokens a step (at
    /// least one a sequence).
    #[must_use]
    pub fn new(max_batch: usize, token_budget: usize, end_tokens: Vec<TokenId>) -> Self {
        let max_batch = max_batch.max(1);
        Self { running: Vec::new(), max_batch, token_budget: token_budget.max(max_batch), end_tokens }
    }

    /// Whether one more sequence can run.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.running.len() < self.max_batch
    }

    /// Starts a sequence. The caller has asked [`Self::has_room`].
    pub fn admit(&mut self, sequence: Sequence) {
        debug_assert!(self.has_room(), "admitted beyond max_batch");
        self.running.push(sequence);
    }

    /// The running sequences, oldest first.
    #[must_use]
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Ends a sequence, finished or not.
    pub fn remove(&mut self, id: SequenceId) {
        self.running.retain(|sequence| sequence.id() != id);
    }

    /// The next step's work; empty only when nothing runs.
    #[must_use]
    pub fn plan(&self) -> StepPlan {
        let mut spare = self.token_budget.saturating_sub(self.running.len());
        let chunks = self.running.iter().map(|sequence| {
            let lacking = sequence.num_lacking_tokens();
            let extra = (lacking - 1).min(spare);
            spare -= extra;
            Chunk {
                sequence: sequence.id(),
                start: sequence.num_computed_tokens(),
                tokens: sequence.next_tokens(1 + extra),
                wants_logits: 1 + extra == lacking,
            }
        });
        StepPlan { chunks: chunks.collect() }
    }

    /// Takes over a computed step: `sampled` holds one token for each chunk that wanted logits, in the plan's order.
    pub fn commit(&mut self, plan: &StepPlan, sampled: &[TokenId]) -> Vec<Advance> {
        debug_assert_eq!(sampled.len(), plan.chunks.iter().filter(|chunk| chunk.wants_logits).count());
        let mut sampled = sampled.iter();
        let mut advances = Vec::new();
        for chunk in &plan.chunks {
            let token = if chunk.wants_logits { sampled.next() } else { None };
            let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id() == chunk.sequence)
            else {
                continue;
            };
            sequence.mark_computed(chunk.tokens.len());
            if let Some(token) = token {
                let finish = sequence.push(*token, &self.end_tokens);
                advances.push(Advance { sequence: chunk.sequence, token: *token, finish });
            }
        }
        for advance in advances.iter().filter(|advance| advance.finish.is_some()) {
            self.remove(advance.sequence);
        }
        advances
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Draft, Limits, ValidRequest};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const END: TokenId = 7;

    fn sequence(id: u64, prompt: usize, max_tokens: usize) -> Sequence {
        let prompt = (0..prompt).map(|index| 100 + index as u32).collect();
        let draft = Draft { max_tokens: Some(max_tokens), ..Draft::greedy(prompt) };
        let limits = Limits { context_tokens: 1000, vocabulary: 1000 };
        Sequence::new(SequenceId(id), ValidRequest::new(draft, &limits).unwrap())
    }

    #[test]
    fn a_long_prompt_is_cut_into_chunks_and_does_not_stop_the_others() {
        let mut scheduler = Scheduler::new(2, 4, vec![END]);
        scheduler.admit(sequence(1, 1, 3));
        scheduler.admit(sequence(2, 8, 3));
        let plan = scheduler.plan();
        assert_eq!(plan.chunks[0].tokens, vec![100]);
        assert_eq!(
            (plan.chunks[1].tokens.as_slice(), plan.chunks[1].wants_logits),
            (&[100, 101, 102][..], false)
        );
        let advances = scheduler.commit(&plan, &[5]);
        assert_eq!(advances, vec![Advance { sequence: SequenceId(1), token: 5, finish: None }]);
        let plan = scheduler.plan();
        assert_eq!((plan.chunks[0].start, plan.chunks[0].tokens.as_slice()), (1, &[5][..]));
        assert_eq!((plan.chunks[1].start, plan.chunks[1].tokens.as_slice()), (3, &[103, 104, 105][..]));
    }

    #[test]
    fn an_end_token_and_the_limit_finish_a_sequence() {
        let mut scheduler = Scheduler::new(2, 16, vec![END]);
        scheduler.admit(sequence(1, 2, 9));
        scheduler.admit(sequence(2, 2, 1));
        let advances = scheduler.commit(&scheduler.plan(), &[END, 3]);
        assert_eq!(advances[0].finish, Some(FinishReason::Stop));
        assert_eq!(advances[1].finish, Some(FinishReason::Length));
        assert!(scheduler.running().is_empty() && scheduler.plan().chunks.is_empty());
    }

    proptest! {
        /// Whatever arrives and leaves: a step with running sequences is never empty and never over budget, chunks
        /// continue where the last one ended, and every sequence ends after exactly its number of tokens.
        #[test]
        fn every_sequence_is_computed_once_and_ends(
            arrivals in prop::collection::vec((1_usize..40, 1_usize..12, 0_usize..30), 1..12),
            max_batch in 1_usize..5, budget in 1_usize..20, cancel in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut scheduler = Scheduler::new(max_batch, budget, vec![END]);
            let mut waiting: Vec<_> = arrivals.iter().enumerate().rev().collect();
            let mut seen: BTreeMap<SequenceId, (usize, usize)> = BTreeMap::new();
            let mut cancelled = Vec::new();
            for step in 0..2000 {
                while scheduler.has_room() {
                    let Some((id, (prompt, max_tokens, _))) = waiting.pop() else { break };
                    scheduler.admit(sequence(id as u64, *prompt, *max_tokens));
                }
                if cancel.get(step).copied().unwrap_or(false) && let Some(first) = scheduler.running().first() {
                    let id = first.id();
                    scheduler.remove(id);
                    cancelled.push(id);
                }
                if scheduler.running().is_empty() {
                    if waiting.is_empty() { break }
                    continue;
                }
                let plan = scheduler.plan();
                prop_assert_eq!(plan.chunks.len(), scheduler.running().len());
                prop_assert!(plan.token_count() <= budget.max(max_batch));
                for chunk in &plan.chunks {
                    let (computed, _) = seen.entry(chunk.sequence).or_default();
                    prop_assert_eq!(chunk.start, *computed);
                    prop_assert!(!chunk.tokens.is_empty());
                    *computed += chunk.tokens.len();
                }
                let wanted = plan.chunks.iter().filter(|chunk| chunk.wants_logits).count();
                for advance in scheduler.commit(&plan, &vec![3; wanted]) {
                    seen.entry(advance.sequence).or_default().1 += 1;
                }
            }
            prop_assert!(scheduler.running().is_empty());
            for (index, (prompt, max_tokens, _)) in arrivals.iter().enumerate() {
                let id = SequenceId(index as u64);
                if !cancelled.contains(&id) {
                    prop_assert_eq!(seen[&id], (prompt + max_tokens - 1, *max_tokens));
                }
            }
        }
    }
}
