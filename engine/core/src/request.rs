//! A request that is known to be servable: the scheduler and the sampler take nothing else.

use crate::sampling_params::SamplingParams;
use crate::sequence::TokenId;

/// A request as it comes from the API.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Token ids of the prompt.
    pub prompt: Vec<TokenId>,
    /// How many tokens to generate at most; as many as the context takes where the client names none.
    pub max_tokens: Option<usize>,
    /// How to pick tokens.
    pub sampling: SamplingParams,
    /// Go on after end-of-generation tokens.
    pub ignore_eos: bool,
    /// Further tokens that end the answer.
    pub stop_tokens: Vec<TokenId>,
    /// How many answers.
    pub choices: usize,
    /// Tokens that each choice has already, from an engine that broke off; empty, or one entry a choice.
    pub resumed: Vec<Vec<TokenId>>,
    /// Tell the log-probability of each of the prompt's tokens but the first, and those of this many most likely ones.
    pub prompt_logprobs: Option<usize>,
    /// Nothing is wanted but the prompt: the one token that is drawn is not shown, and needs no room in the context.
    pub prompt_only: bool,
}

impl Draft {
    /// One greedy answer to a prompt, as long as the context takes.
    #[must_use]
    pub fn greedy(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: SamplingParams::greedy(),
            ignore_eos: false,
            stop_tokens: Vec::new(),
            choices: 1,
            resumed: Vec::new(),
            prompt_logprobs: None,
            prompt_only: false,
        }
    }
}

/// Answers that one request may ask for.
pub const MAX_CHOICES: usize = 64;
/// Alternatives that a request may see at each position.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// What the model and the server can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Prompt and answer together.
    pub context_tokens: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
}

/// Why a request is refused; each names the request's field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// Nothing to start from.
    #[error("the prompt is empty: it must hold at least one token")]
    EmptyPrompt,
    /// Prompt and answer exceed the context.
    #[error(
        "this model's maximum context length is {context} tokens, and {requested} were requested ({prompt} in the \
         prompt, {completion} for the completion): shorten the prompt or lower max_tokens"
    )]
    ContextLength {
        /// The limit.
        context: usize,
        /// Prompt and completion together.
        requested: usize,
        /// Tokens in the prompt.
        prompt: usize,
        /// Tokens asked for.
        completion: usize,
    },
    /// The prompt is so much longer than the context that its tokens were not counted.
    #[error(
        "this model's maximum context length is {context} tokens, and the prompt's {bytes} bytes have more than twice as \
         many: shorten the prompt"
    )]
    FarTooLong {
        /// The limit.
        context: usize,
        /// Bytes of the prompt's text.
        bytes: usize,
    },
    /// A number is out of its range.
    #[error("{param} is {value}, expected {expected}")]
    OutOfRange {
        /// The request's field.
        param: &'static str,
        /// What was sent.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Resumed tokens do not go with the choices.
    #[error("resume_tokens has {given} arrays for {choices} choices: give one for each")]
    ResumedChoices {
        /// Arrays given.
        given: usize,
        /// Choices asked for.
        choices: usize,
    },
    /// More tokens were resumed than the answer may have.
    #[error("resume_tokens has {given} tokens for an answer of at most {max_tokens}")]
    ResumedLength {
        /// Tokens given.
        given: usize,
        /// The answer's limit.
        max_tokens: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("{param} names token {token}, and the vocabulary has {vocabulary} tokens")]
    UnknownToken {
        /// The request's field.
        param: &'static str,
        /// The id.
        token: TokenId,
        /// The vocabulary's size.
        vocabulary: usize,
    },
}

impl RequestError {
    /// The request's field that is wrong; `None` where it is the prompt, whose field the API knows.
    #[must_use]
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::EmptyPrompt | Self::ContextLength { .. } | Self::FarTooLong { .. } => None,
            Self::OutOfRange { param, .. } | Self::UnknownToken { param, .. } => Some(param),
            Self::ResumedChoices { .. } | Self::ResumedLength { .. } => Some("resume_tokens"),
        }
    }
}

/// A request that fits the model. Only [`ValidRequest::new`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidRequest {
    prompt: Vec<TokenId>,
    max_tokens: usize,
    sampling: SamplingParams,
    ignore_eos: bool,
    stop_tokens: Vec<TokenId>,
    choices: usize,
    resumed: Vec<Vec<TokenId>>,
    prompt_logprobs: Option<usize>,
    prompt_only: bool,
}

