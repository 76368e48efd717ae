//! Whose tokens the next step computes, who makes room for them, and who is let in.

use super::{Entry, PROMPT_ROWS, Scheduler};
use crate::plan::{Chunk, StepPlan};
use crate::sequence::TokenId;
use crate::speculation::propose;

impl Scheduler {
    /// The next step's work; empty only where there is none, or where nothing fits beside what is lent.
    pub fn plan(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        let preempted = self.plan_running(&mut plan);
        // What was just taken back is not handed out again in the same step, unless nothing else is left to do.
        if !preempted || plan.chunks.is_empty() {
            self.admit(&mut plan);
        }
        let stuck = plan.chunks.is_empty() && !self.is_idle() && self.lent.is_empty();
        debug_assert!(!stuck, "an empty step although there is work");
        self.debug_check();
        plan
    }

    /// Chunks for the sequences that run; whether one had to give up its blocks.
    fn plan_running(&mut self, plan: &mut StepPlan) -> bool {
        let before = self.stats.preemptions;
        let mut spare = self.settings.token_budget - self.running.len();
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index].sequence;
            let (from, lacking) = (sequence.num_computed_tokens(), sequence.num_lacking_tokens());
            let count = 1 + (lacking - 1).min(spare);
            let count = sequence.within_prompt_rows(from, count, spare_prompt_rows(plan));
            if self.make_room(index, from, from + count) {
                let drafts = if lacking == 1 { self.drafts(index, spare) } else { Vec::new() };
                spare -= count - 1 + drafts.len();
                self.push_chunk(index, count, &drafts, plan);
                index += 1;
            }
        }
        self.stats.preemptions > before
    }

    /// Frees blocks from the end of the line until a sequence can write these positions. `false` where it was itself
    /// the last and is gone.
    fn make_room(&mut self, index: usize, from: usize, to: usize) -> bool {
        while self.running[index].table.lacking(&self.pool, from, to) > self.pool.free_count() {
            let last = self.running.pop();
            let Some(mut entry) = last else { return false };
            self.stats.preemptions += 1;
            entry.table.release(&mut self.pool, entry.scope);
            entry.sequence.set_computed(0);
            self.waiting.insert(entry.place, entry);
            if self.running.len() == index {
                return false;
            }
        }
        true
    }

    /// Guesses for a sequence that lacks its last token only, as far as budget and free blocks go.
    fn drafts(&self, index: usize, spare: usize) -> Vec<TokenId> {
        let Entry { sequence, table, acceptance, .. } = &self.running[index];
        if !self.settings.speculate {
            return Vec::new();
        }
        let length = acceptance.draft_length(self.cost).min(spare).min(sequence.remaining_tokens() - 1);
        let drafts = propose(sequence.tokens(), length);
        let from = sequence.num_computed_tokens();
        let lacking = table.lacking(&self.pool, from, from + 1 + drafts.len());
        if lacking > self.pool.free_count() { Vec::new() } else { drafts.to_vec() }
    }

    fn push_chunk(&mut self, index: usize, count: usize, drafts: &[TokenId], plan: &mut StepPlan) {
        let Entry { sequence, table, .. } = &mut self.running[index];
        let start = sequence.num_computed_tokens();
        let due = &sequence.tokens()[start..start + count];
        let prompt_rows = sequence.prompt_rows(start, start + count);
        let draw_rows = if start + count == sequence.token_count() { 1 + drafts.len() } else { 0 };
        plan.copies.extend(table.grow(&mut self.pool, start, start + count + drafts.len()));
        plan.chunks.push(Chunk {
            sequence: sequence.id(),
            start,
            tokens: [due, drafts].concat(),
            drafted: drafts.len(),
            logit_rows: prompt_rows + draw_rows,
            prompt_rows,
            hidden_rows: 0,
            blocks: table.blocks().to_vec(),
        });
        self.stats.drafted_tokens += drafts.len() as u64;
    }

    /// Lets sequences in while there is room for them and budget left.
    fn admit(&mut self, plan: &mut StepPlan) {
        while self.running.len() < self.settings.max_batch {
            let spare = self.settings.token_budget - plan.token_count();
            let next =
                self.waiting.iter().find(|(_, entry)| !self.is_deferred(entry)).map(|(place, _)| place);
            let Some(mut entry) = next.filter(|_| spare > 0).and_then(|place| self.waiting.take(place))
            else {
                return;
            };
            let computed = self.take_known(&mut entry);
            let tokens = entry.sequence.token_count();
            let lacking = entry.table.lacking(&self.pool, computed, tokens);
            // One block more for each that runs, or the newcomer would have to leave again soon.
            if lacking + self.running.len() > self.pool.free_count() {
                entry.table.release(&mut self.pool, entry.scope);
                self.waiting.insert(entry.place, entry);
                return;
            }
            entry.sequence.set_computed(computed);
            self.stats.admitted_tokens += tokens as u64;
            self.stats.prefix_hit_tokens += computed as u64;
            let index = self.running.partition_point(|other| other.place < entry.place);
            self.running.insert(index, entry);
            let count = (tokens - computed).min(spare);
            let sequence = &self.running[index].sequence;
            let count = sequence.within_prompt_rows(computed, count, spare_prompt_rows(plan));
            self.push_chunk(index, count, &[], plan);
        }
    }

    /// Whether a sequence should wait for its request's first choice to have computed the prompt that both share.
    fn is_deferred(&self, entry: &Entry) -> bool {
        let leader = self.leader_of(entry);
        leader.is_some_and(|leader| leader.sequence.num_computed_tokens() < leader.sequence.prompt().len())
    }

    fn leader_of(&self, entry: &Entry) -> Option<&Entry> {
        let other = entry.leader != entry.sequence.id();
        self.running.iter().find(|running| other && running.sequence.id() == entry.leader)
    }

    /// Gives a sequence the blocks that hold its beginning already; how many of its tokens they cover.
    fn take_known(&mut self, entry: &mut Entry) -> usize {
        if entry.sequence.owes_prompt_rows() {
            return 0;
        }
        let prompt = entry.sequence.prompt().len();
        let leader = self
            .running
            .iter()
            .find(|running| running.sequence.id() == entry.leader && entry.leader != entry.sequence.id());
        match leader {
            Some(leader) if leader.sequence.num_computed_tokens() >= prompt => {
                entry.table.take_from(&mut self.pool, &leader.table, prompt);
                // The last one's logits are wanted, so it is computed once more, into a copy of its block.
                if entry.sequence.token_count() > prompt { prompt } else { prompt - 1 }
            }
            _ => entry.table.take_prefix(&mut self.pool, entry.sequence.tokens()),
        }
    }
}

/// Rows for log-probabilities of prompts that a step still has room for.
fn spare_prompt_rows(plan: &StepPlan) -> usize {
    PROMPT_ROWS.saturating_sub(plan.prompt_row_count())
}
