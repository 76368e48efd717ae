//! What answers are held to by the fields of OpenAI, vLLM and llama.cpp, and the fields that are refused, on the real
//! model.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::time::Instant;
use support::{Engine, PATIENCE, chat, events, joined, prompt};

/// Whether a text is what was asked for.
type Holds<'a> = &'a dyn Fn(&str) -> bool;

/// What a chat and a completion say under some fields.
fn said(engine: &Engine, more: &Value) -> [String; 2] {
    let (status, talked) = engine.post("/v1/chat/completions", &chat(more.clone()));
    assert_eq!(status, 200, "{more} gave {talked}");
    let content = talked["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    [content, engine.complete(prompt("The answer is", more.clone()))]
}

#[test]
fn answers_hold_to_what_any_field_asks_for() {
    let engine = Engine::start(&[]);
    let is_number = |text: &str| text.parse::<i64>().is_ok();
    let is_choice = |text: &str| ["red\n", "\"blue\""].contains(&text);
    let is_dialled = |text: &str| {
        text.len() == 8
            && text.char_indices().all(|(at, c)| if at == 3 { c == '-' } else { c.is_ascii_digit() })
    };
    let is_list = |text: &str| {
        let bytes = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        bytes.is_some_and(|items| items.split(", ").all(|item| ["0x1f", "yes"].contains(&item)))
    };
    let choices = json!(["red\n", "\"blue\""]);
    let small = json!({"type": "integer", "minimum": -9, "maximum": 99});
    let gbnf = "# a list\nroot ::= \"[\" item (\", \" item){0,2} \"]\"\nitem ::= \"0x\" [0-9] [^a-eg-z0-9A-Z\\x00-\\x60\\x7b-\\U0010ffff] | \"yes\"";
    let lark = "start: \"[\" item (\", \" item)? \"]\"\nitem: \"0x1f\" | \"yes\"";
    let cases: [(Value, Holds); 10] = [
        (json!({"guided_choice": choices}), &is_choice),
        (json!({"structured_outputs": {"choice": choices}}), &is_choice),
        (json!({"guided_regex": r"\d{3}-\d{4}"}), &is_dialled),
        (json!({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}), &is_dialled),
        (json!({"guided_json": small.to_string()}), &is_number),
        (json!({"json_schema": small}), &is_number),
        (json!({"response_format": {"type": "json_object", "schema": small}}), &is_number),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": small}}}),
            &is_number,
        ),
        (json!({"grammar": lark}), &is_list),
        (json!({"guided_grammar": gbnf}), &|text: &str| {
            is_list(&text.replace(|c: char| c.is_ascii_digit(), "1").replace("1x", "0x"))
        }),
    ];
    for (mut body, holds) in cases {
        for seed in 0..3 {
            body.as_object_mut().unwrap().extend([
                ("max_tokens".to_owned(), json!(40)),
                ("temperature".to_owned(), json!(1)),
                ("seed".to_owned(), json!(seed)),
            ]);
            for text in said(&engine, &body) {
                assert!(holds(&text), "{body} gave {text:?}");
            }
        }
    }

    // A stream of several choices holds each of them.
    let body =
        prompt("The answer is", json!({"guided_choice": choices, "n": 3, "temperature": 1, "stream": true}));
    let (_, stream) = engine.post("/v1/completions", &body);
    for index in 0..3 {
        let own: Vec<Value> = events(stream.as_str().unwrap())
            .into_iter()
            .filter(|event| event["choices"][0]["index"] == index)
            .collect();
        assert!(is_choice(&joined(&own, "/choices/0/text")), "{own:?}");
    }
}

#[test]
fn what_cannot_be_held_to_or_done_is_refused_by_its_field() {
    let engine = Engine::start(&[]);
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (body, param) in [
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"guided_regex": "(?=a)b"}), "guided_regex"),
        (json!({"structured_outputs": {"regex": r"[^\x00-\x{10FFFF}]"}}), "structured_outputs.regex"),
        (json!({"grammar": "root ::= root"}), "grammar"),
        (json!({"grammar": "start: other"}), "grammar"),
        (json!({"guided_json": {"$ref": "#"}}), "guided_json"),
        (json!({"guided_json": {"type": "integer", "minimum": -1e30}}), "guided_json"),
        (json!({"guided_choice": ["a"], "response_format": {"type": "json_object"}}), "guided_choice"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"repeat_penalty": 1.1}), "repeat_penalty"),
    ] {
        for (path, whole) in
            [("/v1/chat/completions", chat(body.clone())), ("/v1/completions", prompt("x", body.clone()))]
        {
            let (status, refused) = engine.post(path, &whole);
            assert_eq!(
                (status, &refused["error"]["param"]),
                (400, &json!(param)),
                "{path} {body}: {refused}"
            );
        }
    }
    let forced = chat(json!({"guided_regex": "a", "tools": tool, "tool_choice": "required"}));
    let (status, refused) = engine.post("/v1/chat/completions", &forced);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("guided_regex")), "{refused}");
}

