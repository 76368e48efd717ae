//! The answers to one request: from prompts to what each choice shows, with time limit and metrics.
//!
//! Dropping a [`Generation`] ends its sequences.

use super::delta::{Delta, Usage};
use super::openai::ApiError;
use super::params::Params;
use super::reply::Origin;
use super::running::Running;
use super::trace::{Outcome, Timeline};
use super::{App, Engine};
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::runtime::{ChoiceEvent, PromptReport, Submission, TokenEvent};
use crate::text::TextTokenizer;
use crate::text::answer::AnswerRules;
use crate::text::choice::{Choice, ChoiceRules, Shown};
use crate::text::grammar::Grammar;
use atlas_engine_core::admission::Refusal;
use atlas_engine_core::request::MAX_CHOICES;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{Draft, FinishReason, RequestError, TokenId, ValidRequest};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What to answer.
pub struct Task {
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<TokenId>>,
    /// What is done, by OpenTelemetry's name.
    pub operation: &'static str,
    /// The API's name of the prompt, for errors.
    pub prompt_param: &'static str,
    /// How to pick tokens and when to stop.
    pub params: Params,
    /// How to read the answers.
    pub rules: AnswerRules,
    /// What the answers must hold to.
    pub grammar: Option<Grammar>,
    /// Calls that an answer may hold; further ones are dropped.
    pub most_calls: usize,
}

/// Prompts that one request may hold.
pub const MAX_PROMPTS: usize = 128;

/// A request being answered.
pub struct Generation {
    running: Vec<Running>,
    /// Where the next look for an event begins, so that no choice starves the others.
    turn: usize,
    ready: VecDeque<Delta>,
    /// What a broken answer had shown before, for writers that go on with its state.
    replayed: Vec<Delta>,
    most_calls: usize,
    return_token_ids: bool,
    sent: bool,
    tokenizer: Arc<TextTokenizer>,
    metrics: Arc<Metrics>,
    started: Instant,
    timeout: Duration,
    cut_off: watch::Receiver<bool>,
    usage: Usage,
    /// The field that names the answers' grammar.
    held_to: Option<String>,
    aborted: Option<&'static str>,
    /// What each teller told.
    told: HashMap<usize, Arc<Vec<TokenLogprobs>>>,
    timeline: Timeline,
    spans: Option<Exporter>,
}