impl ValidRequest {
    /// Checks a draft against the limits.
    ///
    /// # Errors
    /// A field is out of range, or prompt and answer exceed the context.
    pub fn new(draft: Draft, limits: &Limits) -> Result<Self, RequestError> {
        let Draft {
            prompt,
            max_tokens,
            sampling,
            ignore_eos,
            stop_tokens,
            choices,
            resumed,
            prompt_logprobs,
            prompt_only,
        } = draft;
        let max_tokens = if prompt_only { Some(1) } else { max_tokens };
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        check_tokens("prompt", prompt.iter().copied(), limits)?;
        check_tokens("logit_bias", sampling.logit_bias.iter().map(|(token, _)| *token), limits)?;
        check_tokens("stop_token_ids", stop_tokens.iter().copied(), limits)?;
        check_tokens("resume_tokens", resumed.iter().flatten().copied(), limits)?;
        sampling.check()?;
        check_count(
            "prompt_logprobs",
            prompt_logprobs.unwrap_or(0),
            0,
            MAX_TOP_LOGPROBS,
            "between 0 and 20",
        )?;
        check_count("n", choices, 1, MAX_CHOICES, "between 1 and 64")?;
        if max_tokens == Some(0) {
            return Err(RequestError::OutOfRange { param: "max_tokens", value: 0.0, expected: "at least 1" });
        }
        let context = limits.context_tokens;
        let completion = max_tokens.unwrap_or_else(|| context.saturating_sub(prompt.len()).max(1));
        let room = if prompt_only { 0 } else { completion };
        let requested = prompt.len().saturating_add(room);
        if requested > context {
            let completion = room;
            return Err(RequestError::ContextLength { context, requested, prompt: prompt.len(), completion });
        }
        check_count("min_tokens", sampling.min_tokens, 0, completion, "at most max_tokens")?;
        if !resumed.is_empty() && resumed.len() != choices {
            return Err(RequestError::ResumedChoices { given: resumed.len(), choices });
        }
        if let Some(longest) = resumed.iter().map(Vec::len).find(|length| *length > completion) {
            return Err(RequestError::ResumedLength { given: longest, max_tokens: completion });
        }
        let max_tokens = completion;
        Ok(Self {
            prompt,
            max_tokens,
            sampling,
            ignore_eos,
            stop_tokens,
            choices,
            resumed,
            prompt_logprobs,
            prompt_only,
        })
    }

    /// Token ids of the prompt; never empty.
    #[must_use]
    pub fn prompt(&self) -> &[TokenId] {
        &self.prompt
    }

    /// Tokens to generate at most.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Positions that prompt and answer take at most.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.prompt.len() + if self.prompt_only { 0 } else { self.max_tokens }
    }

    /// How to pick tokens.
    #[must_use]
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Whether end-of-generation tokens end the answer.
    #[must_use]
    pub fn ignore_eos(&self) -> bool {
        self.ignore_eos
    }

    /// Further tokens that end the answer, also where end-of-generation tokens do not.
    #[must_use]
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// How many answers; at least one.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.choices
    }

    /// How many alternatives to tell at each of the prompt's positions, where the prompt's log-probabilities are wanted.
    #[must_use]
    pub fn prompt_logprobs(&self) -> Option<usize> {
        self.prompt_logprobs
    }

    /// The choice that tells the prompt's log-probabilities, where they are wanted: the first that has shown nothing yet.
    #[must_use]
    pub fn prompt_teller(&self) -> Option<usize> {
        let wanted = self.prompt_logprobs.is_some();
        (0..self.choices).find(|choice| wanted && self.resumed(*choice).is_empty())
    }

    /// Tokens that a choice has already.
    #[must_use]
    pub fn resumed(&self, choice: usize) -> &[TokenId] {
        self.resumed.get(choice).map_or(&[], Vec::as_slice)
    }
}

fn check_tokens(
    param: &'static str,
    mut tokens: impl Iterator<Item = TokenId>,
    limits: &Limits,
) -> Result<(), RequestError> {
    match tokens.find(|token| *token as usize >= limits.vocabulary) {
        Some(token) => Err(RequestError::UnknownToken { param, token, vocabulary: limits.vocabulary }),
        None => Ok(()),
    }
}

