//! The objects and events of `/v1/responses`.

use super::blocks::{BlockWriter, Blocks, Kind};
use super::collect::Answer;
use super::delta::{Finish, Usage};
use super::fields::Fields;
use super::marks::{Identity, Marks};
use super::openai::ApiError;
use super::params::Params;
use super::reply::Event;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use serde_json::{Value, json};

/// The item that is being written.
struct Open {
    item: Value,
    text: String,
    /// Log-probabilities of its tokens, where asked for.
    logprobs: Vec<Value>,
}

/// Writes log-probabilities of tokens.
pub type Teller = Box<dyn Fn(&[(TokenId, TokenLogprobs)]) -> Vec<Value> + Send>;

/// Writes a response.
pub struct Response {
    /// The response without output, status and usage.
    base: Value,
    identity: Identity,
    output: Vec<Value>,
    open: Option<Open>,
    sequence: usize,
    tell: Teller,
    /// Log-probabilities of tokens whose text comes next.
    untold: Vec<Value>,
}

impl Response {
    /// A writer that repeats what the request asked for, as OpenAI does.
    pub fn writer(fields: &Fields, params: &Params, tell: Teller) -> BlockWriter<Self> {
        let identity = Identity::of(params, "resp_");
        let marks = Marks::new(params, identity.clone());
        BlockWriter::new(Self::new(fields, params, identity, tell), marks)
    }

    fn new(fields: &Fields, params: &Params, identity: Identity, tell: Teller) -> Self {
        let given = |name: &str, default: Value| fields.get(name).cloned().unwrap_or(default);
        let effort = fields.get("reasoning").map_or(Value::Null, |reasoning| reasoning["effort"].clone());
        let base = json!({
            "id": identity.id, "object": "response", "created_at": identity.created, "status": "in_progress",
            "error": null, "incomplete_details": null, "instructions": given("instructions", Value::Null),
            "max_output_tokens": given("max_output_tokens", Value::Null), "model": params.model, "output": [],
            "parallel_tool_calls": given("parallel_tool_calls", true.into()), "previous_response_id": null,
            "reasoning": {"effort": effort, "summary": null}, "store": false,
            "temperature": params.sampling.temperature, "text": given("text", json!({"format": {"type": "text"}})),
            "tool_choice": given("tool_choice", "auto".into()), "tools": given("tools", json!([])),
            "top_p": params.sampling.top_p, "truncation": given("truncation", "disabled".into()),
            "top_logprobs": params.sampling.top_logprobs.unwrap_or(0), "usage": null,
            "metadata": given("metadata", json!({})),
        });
        Self { base, identity, output: Vec::new(), open: None, sequence: 0, tell, untold: Vec::new() }
    }

    fn event(&mut self, name: &str, mut value: Value) -> Event {
        value["type"] = name.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Event::named(name, &value)
    }

    /// An event about the first and only part of an item.
    fn part_event(&mut self, name: &str, item: &Value, mut value: Value) -> Event {
        value["item_id"] = item["id"].clone();
        value["output_index"] = self.output.len().into();
        value["content_index"] = 0.into();
        self.event(name, value)
    }

    fn call_event(&mut self, name: &str, item: &Value, mut value: Value) -> Event {
        value["item_id"] = item["id"].clone();
        value["output_index"] = self.output.len().into();
        self.event(name, value)
    }

    /// The response as it is at the end.
    fn response(&self, finish: Option<&Finish>, usage: Usage) -> Value {
        let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } = usage;
        let mut response = self.base.clone();
        let cut = finish.is_some_and(|finish| finish.reason == FinishReason::Length);
        response["status"] = if cut { "incomplete" } else { "completed" }.into();
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = self.output.clone().into();
        response["usage"] = json!({
            "input_tokens": prompt_tokens, "input_tokens_details":
                {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
            "output_tokens": completion_tokens, "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": prompt_tokens + completion_tokens,
        });
        response
    }
}

fn new_item(identity: &Identity, index: usize, kind: Kind, name: &str) -> Value {
    let id = |prefix| identity.part(prefix, index);
    match kind {
        Kind::Reasoning => json!({"id": id("rs_"), "type": "reasoning", "summary": [], "content": []}),
        Kind::Content => json!({"id": id("msg_"), "type": "message", "status": "in_progress",
            "role": "assistant", "content": []}),
        Kind::Call => json!({"id": id("fc_"), "type": "function_call", "status": "in_progress",
            "call_id": id("call_"), "name": name, "arguments": ""}),
    }
}

/// Completes an item with its text; what the token limit cut is incomplete.
fn fill(kind: Kind, item: &mut Value, text: &str, logprobs: &[Value], whole: bool) {
    let status = if whole { "completed" } else { "incomplete" };
    match kind {
        Kind::Reasoning => item["content"] = json!([{"type": "reasoning_text", "text": text}]),
        Kind::Content => {
            item["content"] =
                json!([{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}]);
            item["status"] = status.into();
        }
        Kind::Call => {
            item["arguments"] = text.into();
            item["status"] = status.into();
        }
    }
}