impl Generation {
    /// Queues a task.
    ///
    /// # Errors
    /// The task does not fit the model, or the queue is full.
    pub fn start(app: &App, engine: &Engine, task: Task, origin: Origin) -> Result<Self, ApiError> {
        let Task { prompts, operation, prompt_param, params, rules, grammar, most_calls } = task;
        let Origin { scope, trace, arrived, clock } = origin;
        let started = Instant::now();
        let limit = [("max_tokens", params.limit_name)];
        let refused = |error: RequestError| ApiError::from_request(&error, prompt_param).renamed(&limit);
        let choices = params.choices;
        if !(1..=MAX_CHOICES).contains(&choices) {
            let value = choices as f64;
            return Err(refused(RequestError::OutOfRange {
                param: "n",
                value,
                expected: "between 1 and 64",
            }));
        }
        let count = prompts.len() * choices;
        let broken = params.resume.from.as_ref();
        if let Some(given) = broken.map(|broken| broken.tokens.len()).filter(|given| *given != count) {
            return Err(refused(RequestError::ResumedChoices { given, choices: count }));
        }
        // Everything is checked before anything is queued.
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let mut requests = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.into_iter().enumerate() {
            let own = index * choices..(index + 1) * choices;
            let draft = Draft {
                prompt,
                max_tokens: params.max_tokens,
                sampling: params.sampling.clone(),
                ignore_eos: params.ignore_eos,
                stop_tokens: params.stop_tokens.clone(),
                choices,
                resumed: broken.map_or(Vec::new(), |broken| broken.tokens[own].to_vec()),
                prompt_logprobs: params.prompt_logprobs,
                prompt_only: params.prompt_only,
            };
            requests.push(ValidRequest::new(draft, &engine.limits).map_err(refused)?);
        }
        let rules = ChoiceRules {
            stop: params.stop,
            include_stop: params.include_stop,
            min_tokens: params.sampling.min_tokens,
            answer: rules,
        };
        let mut generation = Self {
            running: Vec::with_capacity(count),
            turn: 0,
            ready: VecDeque::new(),
            replayed: Vec::new(),
            most_calls,
            return_token_ids: params.resume.return_token_ids,
            sent: false,
            tokenizer: engine.tokenizer.clone(),
            metrics: app.metrics.clone(),
            started,
            timeout: app.request_timeout,
            cut_off: app.cut_off.subscribe(),
            usage: Usage { prompt_tokens, ..Usage::default() },
            held_to: grammar.as_ref().map(|grammar| grammar.place().to_owned()),
            aborted: None,
            told: HashMap::new(),
            timeline: Timeline::new(trace, operation, params.model, clock, arrived),
            spans: app.spans.clone(),
        };
        for request in requests {
            let first = generation.running.len();
            for choice in 0..choices {
                let begun = !request.resumed(choice).is_empty();
                let own_prompt_tokens = if choice == 0 { request.prompt().len() } else { 0 };
                let running = Running::new(Choice::new(rules.clone()), own_prompt_tokens, begun);
                let teller = request.prompt_teller().map(|teller| first + teller);
                generation.running.push(Running { teller, ..running });
            }
            let ended: Vec<bool> = (0..choices)
                .map(|choice| generation.replay(first, choice, &request, engine.tokenizer.end_tokens()))
                .collect();
            if ended.iter().all(|ended| *ended) {
                continue;
            }
            let masks = grammar.as_ref().map(|grammar| {
                (0..choices).map(|choice| grammar.mask(request.resumed(choice))).collect::<Vec<_>>()
            });
            let masks = masks.unwrap_or_default();
            let events =
                engine.handle.submit(Submission { request, priority: params.priority, scope, masks });
            let events = events.map_err(|refusal| match refusal {
                Refusal::QueueFull { waiting } => ApiError::queue_full(waiting),
                Refusal::NeverFits { .. } => ApiError::invalid(Some("max_tokens"), refusal.to_string()),
            })?;
            // What the text of its resumed tokens has ended already needs no more: its events are dropped here.
            for (choice, events) in events.into_iter().enumerate().filter(|(choice, _)| !ended[*choice]) {
                generation.running[first + choice].events = Some(events);
            }
        }
        app.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        // Only now does it count as given up when it is dropped.
        generation.aborted = Some("client");
        Ok(generation)
    }

    /// Feeds a choice the tokens that it has already; whether they end it.
    fn replay(&mut self, first: usize, choice: usize, request: &ValidRequest, ends: &[TokenId]) -> bool {
        let (index, resumed) = (first + choice, request.resumed(choice));
        for (position, token) in resumed.iter().enumerate() {
            let end = !request.ignore_eos() && ends.contains(token) || request.stop_tokens().contains(token);
            let finish = match (end, position + 1 == request.max_tokens()) {
                (true, _) => Some(FinishReason::Stop),
                (false, true) => Some(FinishReason::Length),
                (false, false) => None,
            };
            self.usage.completion_tokens += 1;
            let running = &mut self.running[index];
            let mut shown = running.choice.push(self.tokenizer.token_bytes(*token), finish);
            self.usage.reasoning_tokens += usize::from(running.choice.is_thinking());
            running.keep_calls(&mut shown.parts, self.most_calls);
            if !shown.parts.is_empty() {
                self.replayed.push(Delta { index, parts: shown.parts, ..Delta::default() });
            }
            if let Some(reason) = shown.finish {
                let finish = Some(running.finish(reason));
                self.ready.push_back(Delta { index, finish, ..Delta::default() });
                return true;
            }
        }
        false
    }

