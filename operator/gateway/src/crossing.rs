//! A broken stream goes on at an engine of another model, where its client or its model allows that.
//!
//! Pure. Models cut text into tokens differently, so it is the text that is handed over: the second engine gets it as
//! the beginning of the assistant's message, or of the completion. Its events come out as parts of the first stream.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::events;

/// What the client has of a stream, as text.
#[derive(Debug, Default)]
pub struct Story {
    text: String,
    /// Something passed that is not text of the only choice: thoughts, tool calls, another choice.
    unclear: bool,
}

impl Story {
    /// Takes in an event as the client gets it.
    pub fn take(&mut self, event: &[u8]) {
        let Some(chunk) = events::data(event).and_then(|data| serde_json::from_slice::<Value>(data).ok())
        else {
            return;
        };
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let delta = choice["delta"].as_object();
            let other = |key: &String| !matches!(key.as_str(), "role" | "content" | "refusal");
            let strange = delta.into_iter().flatten().any(|(key, value)| other(key) && !value.is_null());
            self.unclear |= strange || choice["index"].as_u64().is_some_and(|index| index > 0);
            self.text.push_str(text_of(choice));
        }
    }

    /// The request that goes on behind the text; `tokens` of its limit are used up. `None` where it cannot.
    #[must_use]
    pub fn crossed_body(&self, body: &[u8], tokens: u64) -> Option<Bytes> {
        let mut body: Map<String, Value> = serde_json::from_slice(body).ok()?;
        // A grammar would begin anew in the middle, and what was echoed would be echoed again.
        let text_only = body.get("response_format").is_none_or(|f| f.is_null() || f["type"] == "text");
        let single = |name: &str| body.get(name).is_none_or(|n| n.is_null() || *n == 1);
        let absent = |name: &str| body.get(name).is_none_or(|v| v.is_null() || *v == false);
        let plain = ["echo", "suffix", "guided_json", "guided_regex", "guided_choice", "guided_grammar"];
        if self.unclear
            || !text_only
            || !single("n")
            || !single("best_of")
            || !plain.iter().all(|n| absent(n))
        {
            return None;
        }
        let told = self.text.trim_end();
        if body.contains_key("messages") {
            extend_messages(&mut body, told)?;
        } else {
            let prompt = body.get("prompt")?.as_str()?;
            let prompt = format!("{prompt}{told}");
            body.insert("prompt".into(), prompt.into());
        }
        for name in ["max_tokens", "max_completion_tokens"] {
            if let Some(limit) = body.get(name).and_then(Value::as_u64) {
                body.insert(name.into(), limit.saturating_sub(tokens).max(1).into());
            }
        }
        body.insert("return_token_ids".into(), true.into());
        serde_json::to_vec(&body).ok().map(Bytes::from)
    }

    /// The white space at the text's end. It is not handed over: templates cut it off, and no model goes on well from
    /// it; the second one writes it anew, and the client does not get it twice.
    fn withheld(&self) -> &str {
        &self.text[self.text.trim_end().len()..]
    }
}

fn extend_messages(body: &mut Map<String, Value>, told: &str) -> Option<()> {
    let continues = body.get("continue_final_message").and_then(Value::as_bool) == Some(true);
    let messages = body.get_mut("messages")?.as_array_mut()?;
    if told.is_empty() {
        return Some(());
    }
    if continues {
        let last = messages.last_mut()?;
        let before = last["content"].as_str()?.to_owned();
        last["content"] = format!("{before}{told}").into();
    } else {
        messages.push(json!({"role": "assistant", "content": told}));
    }
    body.insert("continue_final_message".into(), true.into());
    body.insert("add_generation_prompt".into(), false.into());
    Some(())
}

fn text_of(choice: &Value) -> &str {
    choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default()
}

/// Makes the second stream's events parts of the first.
#[derive(Debug, Clone)]
pub struct Crossing {
    /// Id and time of the stream that the client has.
    pub id: String,
    /// The same.
    pub created: u64,
    /// Tokens that were generated before.
    pub tokens: u64,
    withheld: String,
}

