//! The resume contract on the internal port, on the real model: a stream cut at any token goes on to the same text.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{Engine, chat, events, prompt, request};

/// The events of a stream from the internal port.
fn stream(engine: &Engine, path: &str, body: &Value) -> Vec<Value> {
    let (status, text) = request(&engine.internal, "POST", path, &body.to_string());
    assert_eq!(status, 200, "{body} gave {text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    events(&text)
}

/// What a client has seen of one choice: everything but ids, joined.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    role: String,
    text: String,
    reasoning: String,
    calls: Vec<(String, String, String)>,
    /// Of the completion API: log-probabilities and where their tokens begin.
    logprobs: Vec<(Value, Value)>,
    finish: Option<String>,
}

fn add(seen: &mut [Seen], event: &Value) {
    for choice in event["choices"].as_array().unwrap() {
        let own = &mut seen[choice["index"].as_u64().unwrap() as usize];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let delta = &choice["delta"];
        own.role += &text(&delta["role"]);
        own.text += &(text(&delta["content"]) + &text(&choice["text"]));
        own.reasoning += &text(&delta["reasoning_content"]);
        let list = |name: &str| choice["logprobs"][name].as_array().cloned().unwrap_or_default();
        own.logprobs.extend(list("token_logprobs").into_iter().zip(list("text_offset")));
        for call in delta["tool_calls"].as_array().unwrap_or(&Vec::new()) {
            let index = call["index"].as_u64().unwrap() as usize;
            if own.calls.len() <= index {
                own.calls.push(Default::default());
            }
            own.calls[index].0 += &text(&call["id"]);
            own.calls[index].1 += &text(&call["function"]["name"]);
            own.calls[index].2 += &text(&call["function"]["arguments"]);
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            assert!(own.finish.replace(finish.to_owned()).is_none(), "a second finish");
        }
    }
}

/// Cuts a stream after each of its events and checks that the two halves are the whole.
fn check(engine: &Engine, path: &str, mut body: Value, choices: usize) {
    body["stream"] = true.into();
    body["return_token_ids"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let unbroken = stream(engine, path, &body);
    let (first, usage) = (&unbroken[0], unbroken.last().unwrap());
    let mut whole = vec![Seen::default(); choices];
    unbroken.iter().for_each(|event| add(&mut whole, event));
    assert!(whole.iter().all(|seen| seen.finish.is_some()));
    for cut in 1..unbroken.len() - 1 {
        let mut seen = vec![Seen::default(); choices];
        let mut tokens: Vec<Vec<Value>> = vec![Vec::new(); choices];
        for event in &unbroken[..cut] {
            add(&mut seen, event);
            for choice in event["choices"].as_array().unwrap() {
                let ids = choice["token_ids"].as_array().unwrap();
                tokens[choice["index"].as_u64().unwrap() as usize].extend(ids.iter().cloned());
            }
        }
        let finished: Vec<bool> = seen.iter().map(|seen| seen.finish.is_some()).collect();
        let mut again = body.clone();
        // As the gateway sends them: it knows of no choice that has not shown anything yet.
        while tokens.last().is_some_and(Vec::is_empty) {
            tokens.pop();
        }
        again["resume_tokens"] = if tokens.len() == 1 { json!(tokens[0]) } else { json!(tokens) };
        again["resume"] = json!({"id": first["id"], "created": first["created"], "seed": first["seed"]});
        let resumed = stream(engine, path, &again);
        assert_eq!((&resumed[0]["id"], &resumed[0]["created"]), (&first["id"], &first["created"]));
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(resumed.last().unwrap()["usage"][count], usage["usage"][count], "cut at {cut}");
        }
        for event in &resumed {
            // The gateway drops the finish of a choice that has one.
            let mut event = event.clone();
            let known = |choice: &Value| finished[choice["index"].as_u64().unwrap() as usize];
            for choice in event["choices"].as_array().unwrap().iter().filter(|choice| known(choice)) {
                assert!(choice["finish_reason"].is_string() && choice["token_ids"] == json!([]), "{choice}");
            }
            event["choices"].as_array_mut().unwrap().retain(|choice| !known(choice));
            add(&mut seen, &event);
        }
        assert_eq!(seen, whole, "cut after event {cut} of {}", unbroken.len());
    }
}

#[test]
fn a_stream_cut_at_any_token_goes_on_to_the_same_answer() {
    let engine = Engine::start(&[]);
    let completions = "/v1/completions";
    check(&engine, completions, prompt("1, 2, 3,", json!({"max_tokens": 12})), 1);
    // A seed that the engine draws, penalties, two choices, and characters of several tokens.
    let drawn =
        json!({"temperature": 1, "max_tokens": 12, "n": 2, "presence_penalty": 1, "repetition_penalty": 1.2});
    check(&engine, completions, prompt("Emoji: 😀 🦀 🎉 é ü 漢字", drawn), 2);
    let stopped = json!({"max_tokens": 20, "stop": [", 7, 8"], "logprobs": 1});
    check(&engine, completions, prompt("1, 2, 3,", stopped), 1);
    // A choice that has shown nothing yet gets the prompt and its log-probabilities from the second engine.
    let echoed = json!({"max_tokens": 4, "echo": true, "logprobs": 1, "n": 2, "temperature": 1, "seed": 1});
    check(&engine, completions, prompt("1, 2, 3,", echoed), 2);
    check(&engine, "/v1/chat/completions", chat(json!({"max_tokens": 10, "temperature": 1, "seed": 4})), 1);
    // Held-back names of calls and a grammar's state come back too.
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"], "additionalProperties": false}}});
    let forced =
        json!({"max_tokens": 60, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false});
    check(&engine, "/v1/chat/completions", chat(forced), 1);
}

