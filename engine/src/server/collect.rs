//! Whole answers, joined from what came piece by piece.

use super::delta::{Delta, Finish};
use crate::text::answer::Part;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use std::sync::Arc;

/// One choice's whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Thoughts.
    pub reasoning: String,
    /// Content.
    pub content: String,
    /// Names and arguments of calls.
    pub calls: Vec<(String, String)>,
    /// All tokens.
    pub token_ids: Vec<TokenId>,
    /// Their log-probabilities, where asked for.
    pub logprobs: Vec<(TokenId, TokenLogprobs)>,
    /// Those of the prompt's tokens but the first, where asked for.
    pub prompt_logprobs: Option<Arc<Vec<TokenLogprobs>>>,
    /// How it ended.
    pub finish: Finish,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: None,
            finish: Finish { reason: FinishReason::Stop, has_calls: false, stopped_by: None },
        }
    }
}

impl Answer {
    /// Adds what came.
    pub fn add(&mut self, delta: Delta) {
        let Delta { index: _, parts, token_ids, logprobs, prompt_logprobs, finish } = delta;
        for part in parts {
            match part {
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Content(text) => self.content.push_str(&text),
                Part::Call { name } => self.calls.push((name, String::new())),
                Part::Arguments(text) => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        arguments.push_str(&text);
                    }
                }
            }
        }
        self.token_ids.extend(token_ids);
        self.logprobs.extend(logprobs);
        self.prompt_logprobs = prompt_logprobs.or(self.prompt_logprobs.take());
        if let Some(finish) = finish {
            self.finish = finish;
        }
    }
}
