//! The OpenAI-compatible API in full, on the real model: forms of prompts, choices, log-probabilities, tools, schemas.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{Engine, chat, events, joined, prompt};

fn ok(engine: &Engine, path: &str, body: Value) -> Value {
    let (status, answer) = engine.post(path, &body);
    assert_eq!(status, 200, "{body} gave {answer}");
    answer
}

fn stream(engine: &Engine, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let answer = ok(engine, path, body);
    events(answer.as_str().unwrap())
}

#[test]
fn prompts_choices_and_log_probabilities_have_their_forms() {
    let engine = Engine::start(&[]);
    let completions = |body: Value| ok(&engine, "/v1/completions", body);

    // Text and ids are one prompt; a batch answers each as alone.
    let ids = ok(&engine, "/tokenize", json!({"prompt": "The capital of France is"}));
    assert_eq!((&ids["count"], &ids["max_model_len"]), (&json!(5), &json!(512)));
    let back = ok(&engine, "/detokenize", json!({"tokens": ids["tokens"]}));
    assert_eq!(back["prompt"], "The capital of France is");
    let batch = json!({"model": "code", "temperature": 0, "max_tokens": 2, "prompt":
        ["The capital of France is", "1, 2, 3,"]});
    let batch = completions(batch);
    assert_eq!(batch["choices"][0]["text"], " Paris.");
    assert_eq!(batch["choices"][1]["text"], engine.complete(prompt("1, 2, 3,", json!({"max_tokens": 2}))));
    let tokens =
        completions(json!({"model": "code", "temperature": 0, "max_tokens": 2, "prompt": ids["tokens"]}));
    assert_eq!(
        (&tokens["choices"][0]["text"], &tokens["usage"]["prompt_tokens"]),
        (&json!(" Paris."), &json!(5))
    );

    // Echo, streamed and not, also without an answer.
    let echo = |max_tokens: usize| {
        prompt("The capital of France is", json!({"max_tokens": max_tokens, "echo": true}))
    };
    assert_eq!(engine.complete(echo(2)), "The capital of France is Paris.");
    assert_eq!(
        joined(&stream(&engine, "/v1/completions", echo(2)), "/choices/0/text"),
        "The capital of France is Paris."
    );
    assert_eq!(engine.complete(echo(0)), "The capital of France is");
    let (status, refused) = engine.post("/v1/completions", &prompt("def f(", json!({"suffix": "return 1"})));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("suffix")));

    // Log-probabilities of both APIs agree, and the greedy token is the likeliest.
    let answer = completions(prompt("The capital of France is", json!({"max_tokens": 2, "logprobs": 2})));
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!([" Paris", "."]));
    assert_eq!(logprobs["text_offset"], json!([0, 6]));
    let chosen = logprobs["token_logprobs"][0].as_f64().unwrap();
    assert!(chosen < 0.0 && logprobs["top_logprobs"][0][" Paris"] == json!(chosen), "{logprobs}");
    let answer = ok(&engine, "/v1/chat/completions", chat(json!({"logprobs": true, "top_logprobs": 3})));
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(content[0]["top_logprobs"][0]["token"], content[0]["token"]);

    // Those of a prompt are what the same tokens have as an answer, streamed and not, with and without one.
    let asked = |more: Value| {
        let mut body = prompt("The capital of France is", json!({"echo": true, "logprobs": 2}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let echoed = completions(asked(json!({"max_tokens": 2, "n": 2})));
    for choice in echoed["choices"].as_array().unwrap() {
        assert_eq!(choice["text"], "The capital of France is Paris.");
        assert_eq!(choice["logprobs"], echoed["choices"][0]["logprobs"]);
    }
    let whole = &echoed["choices"][0]["logprobs"];
    assert_eq!(whole["tokens"], json!(["The", " capital", " of", " France", " is", " Paris", "."]));
    assert_eq!(whole["text_offset"], json!([0, 3, 11, 14, 21, 24, 30]));
    assert_eq!((&whole["token_logprobs"][0], &whole["top_logprobs"][0]), (&Value::Null, &Value::Null));
    assert_eq!(whole["top_logprobs"][5], logprobs["top_logprobs"][0]);
    let shorter = asked(json!({"prompt": "The capital of France is Paris.", "max_tokens": 0}));
    let scored = completions(shorter.clone());
    let choice = &scored["choices"][0];
    assert_eq!((&choice["logprobs"], &choice["finish_reason"]), (whole, &json!("length")), "{scored}");
    assert_eq!((&choice["text"], &scored["usage"]["completion_tokens"]), (&shorter["prompt"], &json!(0)));
    for (body, text) in [(shorter, "The capital of France is Paris."), (asked(json!({})), "")] {
        let chunks = stream(&engine, "/v1/completions", body);
        let lists = |name: &str| -> Vec<Value> {
            let lists = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array());
            lists.flatten().cloned().collect()
        };
        let known = lists("tokens").len().min(7);
        assert_eq!(lists("token_logprobs")[..known], whole["token_logprobs"].as_array().unwrap()[..known]);
        assert_eq!(lists("text_offset")[..known], whole["text_offset"].as_array().unwrap()[..known]);
        assert!(known == 7 && joined(&chunks, "/choices/0/text").starts_with(text));
    }
    // A prompt of several steps, while the cache holds its beginning.
    let long = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,";
    let score = || completions(asked(json!({"prompt": long, "max_tokens": 0})))["choices"][0].clone();
    let (first, again) = (score(), score());
    let tokens = first["logprobs"]["tokens"].as_array().unwrap().len();
    assert!(tokens > 64 && first == again, "{first}");
    assert_eq!(first["logprobs"]["token_logprobs"].as_array().unwrap().len(), tokens);
    // A prompt alone may fill the context, where the one token that is drawn and not shown has no place any more.
    let full = |tokens: usize| {
        let more = json!({"prompt": vec![100; tokens], "max_tokens": 0});
        engine.post("/v1/completions", &asked(more))
    };
    let (status, filled) = full(512);
    assert_eq!((status, &filled["usage"]["total_tokens"]), (200, &json!(512)), "{filled}");
    assert_eq!(filled["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 512);
    assert_eq!(full(513).1["error"]["code"], "context_length_exceeded");

    // Several choices: each with its own seed, the first as alone, and streams agree with whole answers.
    let several = || chat(json!({"temperature": 1, "seed": 3, "n": 3, "max_tokens": 8}));
    let whole = ok(&engine, "/v1/chat/completions", several());
    let texts: Vec<&Value> = (0..3).map(|index| &whole["choices"][index]["message"]["content"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let alone =
        ok(&engine, "/v1/chat/completions", chat(json!({"temperature": 1, "seed": 3, "max_tokens": 8})));
    assert_eq!(&alone["choices"][0]["message"]["content"], texts[0]);
    let chunks = stream(&engine, "/v1/chat/completions", several());
    for (index, text) in texts.iter().enumerate() {
        let own: Vec<Value> =
            chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(joined(&own, "/choices/0/delta/content"), text.as_str().unwrap());
        assert_eq!(joined(&own, "/choices/0/delta/role"), "assistant");
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "length");
    }

    // Prefill, stop strings that show, and bans.
    let prefilled = json!({"continue_final_message": true, "messages": [
        {"role": "user", "content": "Name the capital of France."}, {"role": "assistant", "content": "The capital of France is"}]});
    let prefilled = ok(&engine, "/v1/chat/completions", chat(prefilled));
    let content = prefilled["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with(" Paris"), "{content:?}");
    let stopped = prompt("1, 2, 3,", json!({"stop": [" 4"], "include_stop_str_in_output": true}));
    assert_eq!(engine.complete(stopped), " 4");
    let patient = prompt("1, 2, 3,", json!({"stop": [" 4"], "min_tokens": 5}));
    assert!(engine.complete(patient).starts_with(" 4"));
    let paris = ok(&engine, "/tokenize", json!({"prompt": " Paris"}))["tokens"][0].to_string();
    let banned = prompt("The capital of France is", json!({"logit_bias": {paris: -100}}));
    assert!(!engine.complete(banned).contains("Paris"));

    let model = engine.get("/v1/models/alias").1;
    let model: Value = serde_json::from_str(&model).unwrap();
    assert_eq!(
        (&model["max_model_len"], &model["root"]),
        (&json!(512), &json!("smollm2-135m-instruct-q4_1"))
    );
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "Tells the weather of a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city", "days"], "additionalProperties": false,
        "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}}})
}

#[test]
fn forced_calls_and_schemas_hold() {
    let engine = Engine::start(&[]);
    let body = |more: Value| {
        let mut body = chat(json!({"max_tokens": 120, "tools": [tool("weather"), tool("forecast")],
            "messages": [{"role": "user", "content": "What is the weather in Paris for 3 days?"}]}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let check = |call: &Value| {
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(
            arguments["city"].is_string() && (1..=9).contains(&arguments["days"].as_i64().unwrap()),
            "{arguments}"
        );
        assert_eq!(arguments.as_object().unwrap().len(), 2);
    };
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "forecast"}}});
    for (more, name, reason) in [
        (named, Some("forecast"), "stop"),
        (json!({"tool_choice": "required", "parallel_tool_calls": false}), None, "tool_calls"),
    ] {
        let whole = ok(&engine, "/v1/chat/completions", body(more.clone()));
        let choice = &whole["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(
            (calls.len(), &choice["finish_reason"], &choice["message"]["content"]),
            (1, &json!(reason), &Value::Null)
        );
        check(&calls[0]);
        assert!(name.is_none_or(|name| calls[0]["function"]["name"] == name));
        // The stream tells the same call, its name first.
        let chunks = stream(&engine, "/v1/chat/completions", body(more));
        let pointer = |field: &str| format!("/choices/0/delta/tool_calls/0/{field}");
        assert_eq!(
            joined(&chunks, &pointer("function/name")),
            calls[0]["function"]["name"].as_str().unwrap()
        );
        assert_eq!(
            joined(&chunks, &pointer("function/arguments")),
            calls[0]["function"]["arguments"].as_str().unwrap()
        );
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], reason);
    }
    // A conversation with calls and results is taken, and tools that may not be called are not shown.
    let history = json!({"tool_choice": "none", "messages": [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Paris\", \"days\": 1}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"}], "max_tokens": 5});
    let answer = ok(&engine, "/v1/chat/completions", body(history));
    assert_eq!(answer["choices"][0]["message"]["tool_calls"], Value::Null);

    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["cat", "dog"]}}, "required": ["name", "age", "kind"], "additionalProperties": false});
    let format = |schema: &Value| {
        json!({"response_format": {"type": "json_schema", "json_schema":
        {"name": "pet", "strict": true, "schema": schema}}, "max_tokens": 100, "temperature": 1, "seed": 1})
    };
    for seed in 0..4 {
        let mut body = chat(format(&schema));
        body["seed"] = seed.into();
        let answer = ok(&engine, "/v1/chat/completions", body);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        let pet: Value =
            serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
        assert!(
            pet["name"].as_str().unwrap().chars().count() <= 12 && pet["age"].as_i64().unwrap() <= 130,
            "{pet}"
        );
        assert!(pet["kind"] == "cat" || pet["kind"] == "dog", "{pet}");
    }
    let object = ok(
        &engine,
        "/v1/chat/completions",
        chat(json!({"response_format": {"type": "json_object"}, "max_tokens": 150})),
    );
    if object["choices"][0]["finish_reason"] == "stop" {
        let content = object["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(content).unwrap().is_object());
    }
    let (status, refused) = engine.post("/v1/chat/completions", &chat(format(&json!({"type": "thing"}))));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("response_format")), "{refused}");
}