/// Whether a count lies between these.
///
/// # Errors
/// It does not.
pub(crate) fn check_count(
    param: &'static str,
    value: usize,
    least: usize,
    most: usize,
    expected: &'static str,
) -> Result<(), RequestError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(RequestError::OutOfRange { param, value: value as f64, expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { context_tokens: 10, vocabulary: 100 };

    fn draft(prompt: usize, max_tokens: Option<usize>) -> Draft {
        Draft { max_tokens, ..Draft::greedy(vec![1; prompt]) }
    }

    #[test]
    fn what_exceeds_the_context_is_refused_with_the_numbers() {
        for (prompt, max_tokens, expected) in [
            (4, Some(6), Ok(6)),
            (4, None, Ok(6)),
            (9, None, Ok(1)),
            (4, Some(7), Err((11, 4, 7))),
            (10, None, Err((11, 10, 1))),
            (4, Some(usize::MAX), Err((usize::MAX, 4, usize::MAX))),
        ] {
            let result =
                ValidRequest::new(draft(prompt, max_tokens), &LIMITS).map(|request| request.max_tokens());
            let expected = expected.map_err(|(requested, prompt, completion)| RequestError::ContextLength {
                context: 10,
                requested,
                prompt,
                completion,
            });
            assert_eq!(result, expected);
        }
    }

    #[test]
    fn a_prompt_alone_may_fill_the_context() {
        let alone = |prompt| Draft { prompt_only: true, ..draft(prompt, None) };
        let request = ValidRequest::new(alone(10), &LIMITS).unwrap();
        assert_eq!((request.max_tokens(), request.positions()), (1, 10));
        let refused = ValidRequest::new(alone(11), &LIMITS);
        let expected = RequestError::ContextLength { context: 10, requested: 11, prompt: 11, completion: 0 };
        assert_eq!(refused, Err(expected));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let greedy = SamplingParams::greedy;
        let cases = [
            (SamplingParams { temperature: f32::NAN, ..greedy() }, "temperature"),
            (SamplingParams { temperature: -0.1, ..greedy() }, "temperature"),
            (SamplingParams { top_p: -0.1, ..greedy() }, "top_p"),
            (SamplingParams { min_p: 1.5, ..greedy() }, "min_p"),
            (SamplingParams { typical_p: 0.0, ..greedy() }, "typical_p"),
            (SamplingParams { min_tokens: 10, ..greedy() }, "min_tokens"),
            (SamplingParams { top_logprobs: Some(21), ..greedy() }, "top_logprobs"),
            (SamplingParams { repetition_penalty: 0.0, ..greedy() }, "repetition_penalty"),
            (SamplingParams { presence_penalty: 3.0, ..greedy() }, "presence_penalty"),
            (SamplingParams { frequency_penalty: -3.0, ..greedy() }, "frequency_penalty"),
            (SamplingParams { logit_bias: vec![(3, 101.0)], ..greedy() }, "logit_bias"),
            (SamplingParams { logit_bias: vec![(100, 1.0)], ..greedy() }, "logit_bias"),
        ];
        for (sampling, param) in cases {
            let error = ValidRequest::new(Draft { sampling, ..draft(1, None) }, &LIMITS).unwrap_err();
            assert_eq!(error.param(), Some(param));
        }
        assert_eq!(ValidRequest::new(draft(0, None), &LIMITS), Err(RequestError::EmptyPrompt));
        assert_eq!(ValidRequest::new(draft(1, Some(0)), &LIMITS).unwrap_err().param(), Some("max_tokens"));
        for (draft, param) in [
            (Draft { choices: 0, ..draft(1, None) }, "n"),
            (Draft { choices: 65, ..draft(1, None) }, "n"),
            (Draft { stop_tokens: vec![100], ..draft(1, None) }, "stop_token_ids"),
            (Draft { resumed: vec![vec![100]], ..draft(1, None) }, "resume_tokens"),
            (Draft { resumed: vec![vec![1]; 2], ..draft(1, None) }, "resume_tokens"),
            (Draft { resumed: vec![vec![1; 4]], ..draft(1, Some(3)) }, "resume_tokens"),
        ] {
            assert_eq!(ValidRequest::new(draft, &LIMITS).unwrap_err().param(), Some(param));
        }
    }
}
