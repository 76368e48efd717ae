//! The objects and events of `/v1/messages`.

use super::collect::Answer;
use super::generate::{Delta, Finish, Usage};
use super::openai::ApiError;
use super::params::Params;
use super::reply::{Event, Writer, new_id};
use crate::text::answer::Part;
use atlas_engine_core::FinishReason;
use serde_json::{Value, json};

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

/// Writes a message.
pub struct MessagesWriter {
    message: Value,
    begun: bool,
    open: Option<Kind>,
    blocks: usize,
    finish: Option<Finish>,
}

impl MessagesWriter {
    /// A writer for one answer.
    pub fn new(params: &Params) -> Self {
        let message = json!({"id": new_id("msg_"), "type": "message", "role": "assistant", "model": params.model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage_json(Usage::default())});
        Self { message, begun: false, open: None, blocks: 0, finish: None }
    }

    fn event(name: &str, mut value: Value) -> Event {
        value["type"] = name.into();
        Event::named(name, &value)
    }

    fn begin(&mut self, usage: Usage, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.begun, true) {
            self.message["usage"] = usage_json(Usage { completion_tokens: 0, ..usage });
            events.push(Self::event("message_start", json!({"message": self.message})));
        }
    }

    fn open(&mut self, kind: Kind, name: &str, events: &mut Vec<Event>) {
        self.close(events);
        let block = match kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Text => json!({"type": "text", "text": ""}),
            Kind::Call => json!({"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": {}}),
        };
        events
            .push(Self::event("content_block_start", json!({"index": self.blocks, "content_block": block})));
        self.open = Some(kind);
    }

    fn add(&mut self, kind: Kind, delta: Value, events: &mut Vec<Event>) {
        if self.open != Some(kind) {
            self.open(kind, "", events);
        }
        events.push(Self::event("content_block_delta", json!({"index": self.blocks, "delta": delta})));
    }

    fn close(&mut self, events: &mut Vec<Event>) {
        if self.open.take().is_some() {
            events.push(Self::event("content_block_stop", json!({"index": self.blocks})));
            self.blocks += 1;
        }
    }
}

/// Why the answer ended: the reason and the stop string.
fn stop(finish: Option<&Finish>) -> (Value, Value) {
    let Some(finish) = finish else { return (Value::Null, Value::Null) };
    let reason = match (finish.reason, &finish.stopped_by) {
        (FinishReason::Length, _) => "max_tokens",
        (FinishReason::Stop, _) if finish.has_calls => "tool_use",
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
    };
    (reason.into(), finish.stopped_by.clone().map_or(Value::Null, Value::from))
}

/// Anthropic's usage object, which counts what the cache held apart from the rest of the prompt.
fn usage_json(usage: Usage) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens: _ } = usage;
    json!({
        "input_tokens": prompt_tokens.saturating_sub(cached_tokens),
        "cache_read_input_tokens": cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": completion_tokens,
    })
}

/// The error object of Anthropic's API.
pub fn error_body(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        403 => "permission_error",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    let body = error.body();
    let body = &body["error"];
    // `code` is not Anthropic's; gateways read it to tell a prompt that is too long from other mistakes.
    json!({"type": "error", "error": {"type": kind, "message": body["message"], "param": body["param"], "code": body["code"]}})
}

impl Writer for MessagesWriter {
    fn events(&mut self, delta: Delta, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin(usage, &mut events);
        for part in delta.parts {
            match part {
                Part::Reasoning(text) => {
                    self.add(
                        Kind::Thinking,
                        json!({"type": "thinking_delta", "thinking": text}),
                        &mut events,
                    );
                }
                Part::Content(text) => {
                    self.add(Kind::Text, json!({"type": "text_delta", "text": text}), &mut events)
                }
                Part::Call { name } => self.open(Kind::Call, &name, &mut events),
                Part::Arguments(text) => {
                    self.add(
                        Kind::Call,
                        json!({"type": "input_json_delta", "partial_json": text}),
                        &mut events,
                    );
                }
            }
        }
        self.finish = delta.finish.or(self.finish.take());
        events
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin(usage, &mut events);
        self.close(&mut events);
        let (reason, sequence) = stop(self.finish.as_ref());
        events.push(Self::event(
            "message_delta",
            json!({"delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_json(usage)}),
        ));
        events.push(Self::event("message_stop", json!({})));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        vec![Event::named("error", &error_body(error))]
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let answer = answers.into_iter().next().unwrap_or_default();
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": ""}));
        }
        if !answer.content.is_empty() {
            content.push(json!({"type": "text", "text": answer.content}));
        }
        for (name, arguments) in &answer.calls {
            // A call that was cut off by the token limit is no JSON yet.
            let input = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            content.push(json!({"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": input}));
        }
        let (reason, sequence) = stop(Some(&answer.finish));
        let mut message = self.message.clone();
        message["content"] = content.into();
        message["stop_reason"] = reason;
        message["stop_sequence"] = sequence;
        message["usage"] = usage_json(usage);
        message
    }
}
