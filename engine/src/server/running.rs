//! One choice of an answer while it is written.

use super::delta::Finish;
use crate::runtime::ChoiceEvent;
use crate::text::answer::Part;
use crate::text::choice::Choice;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// What is known of a choice so far.
#[allow(missing_docs)]
pub struct Running {
    pub events: Option<UnboundedReceiver<ChoiceEvent>>,
    pub choice: Choice,
    pub token_ids: Vec<TokenId>,
    pub logprobs: Vec<(TokenId, TokenLogprobs)>,
    /// Tokens of the prompt, for the first choice of each: the others share it.
    pub own_prompt_tokens: usize,
    /// The choice that tells the prompt's log-probabilities.
    pub teller: Option<usize>,
    pub begun: bool,
    pub shown: bool,
    pub calls: usize,
    pub last_token: Option<Instant>,
}

impl Running {
    /// One of which no token is known.
    pub fn new(choice: Choice, own_prompt_tokens: usize, begun: bool) -> Self {
        Self {
            events: None,
            choice,
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            own_prompt_tokens,
            teller: None,
            begun,
            shown: false,
            calls: 0,
            last_token: None,
        }
    }

    /// Counts calls, and drops those beyond what an answer may hold.
    pub fn keep_calls(&mut self, parts: &mut Vec<Part>, most: usize) {
        parts.retain(|part| {
            self.calls += usize::from(matches!(part, Part::Call { .. }));
            let is_call = matches!(part, Part::Call { .. } | Part::Arguments(_));
            !is_call || self.calls <= most
        });
    }

    /// How it ended, for this reason of its sequence.
    pub fn finish(&self, reason: FinishReason) -> Finish {
        Finish {
            reason,
            has_calls: self.choice.has_calls(),
            stopped_by: self.choice.stopped_by().map(str::to_owned),
        }
    }
}
