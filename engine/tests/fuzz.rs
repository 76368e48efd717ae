//! Random and malformed requests against a real engine: whatever comes, the answer is a proper one and the engine lives.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{Engine, PATIENCE, request};

/// Requests a run; `ATLAS_FUZZ_REQUESTS` asks for more.
fn requests() -> usize {
    std::env::var("ATLAS_FUZZ_REQUESTS").ok().and_then(|count| count.parse().ok()).unwrap_or(2000)
}

/// Another seed gives other requests; `ATLAS_FUZZ_SEED` names one.
fn seed() -> u8 {
    std::env::var("ATLAS_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// Clients at a time.
const CLIENTS: u8 = 4;

const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
];

/// Fields that some API reads, and a few that none does.
const FIELDS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "priority",
    "ignore_eos",
    "n",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
    "echo",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "structured_outputs",
    "grammar",
    "suffix",
    "best_of",
    "user",
    "metadata",
    "return_token_ids",
    "resume_tokens",
    "resume",
    "tokens",
    "system",
    "stop_sequences",
    "instructions",
    "text",
    "include_stop_str_in_output",
    "made_up",
    "model",
    "messages",
    "prompt",
    "input",
    "max_tokens",
];

/// Values that mean something somewhere.
fn meaningful() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("x"),
        json!("auto"),
        json!("required"),
        json!("\u{0}🦀\n"),
        json!([]),
        json!({}),
        json!([[]]),
        json!([1, 2]),
        json!([[1], [2]]),
        json!(["a", "b"]),
        json!({"1": 5}),
        json!({"include_usage": true}),
        json!({"type": "json_object"}),
        json!({"id": "x", "created": 1}),
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "items": {"enum": [1, 2]}}}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}),
        json!({"type": "json_schema", "json_schema": {"schema": {"pattern": "((((((a*)*)*)*)*)*", "type": "string"}}}),
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
        json!([{"type": "function", "name": "f"}]),
        json!([{"name": "f", "input_schema": {}}]),
        json!({"type": "function", "function": {"name": "f"}}),
        json!({"type": "any"}),
        json!([{"role": "user", "content": "hi"}]),
        json!([{"role": "assistant", "content": "Yes"}]),
        json!([{"role": "tool", "content": [{"type": "text", "text": "x"}]}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
        json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
    ])
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        meaningful(),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,12}".prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A body that is nearly right: what each API needs, then a few fields replaced.
fn body() -> impl Strategy<Value = String> {
    let fields = prop::collection::vec(
        (prop::sample::select(FIELDS), prop_oneof![3 => meaningful(), 1 => any_value()]),
        0..5,
    );
    let nearly = fields.prop_map(|fields| {
        let mut body = json!({"model": "code", "max_tokens": 3, "prompt": "x", "input": "x",
            "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        // Answers stay short: the test is about requests.
        for limit in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            if body[limit].as_u64().is_none_or(|limit| limit > 4) {
                body[limit] = 3.into();
            }
        }
        body.to_string()
    });
    prop_oneof![
        12 => nearly,
        1 => any_value().prop_map(|value| value.to_string()),
        1 => ".{0,60}",
        1 => Just("[".repeat(5000)),
        1 => Just(format!("{{\"model\": \"code\", \"prompt\": \"{}\"}}", "y ".repeat(2000))),
    ]
}

#[test]
fn no_request_gets_a_server_error_or_ends_the_engine() {
    let mut engine = Engine::start(&["--queue", "64"]);
    std::thread::scope(|scope| {
        for thread in 0..CLIENTS {
            let engine = &engine;
            scope.spawn(move || {
                let mut bytes = [thread; 32];
                bytes[0] = seed();
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
                let mut runner = TestRunner::new_with_rng(Config::default(), rng);
                let strategy = (prop::sample::select(PATHS), body(), prop::bool::weighted(0.2));
                for _ in 0..requests() / usize::from(CLIENTS) {
                    let (path, body, internal) = strategy.new_tree(&mut runner).unwrap().current();
                    let address = if internal { &engine.internal } else { &engine.api };
                    let (status, answer) = request(address, "POST", path, &body);
                    // Nothing may be a server error but "busy".
                    let expected = status < 500 || status == 503;
                    assert!(expected, "{path} {body} gave {status} {answer}");
                    if (400..500).contains(&status) && !internal {
                        let answer: Value = serde_json::from_str(&answer).unwrap();
                        assert!(answer["error"]["message"].is_string(), "{path} {body} gave {answer}");
                    }
                }
            });
        }
    });
    // What is no HTTP at all is answered or closed, and never hangs.
    for bytes in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut stream = TcpStream::connect(&engine.api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    let idle = || {
        let status: Value =
            serde_json::from_str(&request(&engine.internal, "GET", "/internal/status", "").1).unwrap();
        let no_block = engine.get("/metrics").1.contains("atlas_engine_kv_used_blocks 0\n");
        status["queue"] == json!({"running": 0, "waiting": 0}) && no_block
    };
    let began = std::time::Instant::now();
    while !idle() {
        assert!(began.elapsed() < PATIENCE, "requests are still running");
        std::thread::yield_now();
    }
    assert_eq!(
        engine.complete(support::prompt("The capital of France is", json!({"max_tokens": 2}))),
        " Paris."
    );
    assert!(engine.child.try_wait().unwrap().is_none());
}
