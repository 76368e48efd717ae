//! What a running answer tells its writer, piece by piece.

use crate::text::answer::Part;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use std::sync::Arc;

/// New things of one choice.
#[derive(Debug, Default)]
pub struct Delta {
    /// Which choice: those of the first prompt come first.
    pub index: usize,
    /// What it shows.
    pub parts: Vec<Part>,
    /// Tokens since the choice's last delta, those held back included.
    pub token_ids: Vec<TokenId>,
    /// Log-probabilities of these tokens, where asked for.
    pub logprobs: Vec<(TokenId, TokenLogprobs)>,
    /// On the choice's first delta, those of the prompt's tokens but the first, where asked for.
    pub prompt_logprobs: Option<Arc<Vec<TokenLogprobs>>>,
    /// Set on the choice's last delta.
    pub finish: Option<Finish>,
}

/// How a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Whether it calls a tool.
    pub has_calls: bool,
    /// The stop string that ended it.
    pub stopped_by: Option<String>,
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompts.
    pub prompt_tokens: usize,
    /// Those of them that needed no computing, since the prefix cache held them.
    pub cached_tokens: usize,
    /// In the answers.
    pub completion_tokens: usize,
    /// Those of them that are thoughts, with the mark that opens these.
    pub reasoning_tokens: usize,
}
