//! How a request wants its tokens picked, and which values that may have.

use crate::request::{MAX_TOP_LOGPROBS, RequestError, check_count};
use crate::sequence::TokenId;

/// How to pick the next token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// Keep the most likely tokens only; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this probability.
    pub top_p: f32,
    /// Keep tokens of at least this share of the most likely one's probability.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one, with this probability in all; 1 keeps all.
    pub typical_p: f32,
    /// Divides the logits of tokens that prompt or answer hold already; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer holds already.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens for each time the answer holds them.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Random draws are a function of this and the position alone.
    pub seed: u64,
    /// No end before this many tokens.
    pub min_tokens: usize,
    /// Tell the chosen token's log-probability, and those of this many most likely tokens.
    pub top_logprobs: Option<usize>,
}

impl SamplingParams {
    /// The most likely token, unchanged.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            min_tokens: 0,
            top_logprobs: None,
        }
    }

    /// The same with the seed of one of several choices: the first has the request's own.
    #[must_use]
    pub fn for_choice(&self, choice: usize) -> Self {
        Self { seed: self.seed.wrapping_add(choice as u64), ..self.clone() }
    }

    /// Whether every value is in its range.
    ///
    /// # Errors
    /// One is not; the error names it.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        // Destructured so that a new field is not forgotten here; top_k and seed take any value, min_tokens is
        // compared with the token limit.
        let SamplingParams {
            temperature,
            top_k: _,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed: _,
            min_tokens: _,
            top_logprobs,
        } = self;
        check_count("top_logprobs", top_logprobs.unwrap_or(0), 0, MAX_TOP_LOGPROBS, "between 0 and 20")?;
        let ranges: [(&'static str, f32, bool, &'static str); 7] = [
            ("temperature", *temperature, (0.0..=2.0).contains(temperature), "between 0 and 2"),
            // OpenAI takes 0, which leaves the likeliest token.
            ("top_p", *top_p, (0.0..=1.0).contains(top_p), "between 0 and 1"),
            ("min_p", *min_p, (0.0..=1.0).contains(min_p), "between 0 and 1"),
            ("typical_p", *typical_p, *typical_p > 0.0 && *typical_p <= 1.0, "above 0 and at most 1"),
            (
                "repetition_penalty",
                *repetition_penalty,
                *repetition_penalty > 0.0 && *repetition_penalty <= 10.0,
                "above 0 and at most 10",
            ),
            (
                "presence_penalty",
                *presence_penalty,
                (-2.0..=2.0).contains(presence_penalty),
                "between -2 and 2",
            ),
            (
                "frequency_penalty",
                *frequency_penalty,
                (-2.0..=2.0).contains(frequency_penalty),
                "between -2 and 2",
            ),
        ];
        let biases = logit_bias
            .iter()
            .map(|(_, bias)| ("logit_bias", *bias, (-100.0..=100.0).contains(bias), "between -100 and 100"));
        for (param, value, inside, expected) in ranges.into_iter().chain(biases) {
            if !inside {
                return Err(RequestError::OutOfRange { param, value: f64::from(value), expected });
            }
        }
        Ok(())
    }
}