/// Each text of it can be read in very many ways, and every token adds to them.
const AMBIGUOUS: &str = "root ::= s\ns ::= s s s | s s | \"a\" | \"b\" | \"c\"";

#[test]
fn a_grammar_that_takes_too_long_ends_its_own_answer_and_says_so() {
    let engine = Engine::start(&[]);
    let more = json!({"grammar": AMBIGUOUS, "max_tokens": 400, "min_tokens": 400, "temperature": 1, "n": 2});
    let before = engine.complete(prompt("The answer is", json!({"max_tokens": 20})));
    let (status, refused) = engine.post("/v1/completions", &prompt("a b c", more.clone()));
    let error = &refused["error"];
    assert_eq!(
        (status, &error["param"], &error["code"]),
        (400, &json!("grammar"), &json!("grammar_gave_up"))
    );

    // A stream has begun by then, and its last event tells.
    let mut streamed = more;
    streamed["stream"] = json!(true);
    let (status, stream) = engine.post("/v1/completions", &prompt("a b c", streamed));
    let told = events(stream.as_str().unwrap());
    assert_eq!((status, &told.last().unwrap()["error"]["code"]), (200, &json!("grammar_gave_up")));
    assert!(told.iter().all(|event| event["choices"][0]["finish_reason"].is_null()), "{told:?}");

    // The engine serves on: it did not hang, its pace is what it was, and all blocks are free.
    assert_eq!(engine.complete(prompt("The answer is", json!({"max_tokens": 20}))), before);
    // What is told to a client is counted a moment later.
    let expected = [
        "atlas_engine_aborted_requests_total{reason=\"grammar\"} 2",
        "atlas_engine_kv_used_blocks 0",
        "atlas_engine_running_requests 0",
    ];
    let began = Instant::now();
    loop {
        let (_, metrics) = support::request(&engine.internal, "GET", "/metrics", "");
        if expected.iter().all(|line| metrics.contains(line)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{expected:?} are not all in {metrics}");
        std::thread::yield_now();
    }
}

#[test]
fn forms_as_deep_as_they_are_long_are_followed_and_longer_ones_refused() {
    let engine = Engine::start(&["--max-body-bytes", "1000000"]);
    // Each rule leads to the next, by recursion in the library: this used to end the process.
    let deep = 4000;
    let rules: String = (0..deep).map(|index| format!("r{index} ::= r{}\n", index + 1)).collect();
    let gbnf = format!("root ::= r0\n{rules}r{deep} ::= \"yes\"");
    let mut defs: serde_json::Map<String, Value> = (0..deep)
        .map(|index| (index.to_string(), json!({"$ref": format!("#/$defs/{}", index + 1)})))
        .collect();
    defs.insert(deep.to_string(), json!({"const": "yes"}));
    let choices: Vec<String> = (0..4000).map(|index| format!("(no. {index}) é|/\"\n")).collect();
    for (more, holds) in [
        (json!({"grammar": gbnf}), &(|text: &str| text == "yes") as Holds),
        (json!({"guided_json": {"$ref": "#/$defs/0", "$defs": defs}}), &|text: &str| text == "\"yes\""),
        (json!({"guided_choice": choices, "max_tokens": 40}), &|text: &str| {
            choices.iter().any(|choice| choice == text)
        }),
    ] {
        let text = engine.complete(prompt("The answer is", more));
        assert!(holds(&text), "{text:?}");
    }
    for (more, param) in [
        (json!({"grammar": format!("root ::= \"{}\"", "a".repeat(70_000))}), "grammar"),
        (json!({"guided_regex": "a".repeat(70_000)}), "guided_regex"),
        (json!({"guided_choice": ["a".repeat(140_000)]}), "guided_choice"),
        (json!({"guided_json": {"enum": ["a".repeat(600_000)]}}), "guided_json"),
    ] {
        let (status, refused) = engine.post("/v1/completions", &prompt("x", more));
        let message = refused["error"]["message"].as_str().unwrap();
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
        assert!(message.contains("bytes"), "{message}");
    }
}
