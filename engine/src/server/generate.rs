//! One answer: from a prompt to pieces of text, with stop strings, time limit and metrics.

use super::fields::Common;
use super::openai::ApiError;
use super::{App, Engine};
use crate::metrics::Metrics;
use crate::runtime::TokenEvent;
use crate::text::{Detokenizer, StopFilter, TextTokenizer};
use atlas_engine_core::{Draft, FinishReason, ValidRequest};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// A request being answered. Dropping it ends the sequence.
pub struct Generation {
    events: UnboundedReceiver<TokenEvent>,
    tokenizer: Arc<TextTokenizer>,
    metrics: Arc<Metrics>,
    detokenizer: Detokenizer,
    stop: StopFilter,
    started: Instant,
    last_token: Option<Instant>,
    timeout: Duration,
    prompt_tokens: usize,
    completion_tokens: usize,
    finished: bool,
}

/// New text, and the reason where it is the last.
#[derive(Debug)]
pub struct Piece {
    /// The text; may be empty on the last piece only.
    pub text: String,
    /// Why the answer ends here.
    pub finish: Option<FinishReason>,
}

/// OpenAI's word for a reason.
pub fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

impl Generation {
    /// Tokenizes the prompt and queues the request; `prompt_param` is the API's name of the prompt.
    ///
    /// # Errors
    /// The request does not fit the model, or the queue is full.
    pub async fn start(
        app: &App,
        engine: &Engine,
        prompt: String,
        prompt_param: &'static str,
        common: &Common,
    ) -> Result<Self, ApiError> {
        let started = Instant::now();
        let tokenizer = engine.tokenizer.clone();
        // A prompt of megabytes takes a while: not on the thread that serves others.
        let ids = tokio::task::spawn_blocking(move || tokenizer.encode_prompt(&prompt)).await;
        let ids = ids.map_err(|error| ApiError::internal(error.to_string()))?;
        let ids = ids.map_err(|error| ApiError::internal(error.to_string()))?;
        let prompt_tokens = ids.len();
        let draft = Draft {
            prompt: ids,
            max_tokens: common.max_tokens,
            sampling: common.sampling.clone(),
            ignore_eos: common.ignore_eos,
            ..Draft::greedy(Vec::new())
        };
        let request = ValidRequest::new(draft, &engine.limits);
        let request = request.map_err(|error| ApiError::from_request(&error, prompt_param))?;
        let events = engine.handle.submit(request).map_err(|full| ApiError::queue_full(full.waiting))?;
        app.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        Ok(Self {
            events,
            tokenizer: engine.tokenizer.clone(),
            metrics: app.metrics.clone(),
            detokenizer: Detokenizer::default(),
            stop: StopFilter::new(common.stop.clone()),
            started,
            last_token: None,
            timeout: app.request_timeout,
            prompt_tokens,
            completion_tokens: 0,
            finished: false,
        })
    }

    /// The next piece of text; `None` after the last one.
    ///
    /// # Errors
    /// The time is over, or the worker failed.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        while !self.finished {
            let deadline = (self.started + self.timeout).into();
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.map_err(|_| ApiError::timeout(self.timeout.as_secs()))?;
            let event = event.ok_or_else(|| ApiError::internal("the model failed while answering"))?;
            let piece = self.take(event);
            if piece.finish.is_some() {
                self.finished = true;
                self.metrics.request_seconds.observe(self.started.elapsed().as_secs_f64());
            }
            if !piece.text.is_empty() || piece.finish.is_some() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn take(&mut self, event: TokenEvent) -> Piece {
        let TokenEvent { token, finish } = event;
        self.completion_tokens += 1;
        self.metrics.generated_tokens.inc();
        match self.last_token.replace(Instant::now()) {
            None => self.metrics.first_token_seconds.observe(self.started.elapsed().as_secs_f64()),
            Some(last) => self.metrics.inter_token_seconds.observe(last.elapsed().as_secs_f64()),
        }
        // The token that ended the answer is no part of it, but a token at the limit is.
        let ends = finish == Some(FinishReason::Stop);
        let mut text =
            if ends { String::new() } else { self.detokenizer.push(self.tokenizer.token_bytes(token)) };
        if finish.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        let passed = self.stop.push(&text);
        if passed.stopped {
            return Piece { text: passed.text, finish: Some(FinishReason::Stop) };
        }
        let mut text = passed.text;
        if finish.is_some() {
            text.push_str(&self.stop.finish());
        }
        Piece { text, finish }
    }

    /// OpenAI's usage object, as of now.
    pub fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }
}