    /// What comes next; `None` after the last choice's end.
    ///
    /// # Errors
    /// The time is over, the engine stops, or the worker failed.
    pub async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                self.sent = true;
                return Ok(Some(delta));
            }
            if self.running.iter().all(|running| running.events.is_none()) {
                if self.aborted.take().is_some() {
                    self.metrics.request_seconds.observe(self.started.elapsed().as_secs_f64());
                    self.tell("answered");
                }
                return Ok(None);
            }
            let deadline = (self.started + self.timeout).into();
            let mut cut_off = self.cut_off.clone();
            let event = tokio::select! {
                biased;
                event = tokio::time::timeout_at(deadline, self.event()) => event,
                _ = cut_off.wait_for(|cut_off| *cut_off) => {
                    self.aborted = Some("engine");
                    return Err(ApiError::draining());
                }
            };
            let Ok((index, event)) = event else {
                self.aborted = Some("timeout");
                return Err(ApiError::timeout(self.timeout.as_secs()));
            };
            let Some(event) = event else {
                self.aborted = Some("engine");
                return Err(ApiError::engine_failed());
            };
            let event = event.map_err(|error| {
                self.aborted = Some("grammar");
                ApiError::grammar(self.held_to.as_deref(), error)
            })?;
            if let Some(delta) = self.take(index, event) {
                self.ready.push_back(delta);
            }
        }
    }

    /// The next event of any choice.
    async fn event(&mut self) -> (usize, Option<ChoiceEvent>) {
        poll_fn(|context| {
            let count = self.running.len();
            for index in (0..count).map(|offset| (self.turn + offset) % count) {
                let teller = self.running[index].teller;
                // What a choice shows first may begin with its prompt's log-probabilities, which another one tells.
                let untold = teller.is_some_and(|teller| teller != index && !self.told.contains_key(&teller));
                let Some(events) = self.running[index].events.as_mut().filter(|_| !untold) else { continue };
                if let Poll::Ready(event) = events.poll_recv(context) {
                    self.turn = (index + 1) % count;
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn take(&mut self, index: usize, event: TokenEvent) -> Option<Delta> {
        let TokenEvent { token, finish, logprobs, prompt } = event;
        self.usage.completion_tokens += 1;
        self.metrics.generated_tokens.inc();
        let running = &mut self.running[index];
        self.timeline.token(Instant::now());
        if let Some(PromptReport { began, cached_tokens, logprobs }) = prompt {
            self.timeline.begin(began);
            self.usage.cached_tokens += cached_tokens.min(running.own_prompt_tokens);
            if running.teller == Some(index) {
                self.told.insert(index, Arc::new(logprobs));
            }
        }
        match running.last_token.replace(Instant::now()) {
            None => self.metrics.first_token_seconds.observe(self.started.elapsed().as_secs_f64()),
            Some(last) => self.metrics.inter_token_seconds.observe(last.elapsed().as_secs_f64()),
        }
        running.token_ids.push(token);
        if let Some(logprobs) = logprobs {
            running.logprobs.push((token, logprobs));
        }
        let Shown { mut parts, finish } = running.choice.push(self.tokenizer.token_bytes(token), finish);
        self.usage.reasoning_tokens += usize::from(running.choice.is_thinking());
        running.keep_calls(&mut parts, self.most_calls);
        if finish.is_some() {
            running.events = None;
        }
        let ids_alone = self.return_token_ids && self.sent;
        if parts.is_empty() && finish.is_none() && !ids_alone {
            return None;
        }
        let first = !std::mem::replace(&mut running.shown, true);
        let prompt_logprobs = running.teller.filter(|_| first).and_then(|teller| self.told.get(&teller));
        Some(Delta {
            index,
            prompt_logprobs: prompt_logprobs.cloned(),
            parts,
            token_ids: std::mem::take(&mut running.token_ids),
            logprobs: std::mem::take(&mut running.logprobs),
            finish: finish.map(|reason| running.finish(reason)),
        })
    }

    /// Logs how the request ended, and sends its spans.
    fn tell(&self, end: &'static str) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens: _ } = self.usage;
        let (choices, milliseconds) = (self.running.len(), self.started.elapsed().as_millis());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(
            end,
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            choices,
            milliseconds,
            queued = self.timeline.queued().map(millis),
            prefill = self.timeline.prefill().map(millis),
            trace_id = format!("{:032x}", self.timeline.trace_id()),
            "request ended"
        );
        if let Some(spans) = &self.spans {
            let outcome = Outcome { end, prompt_tokens, cached_tokens, completion_tokens };
            spans.send(self.timeline.spans(outcome, Instant::now()));
        }
    }

    /// Token counts, as of now.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// For each choice, whether it has sent something already: a resumed one.
    pub fn begun(&self) -> Vec<bool> {
        self.running.iter().map(|running| running.begun).collect()
    }

    /// For each choice, how many calls it has made already: a resumed one.
    pub fn calls(&self) -> Vec<usize> {
        self.running.iter().map(|running| running.calls).collect()
    }

    /// What a broken answer had shown before, as it was shown.
    pub fn replayed(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.replayed)
    }

    /// Choices of all prompts.
    pub fn choices(&self) -> usize {
        self.running.len()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(reason) = self.aborted {
            self.metrics.aborted.with_label_values(&[reason]).inc();
            self.tell(reason);
        }
    }
}
