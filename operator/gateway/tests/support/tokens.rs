//! An engine that speaks the resume contract of docs/contracts.md, and breaks off as often as the test wants.

use serde_json::{Value, json};

/// How a stream of tokens breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// In the middle of an event, by a closed connection.
    Cut,
    /// By an event that says so.
    Error,
    /// Never, but its end has no mark.
    Unmarked,
}

/// A stream of `total` tokens, of which one connection carries `per_connection`.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub model_file: &'static str,
    pub total: u64,
    pub per_connection: u64,
    pub how: Break,
}

impl Tokens {
    pub fn status(&self) -> Value {
        json!({"ready": true, "modelFile": self.model_file, "contextTokens": 4096,
            "queue": {"running": 0, "waiting": 0}, "progress": {"steps": 1, "tokensGenerated": 1}})
    }

    /// What the client reads when nothing breaks.
    pub fn text(&self) -> String {
        (0..self.total).map(|token| format!("t{token} ")).collect()
    }

    /// The events of one connection, and whether they are all.
    pub fn events(&self, request: &str) -> (String, bool) {
        let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).expect("a JSON body");
        assert_eq!(body["return_token_ids"], true, "{body}");
        let has = body["resume_tokens"].as_array().map_or(0, |ids| {
            let expected: Vec<u64> = (0..ids.len() as u64).map(|token| 100 + token).collect();
            assert_eq!(ids, &expected.into_iter().map(Value::from).collect::<Vec<_>>());
            assert_eq!(body["resume"], json!({"id": "chatcmpl-1", "created": 17, "seed": 7}));
            ids.len() as u64
        });
        if request.starts_with("POST /v1/messages ") {
            return self.marked(has);
        }
        let chunk = |delta: Value, ids: Vec<u64>, finish: Option<&str>| {
            json!({"id": "chatcmpl-1", "created": 17, "model": "code", "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "token_ids": ids}]})
        };
        let mut events = String::new();
        let mut push = |value: Value| events.push_str(&format!("data: {value}\n\n"));
        for token in has..self.total.min(has + self.per_connection) {
            let mut first = chunk(json!({"content": format!("t{token} ")}), vec![100 + token], None);
            if token == has {
                first["seed"] = 7.into();
            }
            push(first);
        }
        if has + self.per_connection < self.total {
            match self.how {
                Break::Cut => events.push_str("data: {\"id\": \"chatcmpl-1\", \"choi"),
                Break::Error | Break::Unmarked => {
                    push(json!({"error": {"message": "m", "code": "internal_error"}}))
                }
            }
            return (events, false);
        }
        push(chunk(json!({}), vec![2], Some("stop")));
        if self.how != Break::Unmarked {
            events.push_str("data: [DONE]\n\n");
        }
        (events, true)
    }
}

impl Tokens {
    /// The same in the form of `/v1/messages`, whose tokens stand in comments.
    fn marked(&self, has: u64) -> (String, bool) {
        let event = |name: &str, data: Value| format!("event: {name}\ndata: {data}\n\n");
        let delta = |token: u64| {
            let delta = json!({"type": "text_delta", "text": format!("t{token} ")});
            event("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": delta}))
        };
        let mut events =
            if has == 0 { event("message_start", json!({"type": "message_start"})) } else { String::new() };
        for token in has..self.total.min(has + self.per_connection) {
            let mut mark = json!({"token_ids": [100 + token]});
            if token == has {
                mark = json!({"token_ids": [100 + token], "id": "chatcmpl-1", "created": 17, "seed": 7});
            }
            events += &format!("{}: atlas-resume {mark}\n\n", delta(token));
        }
        let next = has + self.per_connection;
        if next < self.total {
            events += &match self.how {
                // Whole, but not marked: it comes again.
                Break::Cut => delta(next),
                _ => event("error", json!({"type": "error", "error": {"code": "internal_error"}})),
            };
            return (events, false);
        }
        events += &event("message_stop", json!({"type": "message_stop"}));
        events += ": atlas-resume {\"token_ids\":[],\"end\":true}\n\n";
        (events, true)
    }
}

/// The text of a stream as a client joins it.
pub fn joined(stream: &str) -> String {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    let chunks = data.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).expect("a JSON event"));
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}
