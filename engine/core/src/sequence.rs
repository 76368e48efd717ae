//! One sequence: its tokens, and how many of them the model has seen.

use crate::request::{SamplingParams, ValidRequest};

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

/// A running sequence.
#[derive(Debug, Clone)]
pub struct Sequence {
    id: SequenceId,
    request: ValidRequest,
    generated: Vec<TokenId>,
    num_computed_tokens: usize,
}

impl Sequence {
    /// A sequence of which nothing is computed yet; it goes on from the tokens that its first choice has already.
    #[must_use]
    pub fn new(id: SequenceId, request: ValidRequest) -> Self {
        let generated = request.resumed(0).to_vec();
        Self { id, request, generated, num_computed_tokens: 0 }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Prompt and generated tokens together.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.request.prompt().len() + self.generated.len()
    }

    /// Tokens that the model has not seen yet.
    #[must_use]
    pub fn num_lacking_tokens(&self) -> usize {
        self.token_count() - self.num_computed_tokens
    }

    /// Tokens that the model has seen.
    #[must_use]
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Token ids of the prompt.
    #[must_use]
    pub fn prompt(&self) -> &[TokenId] {
        self.request.prompt()
    }

    /// Token ids of the answer so far.
    #[must_use]
    pub fn generated(&self) -> &[TokenId] {
        &self.generated
    }

    /// How to pick the next token.
    #[must_use]
    pub fn sampling(&self) -> &SamplingParams {
        self.request.sampling()
    }

    /// Further tokens that end the answer.
    #[must_use]
    pub fn stop_tokens(&self) -> &[TokenId] {
        self.request.stop_tokens()
    }

    /// The next `count` tokens that the model lacks.
    pub(crate) fn next_tokens(&self, count: usize) -> Vec<TokenId> {
        let all = self.request.prompt().iter().chain(&self.generated);
        all.skip(self.num_computed_tokens).take(count).copied().collect()
    }

    pub(crate) fn mark_computed(&mut self, count: usize) {
        self.num_computed_tokens += count;
        debug_assert!(self.num_computed_tokens <= self.token_count());
    }

    /// Appends a sampled token, and says whether it is the last.
    pub(crate) fn push(&mut self, token: TokenId, end_tokens: &[TokenId]) -> Option<FinishReason> {
        self.generated.push(token);
        let ends = !self.request.ignore_eos() && end_tokens.contains(&token);
        if ends || self.request.stop_tokens().contains(&token) {
            return Some(FinishReason::Stop);
        }
        (self.generated.len() >= self.request.max_tokens()).then_some(FinishReason::Length)
    }
}