impl Crossing {
    /// Behind what the client has.
    #[must_use]
    pub fn new(story: &Story, (id, created): (String, u64), tokens: u64) -> Self {
        Self { id, created, tokens, withheld: story.withheld().to_owned() }
    }

    /// What tells the client that another model goes on; its headers are gone.
    #[must_use]
    pub fn comment(tier: &str, display_model: &str) -> Bytes {
        let one_line = |text: &str| text.replace(['\r', '\n'], " ");
        let (tier, model) = (one_line(tier), one_line(display_model));
        format!(": x-atlas-tier: {tier}\n: x-atlas-model: {model}\n\n").into()
    }

    /// An event as the client gets it; `None` where it says nothing new.
    pub fn rewrite(&mut self, event: Bytes) -> Option<Bytes> {
        let Some(Ok(mut chunk)) = events::data(&event).map(serde_json::from_slice::<Value>) else {
            return Some(event);
        };
        let Some(fields) = chunk.as_object_mut().filter(|fields| fields.contains_key("choices")) else {
            return Some(event);
        };
        fields.insert("id".into(), self.id.as_str().into());
        fields.insert("created".into(), self.created.into());
        if let Some(usage) = fields.get_mut("usage") {
            self.correct_usage(usage);
        }
        let mut says_something = chunk["choices"].as_array().is_none_or(Vec::is_empty);
        for choice in chunk["choices"].as_array_mut().into_iter().flatten() {
            if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                delta.remove("role");
            }
            self.skip_withheld(choice);
            let more =
                choice["delta"].as_object().is_some_and(|delta| delta.keys().any(|key| key != "content"));
            says_something |= more || !text_of(choice).is_empty() || !choice["finish_reason"].is_null();
        }
        says_something.then(|| format!("data: {chunk}\n\n").into())
    }

    /// What was handed over is part of the answer and not of the prompt.
    fn correct_usage(&self, usage: &mut Value) {
        let count = |usage: &Value, name: &str| usage[name].as_u64();
        let (Some(prompt), Some(completion)) =
            (count(usage, "prompt_tokens"), count(usage, "completion_tokens"))
        else {
            return;
        };
        let (prompt, completion) = (prompt.saturating_sub(self.tokens), completion + self.tokens);
        usage["prompt_tokens"] = prompt.into();
        usage["completion_tokens"] = completion.into();
        usage["total_tokens"] = (prompt + completion).into();
    }

    /// Drops white space that the client has already.
    fn skip_withheld(&mut self, choice: &mut Value) {
        let text = text_of(choice).to_owned();
        if text.is_empty() || self.withheld.is_empty() {
            return;
        }
        let same = text.chars().zip(self.withheld.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(a, _)| a.len_utf8()).sum();
        let rest = text[same..].to_owned();
        // What differs from it is the second model's own.
        self.withheld = if rest.is_empty() { self.withheld[same..].to_owned() } else { String::new() };
        match choice.get_mut("text") {
            Some(text) => *text = rest.into(),
            None => choice["delta"]["content"] = rest.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(value: &Value) -> Bytes {
        format!("data: {value}\n\n").into()
    }

    fn delta(delta: Value) -> Value {
        json!({"id": "one", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    fn story(texts: &[&str]) -> Story {
        let mut story = Story::default();
        story.take(&event(&delta(json!({"role": "assistant", "content": ""}))));
        story.take(b": ping\n\n");
        for text in texts {
            story.take(&event(&delta(json!({"content": text}))));
        }
        story
    }

    #[test]
    fn the_text_is_handed_over_as_what_the_assistant_or_the_prompt_says() {
        let check = |body: Value, text: &[&str], expected: Option<Value>| {
            let made = story(text).crossed_body(body.to_string().as_bytes(), 3);
            let made = made.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
            assert_eq!(made, expected, "{body} {text:?}");
        };
        let user = json!({"role": "user", "content": "Hi"});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        check(
            json!({"messages": [user], "max_tokens": 10, "stream": true}),
            &["Yes, ", "it is \n"],
            Some(json!({"messages": [user, says("Yes, it is")], "max_tokens": 7, "stream": true,
                "continue_final_message": true, "add_generation_prompt": false, "return_token_ids": true})),
        );
        check(
            json!({"messages": [user, says("Well")], "continue_final_message": true, "max_completion_tokens": 2}),
            &[", yes"],
            Some(json!({"messages": [user, says("Well, yes")], "continue_final_message": true,
                "add_generation_prompt": false, "max_completion_tokens": 1, "return_token_ids": true})),
        );
        check(json!({"messages": [user]}), &[], Some(json!({"messages": [user], "return_token_ids": true})));
        check(
            json!({"prompt": "a = ", "n": 1}),
            &["1 +"],
            Some(json!({"prompt": "a = 1 +", "n": 1, "return_token_ids": true})),
        );
        for refused in [
            json!({"messages": [user], "n": 2}),
            json!({"messages": [user], "response_format": {"type": "json_object"}}),
            json!({"prompt": "a", "echo": true}),
            json!({"prompt": "a", "suffix": "b"}),
            json!({"prompt": ["a", "b"]}),
            json!({"prompt": [1, 2]}),
            json!({"input": "a"}),
            json!([]),
        ] {
            check(refused, &["x"], None);
        }
    }

    #[test]
    fn what_is_not_text_is_not_handed_over() {
        let body = br#"{"messages": []}"#;
        for strange in [json!({"tool_calls": [{"index": 0}]}), json!({"reasoning_content": "Hm"})] {
            let mut story = story(&["a"]);
            story.take(&event(&delta(strange.clone())));
            assert!(story.crossed_body(body, 1).is_none(), "{strange}");
        }
        let mut second = story(&["a"]);
        second.take(&event(&json!({"choices": [{"index": 1, "delta": {"content": "b"}}]})));
        assert!(second.crossed_body(body, 1).is_none());
        let mut nulls = story(&["a"]);
        nulls.take(&event(&delta(json!({"content": "b", "tool_calls": null}))));
        assert!(nulls.crossed_body(body, 1).is_some());
    }

    #[test]
    fn the_second_streams_events_are_parts_of_the_first() {
        let rewritten = |text: &[&str], second: &[Value]| -> Vec<Value> {
            let mut crossing = Crossing::new(&story(text), ("one".into(), 1), 3);
            let events = second.iter().filter_map(|value| crossing.rewrite(event(value)));
            events.map(|event| serde_json::from_slice(events::data(&event).unwrap()).unwrap()).collect()
        };
        let other = |mut value: Value| {
            value["id"] = "two".into();
            value["created"] = 2.into();
            value
        };
        let first = other(delta(json!({"role": "assistant", "content": ""})));
        let joined = |text: &[&str], second: &[&str]| -> String {
            let second: Vec<Value> =
                second.iter().map(|text| other(delta(json!({"content": text})))).collect();
            let events = rewritten(text, &second);
            text.concat() + &events.iter().map(|event| text_of(&event["choices"][0])).collect::<String>()
        };
        assert_eq!(rewritten(&["a"], &[first]), Vec::<Value>::new(), "no second role");
        assert_eq!(joined(&["a"], &[" b"]), "a b");
        assert_eq!(joined(&["a "], &[" b"]), "a b");
        assert_eq!(joined(&["a "], &["b"]), "a b");
        assert_eq!(joined(&["a:\n"], &["\n", "    b"]), "a:\n    b");
        assert_eq!(joined(&["a:\n  "], &["\n", "    b"]), "a:\n    b");
        let finish = json!({"id": "two", "created": 2, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        let usage = json!({"id": "two", "created": 2, "choices": [],
            "usage": {"prompt_tokens": 13, "completion_tokens": 4, "total_tokens": 17}});
        let events = rewritten(&["a"], &[finish, usage]);
        assert!(events.iter().all(|event| event["id"] == "one" && event["created"] == 1), "{events:?}");
        assert_eq!(events[0]["choices"][0]["finish_reason"], "stop");
        let expected = json!({"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17});
        assert_eq!(events[1]["usage"], expected);
        let mut crossing = Crossing::new(&story(&["a"]), ("one".into(), 1), 3);
        assert_eq!(crossing.rewrite("data: [DONE]\n\n".into()).unwrap(), "data: [DONE]\n\n");
    }
}