/// The events of a stream that tells its tokens in comments, and each comment with the events before it.
fn marked(engine: &Engine, path: &str, body: &Value) -> Vec<(Vec<Value>, Value)> {
    let (status, text) = request(&engine.internal, "POST", path, &body.to_string());
    assert_eq!(status, 200, "{body} gave {text}");
    let mut groups = vec![Vec::new()];
    let mut marks = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        match event.strip_prefix(": atlas-resume ") {
            Some(mark) => {
                marks.push(serde_json::from_str(mark).unwrap());
                groups.push(Vec::new());
            }
            None => groups.last_mut().unwrap().extend(events(event)),
        }
    }
    assert_eq!(groups.pop(), Some(Vec::new()), "the last events have a mark too: {text}");
    let groups: Vec<(Vec<Value>, Value)> = groups.into_iter().zip(marks).collect();
    assert_eq!(groups.last().unwrap().1["end"], true, "{text}");
    groups
}

/// Cuts a stream behind each of its tokens and checks that the resumed one is the rest, event by event.
fn check_marked(engine: &Engine, path: &str, mut body: Value) {
    body["stream"] = true.into();
    body["return_token_ids"] = true.into();
    let rest = |groups: &[(Vec<Value>, Value)]| -> Vec<Value> {
        let mut events: Vec<Value> = groups.iter().flat_map(|(events, _)| events.clone()).collect();
        for event in &mut events {
            // The second engine has another part of the prompt cached.
            for usage in ["/usage", "/response/usage"] {
                if let Some(usage) = event.pointer_mut(usage) {
                    *usage = usage["output_tokens"].clone();
                }
            }
        }
        events
    };
    let unbroken = marked(engine, path, &body);
    let first = unbroken[0].1.clone();
    for cut in 1..unbroken.len() {
        let ids: Vec<&Value> =
            unbroken[..cut].iter().flat_map(|(_, mark)| mark["token_ids"].as_array().unwrap()).collect();
        let mut again = body.clone();
        again["resume_tokens"] = json!(ids);
        again["resume"] = json!({"id": first["id"], "created": first["created"], "seed": first["seed"]});
        let resumed = marked(engine, path, &again);
        assert_eq!(rest(&resumed), rest(&unbroken[cut..]), "cut after token {cut} of {}", unbroken.len());
    }
}

#[test]
fn a_stream_in_blocks_that_is_cut_at_any_token_goes_on_with_the_same_events() {
    let engine = Engine::start(&[]);
    let drawn = json!({"max_tokens": 12, "temperature": 1});
    check_marked(&engine, "/v1/messages", chat(drawn));
    check_marked(&engine, "/v1/messages", chat(json!({"max_tokens": 20, "stop_sequences": ["4"]})));
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"], "additionalProperties": false});
    let tools = json!([{"name": "weather", "input_schema": schema}]);
    let forced = json!({"max_tokens": 60, "tools": tools, "tool_choice": {"type": "any"}});
    check_marked(&engine, "/v1/messages", chat(forced));
    let respond = |more: Value| {
        let mut body = json!({"model": "code", "input": "Emoji: 😀 🦀 🎉 é ü 漢字"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    check_marked(&engine, "/v1/responses", respond(json!({"max_output_tokens": 12, "temperature": 1})));
    let tools = json!([{"type": "function", "name": "weather", "parameters": schema}]);
    let forced = json!({"max_output_tokens": 60, "tools": tools, "tool_choice": "required"});
    check_marked(&engine, "/v1/responses", respond(forced));
    // What a resumed answer could not tell is not offered to be resumed.
    let told = respond(json!({"max_output_tokens": 3, "include": ["message.output_text.logprobs"],
        "stream": true, "return_token_ids": true}));
    assert!(marked(&engine, "/v1/responses", &told).iter().all(|(_, mark)| mark["seed"].is_null()));
}

#[test]
fn the_contracts_fields_are_for_the_internal_port_and_are_checked() {
    let engine = Engine::start(&[]);
    for (field, value) in
        [("return_token_ids", json!(true)), ("resume_tokens", json!([1])), ("resume", json!({"id": "x"}))]
    {
        let (status, refused) = engine.post("/v1/completions", &prompt("x", json!({field: value})));
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(field)));
    }
    let resume = json!({"id": "x", "created": 1, "seed": 2});
    for (more, param) in [
        (json!({"resume_tokens": [1]}), "resume"),
        (json!({"resume_tokens": [[1], [2]], "resume": resume}), "resume_tokens"),
        (json!({"resume_tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9], "resume": resume}), "resume_tokens"),
        (json!({"resume_tokens": [9999999], "resume": resume}), "resume_tokens"),
    ] {
        let body = prompt("x", more).to_string();
        let (status, refused) = request(&engine.internal, "POST", "/v1/completions", &body);
        let refused: Value = serde_json::from_str(&refused).unwrap();
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }
    // A whole answer tells its ids and seed as well.
    let whole = prompt("x", json!({"return_token_ids": true, "seed": 5})).to_string();
    let (_, whole) = request(&engine.internal, "POST", "/v1/completions", &whole);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!((whole["choices"][0]["token_ids"].as_array().unwrap().len(), &whole["seed"]), (8, &json!(5)));
}