impl Blocks for Response {
    fn begin(&mut self, _usage: Usage, events: &mut Vec<Event>) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.base.clone();
            events.push(self.event(name, json!({"response": response})));
        }
    }

    fn open(&mut self, kind: Kind, name: &str, events: &mut Vec<Event>) {
        let output_index = self.output.len();
        let item = new_item(&self.identity, output_index, kind, name);
        events.push(
            self.event("response.output_item.added", json!({"output_index": output_index, "item": item})),
        );
        if kind == Kind::Content {
            let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
            events.push(self.part_event("response.content_part.added", &item, json!({"part": part})));
        }
        self.open = Some(Open { item, text: String::new(), logprobs: Vec::new() });
    }

    fn logprobs(&mut self, logprobs: &[(TokenId, TokenLogprobs)]) {
        self.untold.extend((self.tell)(logprobs));
    }

    fn add(&mut self, kind: Kind, text: &str, events: &mut Vec<Event>) {
        let Some(mut open) = self.open.take() else { return };
        open.text.push_str(text);
        let delta = json!({"delta": text});
        events.push(match kind {
            Kind::Reasoning => self.part_event("response.reasoning_text.delta", &open.item, delta),
            Kind::Content => {
                let logprobs = std::mem::take(&mut self.untold);
                let delta = json!({"delta": text, "logprobs": logprobs});
                open.logprobs.extend(logprobs);
                self.part_event("response.output_text.delta", &open.item, delta)
            }
            Kind::Call => self.call_event("response.function_call_arguments.delta", &open.item, delta),
        });
        self.open = Some(open);
    }

    fn close(&mut self, kind: Kind, whole: bool, events: &mut Vec<Event>) {
        let Some(Open { mut item, text, logprobs }) = self.open.take() else { return };
        fill(kind, &mut item, &text, &logprobs, whole);
        match kind {
            Kind::Reasoning => {
                events.push(self.part_event("response.reasoning_text.done", &item, json!({"text": text})));
            }
            Kind::Content => {
                let done = json!({"text": text, "logprobs": logprobs});
                events.push(self.part_event("response.output_text.done", &item, done));
                let part = item["content"][0].clone();
                events.push(self.part_event("response.content_part.done", &item, json!({"part": part})));
            }
            Kind::Call => {
                let done = json!({"arguments": text, "name": item["name"]});
                events.push(self.call_event("response.function_call_arguments.done", &item, done));
            }
        }
        let output_index = self.output.len();
        events.push(
            self.event("response.output_item.done", json!({"output_index": output_index, "item": item})),
        );
        self.output.push(item);
    }

    fn end(&mut self, finish: Option<&Finish>, usage: Usage, events: &mut Vec<Event>) {
        if self.output.is_empty() {
            // Nothing was said, which is a message too, as in a whole answer.
            self.open(Kind::Content, "", events);
            self.close(
                Kind::Content,
                finish.is_none_or(|finish| finish.reason != FinishReason::Length),
                events,
            );
        }
        let response = self.response(finish, usage);
        let name = format!("response.{}", response["status"].as_str().unwrap_or("completed"));
        events.push(self.event(&name, json!({"response": response})));
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        let body = error.body();
        let error = &body["error"];
        let told = json!({"code": error["code"], "message": error["message"], "param": error["param"]});
        let mut response = self.base.clone();
        response["status"] = "failed".into();
        response["error"] = json!({"code": "server_error", "message": error["message"]});
        // What was finished before stays.
        response["output"] = self.output.clone().into();
        vec![self.event("error", told), self.event("response.failed", json!({"response": response}))]
    }

    fn whole(&mut self, answer: Answer, usage: Usage) -> Value {
        let logprobs = (self.tell)(&answer.logprobs);
        let mut blocks = Vec::new();
        if !answer.reasoning.is_empty() {
            blocks.push((Kind::Reasoning, "", answer.reasoning.as_str()));
        }
        if !answer.content.is_empty() || answer.calls.is_empty() {
            blocks.push((Kind::Content, "", answer.content.as_str()));
        }
        blocks.extend(answer.calls.iter().map(|(name, text)| (Kind::Call, name.as_str(), text.as_str())));
        let (last, cut) = (blocks.len() - 1, answer.finish.reason == FinishReason::Length);
        for (index, (kind, name, text)) in blocks.into_iter().enumerate() {
            let mut item = new_item(&self.identity, index, kind, name);
            fill(kind, &mut item, text, &logprobs, !cut || index < last);
            self.output.push(item);
        }
        self.response(Some(&answer.finish), usage)
    }
}

#[cfg(test)]
mod tests {
    use super::super::delta::Delta;
    use super::super::reply::Writer;
    use super::*;
    use crate::text::answer::Part;

    #[test]
    fn an_answer_that_fails_keeps_what_was_finished() {
        let fields = Fields::parse(br#"{"model": "m", "input": "x"}"#).unwrap();
        let params = Params::read(&fields, None).unwrap();
        let mut writer = Response::writer(&fields, &params, Box::new(|_| Vec::new()));
        let parts = vec![Part::Reasoning("so".into()), Part::Content("he".into())];
        let mut events = writer.events(Delta { parts, ..Delta::default() }, Usage::default());
        events.extend(writer.failed(&ApiError::timeout(5)));
        let seen: Vec<Value> = events.iter().map(Event::value).collect();
        let [.., told, failed] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((&told["type"], &told["code"]), (&json!("error"), &json!("request_timeout")));
        assert_eq!(failed["type"], "response.failed");
        let response = &failed["response"];
        assert_eq!(
            (&response["status"], &response["error"]["code"]),
            (&json!("failed"), &json!("server_error"))
        );
        let output = response["output"].as_array().unwrap();
        assert_eq!((output.len(), &output[0]["type"]), (1, &json!("reasoning")));
        let numbers = seen.iter().map(|event| event["sequence_number"].as_u64().unwrap());
        assert!(numbers.eq(0..seen.len() as u64));
    }
}
