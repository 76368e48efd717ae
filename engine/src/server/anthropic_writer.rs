//! The objects and events of `/v1/messages`.

use super::blocks::{BlockWriter, Blocks, Kind};
use super::collect::Answer;
use super::delta::{Finish, Usage};
use super::marks::{Identity, Marks};
use super::openai::ApiError;
use super::params::Params;
use super::reply::Event;
use atlas_engine_core::FinishReason;
use serde_json::{Value, json};

/// Writes a message.
pub struct Message {
    /// The message before anything is in it.
    message: Value,
    identity: Identity,
    /// Blocks that are whole.
    blocks: usize,
}

impl Message {
    /// A writer for one answer.
    pub fn writer(params: &Params) -> BlockWriter<Self> {
        let identity = Identity::of(params, "msg_");
        let message = json!({"id": identity.id, "type": "message", "role": "assistant", "model": params.model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage_json(Usage::default())});
        let marks = Marks::new(params, identity.clone());
        BlockWriter::new(Self { message, identity, blocks: 0 }, marks)
    }

    fn event(name: &str, mut value: Value) -> Event {
        value["type"] = name.into();
        Event::named(name, &value)
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

impl Blocks for Message {
    fn begin(&mut self, usage: Usage, events: &mut Vec<Event>) {
        self.message["usage"] = usage_json(Usage { completion_tokens: 0, ..usage });
        events.push(Self::event("message_start", json!({"message": self.message})));
    }

    fn open(&mut self, kind: Kind, name: &str, events: &mut Vec<Event>) {
        let block = match kind {
            Kind::Reasoning => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Content => json!({"type": "text", "text": ""}),
            Kind::Call => {
                let id = self.identity.part("toolu_", self.blocks);
                json!({"type": "tool_use", "id": id, "name": name, "input": {}})
            }
        };
        events
            .push(Self::event("content_block_start", json!({"index": self.blocks, "content_block": block})));
    }

    fn add(&mut self, kind: Kind, text: &str, events: &mut Vec<Event>) {
        let delta = match kind {
            Kind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Content => json!({"type": "text_delta", "text": text}),
            Kind::Call => json!({"type": "input_json_delta", "partial_json": text}),
        };
        events.push(Self::event("content_block_delta", json!({"index": self.blocks, "delta": delta})));
    }

    fn close(&mut self, _kind: Kind, _whole: bool, events: &mut Vec<Event>) {
        events.push(Self::event("content_block_stop", json!({"index": self.blocks})));
        self.blocks += 1;
    }

    fn end(&mut self, finish: Option<&Finish>, usage: Usage, events: &mut Vec<Event>) {
        let (reason, sequence) = stop(finish);
        events.push(Self::event(
            "message_delta",
            json!({"delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_json(usage)}),
        ));
        events.push(Self::event("message_stop", json!({})));
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        vec![Event::named("error", &error_body(error))]
    }

    fn whole(&mut self, answer: Answer, usage: Usage) -> Value {
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
            let id = self.identity.part("toolu_", content.len());
            content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
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