#[test]
fn every_api_gives_the_same_answer_in_its_own_form() {
    let engine = Engine::start(&[]);
    let question = json!([{"role": "user", "content": "What is 2 + 2?"}]);
    let chat = ok(&engine, "/v1/chat/completions", chat(json!({"max_tokens": 6})));
    let text = chat["choices"][0]["message"]["content"].as_str().unwrap();
    let prompt_tokens = &chat["usage"]["prompt_tokens"];

    let message = json!({"model": "code", "max_tokens": 6, "temperature": 0, "messages": question});
    let whole = ok(&engine, "/v1/messages", message.clone());
    assert_eq!(whole["content"], json!([{"type": "text", "text": text}]));
    let counted = |name: &str| whole["usage"][name].as_u64().unwrap();
    let input_tokens = counted("input_tokens") + counted("cache_read_input_tokens");
    assert_eq!((&whole["stop_reason"], json!(input_tokens)), (&json!("max_tokens"), prompt_tokens.clone()));
    let count = ok(&engine, "/v1/messages/count_tokens", message.clone());
    assert_eq!(&count["input_tokens"], prompt_tokens);
    let events = stream(&engine, "/v1/messages", message);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(joined(&events, "/delta/text"), text);
    let forced = json!({"model": "code", "max_tokens": 90, "temperature": 0, "messages": question,
        "tools": [{"name": "add", "input_schema": {"type": "object", "properties": {"a": {"enum": [2]}},
            "required": ["a"], "additionalProperties": false}}],
        "tool_choice": {"type": "tool", "name": "add"}});
    let forced = ok(&engine, "/v1/messages", forced);
    assert_eq!(
        (&forced["content"][0]["name"], &forced["content"][0]["input"]),
        (&json!("add"), &json!({"a": 2}))
    );
    assert_eq!(forced["stop_reason"], "tool_use");
    let schema = json!({"type": "object", "properties": {"sum": {"enum": [4]}}, "required": ["sum"], "additionalProperties": false});
    let formed = json!({"model": "code", "max_tokens": 40, "temperature": 0, "messages": question,
        "output_config": {"format": {"type": "json_schema", "schema": schema}}});
    let formed = ok(&engine, "/v1/messages", formed);
    let sum: Value = serde_json::from_str(formed["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!((sum, &formed["stop_reason"]), (json!({"sum": 4}), &json!("end_turn")));

    let request = json!({"model": "code", "max_output_tokens": 6, "temperature": 0, "input": question});
    let whole = ok(&engine, "/v1/responses", request.clone());
    assert_eq!(whole["output"][0]["content"][0]["text"], text);
    assert_eq!((&whole["status"], &whole["usage"]["input_tokens"]), (&json!("incomplete"), prompt_tokens));
    let events = stream(&engine, "/v1/responses", request);
    let numbers: Vec<usize> =
        events.iter().map(|event| event["sequence_number"].as_u64().unwrap() as usize).collect();
    assert_eq!(numbers, (0..events.len()).collect::<Vec<_>>());
    assert_eq!(
        (&events[0]["type"], &events.last().unwrap()["type"]),
        (&json!("response.created"), &json!("response.incomplete"))
    );
    let deltas: Vec<Value> =
        events.iter().filter(|event| event["type"] == "response.output_text.delta").cloned().collect();
    assert_eq!(joined(&deltas, "/delta"), text);

    let tool = |name: &str| {
        json!({"type": "function", "name": name, "parameters": {"type": "object",
        "properties": {"a": {"enum": [2]}}, "required": ["a"], "additionalProperties": false}})
    };
    let mut limited = json!({"model": "code", "max_output_tokens": 90, "temperature": 0, "input": question,
        "tools": [tool("add"), tool("sub")], "reasoning": {"effort": "low"},
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]}});
    let called = ok(&engine, "/v1/responses", limited.clone());
    let calls = called["output"].as_array().unwrap();
    let calls = calls.iter().filter(|item| item["type"] == "function_call");
    assert!(calls.clone().count() > 0 && calls.clone().all(|call| call["name"] == "sub"), "{called}");
    assert_eq!(called["reasoning"]["effort"], "low");
    limited["tool_choice"]["tools"][0]["name"] = "mul".into();
    let (status, refused) = engine.post("/v1/responses", &limited);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("tool_choice.tools")), "{refused}");

    let long = json!({"model": "code", "max_tokens": 100_000, "messages": question});
    let (status, refused) = engine.post("/v1/messages", &long);
    let error = &refused["error"];
    assert_eq!((status, &refused["type"]), (400, &json!("error")), "{refused}");
    assert_eq!(error["type"], "invalid_request_error", "{refused}");
    assert_eq!(error["code"], "context_length_exceeded", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("100000 for the completion"), "{refused}");
    let (status, refused) = engine.post("/v1/messages", &json!({"model": "code", "messages": question}));
    assert_eq!(
        (status, &refused["type"], &refused["error"]["param"]),
        (400, &json!("error"), &json!("max_tokens"))
    );
    let too_long = json!({"model": "code", "input": "x", "max_output_tokens": 9000});
    let (status, refused) = engine.post("/v1/responses", &too_long);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("input")), "{refused}");

    // Vectors of a batch are those of each text alone, and have length 1.
    let embed = |input: Value| {
        ok(&engine, "/v1/embeddings", json!({"model": "code", "input": input}))["data"].clone()
    };
    let batch = embed(json!(["a cat", "a dog"]));
    assert_eq!(batch[1]["embedding"], embed(json!("a dog"))[0]["embedding"]);
    assert_ne!(batch[0]["embedding"], batch[1]["embedding"]);
    let square = |value: &Value| value.as_f64().unwrap().powi(2);
    let length: f64 = batch[0]["embedding"].as_array().unwrap().iter().map(square).sum();
    assert!((length - 1.0).abs() < 1e-3, "{length}");
}

#[test]
fn a_template_from_a_file_takes_the_models_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("template.jinja");
    let template = "{% for m in messages %}{% if m.role == 'king' or m.content == 'no' %}{{ raise_exception('no kings') }}{% endif %}{{ m.content }}{% endfor %}{{ suffix }}";
    std::fs::write(&file, template).unwrap();
    let engine = Engine::start(&["--chat-template", file.to_str().unwrap()]);
    let body = |content: &str| {
        json!({"model": "code", "temperature": 0, "max_tokens": 2, "messages": [{"role": "user", "content": content}],
            "chat_template_kwargs": {"suffix": " is"}})
    };
    let answer = ok(&engine, "/v1/chat/completions", body("The capital of France"));
    assert_eq!(answer["choices"][0]["message"]["content"], " Paris.");
    let (status, refused) = engine.post("/v1/chat/completions", &body("no"));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("messages")));
    assert!(refused["error"]["message"].as_str().unwrap().contains("no kings"), "{refused}");
    let tokens = ok(&engine, "/tokenize", body("The capital of France"));
    let text = ok(&engine, "/detokenize", json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["prompt"], "The capital of France is");
}
