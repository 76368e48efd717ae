//! One sequence: its tokens, and how many of them the model has seen.

use crate::request::ValidRequest;
use crate::sampling_params::SamplingParams;
use std::sync::Arc;

/// An index into the vocabulary.
pub type TokenId = u32;

/// Names a sequence for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-generation token or a stop string.
    Stop,
    /// The token limit.
    Length,
}

/// One choice of a request.
#[derive(Debug, Clone)]
pub struct Sequence {
    id: SequenceId,
    request: Arc<ValidRequest>,
    choice: usize,
    /// The request's, with the choice's own seed.
    sampling: SamplingParams,
    /// Prompt and answer.
    tokens: Vec<TokenId>,
    num_computed_tokens: usize,
    /// Rows of the prompt whose log-probabilities are told already.
    told_prompt_rows: usize,
}

impl Sequence {
    /// A choice of which nothing is computed yet; tokens that it is resumed with belong to its answer.
    #[must_use]
    pub fn new(id: SequenceId, request: Arc<ValidRequest>, choice: usize) -> Self {
        let tokens = [request.prompt(), request.resumed(choice)].concat();
        let sampling = request.sampling().for_choice(choice);
        Self { id, request, choice, sampling, tokens, num_computed_tokens: 0, told_prompt_rows: 0 }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Which of the request's choices it is.
    #[must_use]
    pub fn choice(&self) -> usize {
        self.choice
    }

    /// Prompt and generated tokens together.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that the model has not seen yet.
    #[must_use]
    pub fn num_lacking_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Tokens that the model has seen.
    #[must_use]
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Prompt and answer so far.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Token ids of the prompt.
    #[must_use]
    pub fn prompt(&self) -> &[TokenId] {
        self.request.prompt()
    }

    /// Token ids of the answer so far.
    #[must_use]
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.request.prompt().len()..]
    }

    /// Alternatives to tell at each position of the prompt.
    #[must_use]
    pub fn prompt_alternatives(&self) -> usize {
        self.request.prompt_logprobs().unwrap_or(0)
    }

    /// Whether it still has to tell log-probabilities of the prompt, for which the prompt has to be computed.
    #[must_use]
    pub fn owes_prompt_rows(&self) -> bool {
        self.prompt_rows(0, self.prompt().len()) > 0
    }

    /// Rows of `start..end` whose log-probabilities of the prompt are wanted and not told: each is about the token
    /// after it, so the prompt's last row is none of them.
    #[must_use]
    pub fn prompt_rows(&self, start: usize, end: usize) -> usize {
        if self.request.prompt_teller() != Some(self.choice) {
            return 0;
        }
        end.min(self.prompt().len() - 1).saturating_sub(start.max(self.told_prompt_rows))
    }

    /// As many of `count` tokens from `start` on as need no more than so many rows of the prompt, but at least one.
    pub(crate) fn within_prompt_rows(&self, start: usize, count: usize, rows: usize) -> usize {
        if self.prompt_rows(start, start + count) <= rows {
            return count;
        }
        (start.max(self.told_prompt_rows) + rows - start).max(1)
    }

    pub(crate) fn tell_prompt_rows(&mut self, rows: usize) {
        self.told_prompt_rows += rows;
    }

    /// Tokens that the answer may still get.
    #[must_use]
    pub fn remaining_tokens(&self) -> usize {
        self.request.max_tokens().saturating_sub(self.generated().len())
    }

    /// How to pick the next token.
    #[must_use]
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Why the answer ends where it is now; `None` where it goes on. Resumed answers may have ended already.
    #[must_use]
    pub fn finished(&self, end_tokens: &[TokenId]) -> Option<FinishReason> {
        let last = self.generated().last()?;
        let ends = !self.request.ignore_eos() && end_tokens.contains(last);
        if ends || self.request.stop_tokens().contains(last) {
            return Some(FinishReason::Stop);
        }
        (self.remaining_tokens() == 0).then_some(FinishReason::Length)
    }

    /// The tokens that end this answer, to be kept away before `min_tokens`.
    #[must_use]
    pub fn ends(&self, end_tokens: &[TokenId]) -> Vec<TokenId> {
        let own = if self.request.ignore_eos() { &[] } else { end_tokens };
        [own, self.request.stop_tokens()].concat()
    }

    pub(crate) fn set_computed(&mut self, count: usize) {
        debug_assert!(count <= self.tokens.len(), "computed more than there is");
        self.num_computed_tokens = count;
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
    }
}
