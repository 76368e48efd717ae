//! The real binary on the real model, over HTTP. `make setup` fetches the model.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::net::TcpListener;
use std::process::Output;
use std::time::Instant;
use support::{Engine, PATIENCE, chat, command, events, model, prompt, request};

/// What a build says without a card, and what one without kernels for cards says.
const NO_HIP: &str = if cfg!(feature = "hip") { "amdgpu driver" } else { "no HIP backend" };

#[test]
fn a_cache_of_eight_bits_answers_alike() {
    let engine = Engine::start(&["--kv-cache-type", "Q8_0"]);
    assert_eq!(engine.complete(prompt("The capital of France is", json!({"max_tokens": 2}))), " Paris.");
    // Long enough for several blocks of the cache, and again from the prefix cache.
    let counted = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,";
    let whole = engine.complete(prompt(counted, json!({"max_tokens": 12})));
    assert!(whole.starts_with(" 15, 16, 17"), "{whole}");
    assert_eq!(engine.complete(prompt(counted, json!({"max_tokens": 12}))), whole);
}

#[test]
fn answers_agree_between_forms_companies_and_seeds() {
    let engine = Engine::start(&[]);
    assert_eq!(engine.complete(prompt("The capital of France is", json!({"max_tokens": 2}))), " Paris.");

    let (status, whole) = engine.post("/v1/chat/completions", &chat(json!({"model": "alias"})));
    assert_eq!(
        (status, &whole["model"], &whole["object"]),
        (200, &json!("alias"), &json!("chat.completion"))
    );
    let streamed = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let (_, events) = engine.post("/v1/chat/completions", &streamed);
    let events = events.as_str().unwrap();
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    let events: Vec<Value> = events
        .split("\n\n")
        .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok())
        .collect();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(events.last().unwrap()["usage"][count], whole["usage"][count]);
    }
    assert_eq!(whole["usage"]["completion_tokens"], 4);

    // A stop string that spans tokens ends the text before it.
    let full = engine.complete(prompt("1, 2, 3,", json!({"max_tokens": 12})));
    let stop = &full[full.len() / 3..full.len() / 3 + 3];
    let stopped = engine.complete(prompt("1, 2, 3,", json!({"max_tokens": 12, "stop": [stop]})));
    assert_eq!(stopped, full.split(stop).next().unwrap());

    // A seeded answer is the same alone and in company.
    let seeded = || prompt("Once upon a time", json!({"temperature": 1.0, "seed": 5, "max_tokens": 10}));
    let alone = engine.complete(seeded());
    std::thread::scope(|scope| {
        let answers: Vec<_> = (0..4).map(|_| scope.spawn(|| engine.complete(seeded()))).collect();
        for answer in answers {
            assert_eq!(answer.join().unwrap(), alone);
        }
    });
    let (status, text) = request(&engine.internal, "GET", "/internal/status", "");
    let status_json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &status_json["phase"], &status_json["ready"]),
        (200, &json!("Serving"), &json!(true))
    );
    assert_eq!(status_json["modelFile"], "smollm2-135m-instruct-q4_1");
    assert!(engine.get("/metrics").1.contains("atlas_engine_generated_tokens_total"));

    for (path, body, expected, param) in [
        ("/v1/chat/completions", chat(json!({"model": "other"})), 404, json!("model")),
        ("/v1/chat/completions", chat(json!({"n": 65})), 400, json!("n")),
        ("/v1/chat/completions", chat(json!({"temperature": 9})), 400, json!("temperature")),
        ("/v1/chat/completions", chat(json!({"max_tokens": 5000})), 400, json!("messages")),
        (
            "/v1/chat/completions",
            chat(json!({"tools": [{"type": "function"}]})),
            400,
            json!("tools[0].function"),
        ),
        ("/v1/completions", prompt("", json!({})), 400, json!("prompt")),
        ("/v1/completions", prompt(&"x".repeat(200_000), json!({})), 413, Value::Null),
        ("/v1/nothing", json!({}), 404, Value::Null),
    ] {
        let (status, answer) = engine.post(path, &body);
        assert_eq!((status, &answer["error"]["param"]), (expected, &param), "{answer}");
    }
}

#[test]
fn running_requests_finish_when_the_engine_is_told_to_stop() {
    let mut engine = Engine::start(&[]);
    let body = prompt("Count:", json!({"max_tokens": 60, "ignore_eos": true}));
    let mut stream = body.clone();
    stream["stream"] = true.into();
    let stream = stream.to_string();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| engine.post("/v1/completions", &body));
        // The gateway's port drains as well.
        let streamed = scope.spawn(|| request(&engine.internal, "POST", "/v1/completions", &stream));
        let busy = || request(&engine.internal, "GET", "/internal/status", "").1.contains(r#""running":2"#);
        let began = Instant::now();
        while !busy() {
            assert!(
                began.elapsed() < PATIENCE && !running.is_finished(),
                "the request is never seen running"
            );
        }
        engine.signal("-TERM");
        let began = Instant::now();
        while request(&engine.internal, "GET", "/readyz", "").0 != 503 {
            assert!(began.elapsed() < PATIENCE);
        }
        let (status, refused) = engine.post("/v1/completions", &prompt("x", json!({})));
        assert_eq!((status, &refused["error"]["code"]), (503, &json!("engine_draining")));
        let (status, answer) = running.join().unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(60)));
        let (status, events) = streamed.join().unwrap();
        assert!(status == 200 && events.ends_with("data: [DONE]\n\n"), "{status} {events}");
    });
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn requests_that_outlast_the_drain_timeout_are_told_so() {
    let mut engine = Engine::start(&["--drain-timeout", "100ms"]);
    let body = prompt("Count:", json!({"max_tokens": 500, "ignore_eos": true}));
    let stream = |path: &str, mut body: Value| {
        body["stream"] = true.into();
        request(&engine.api, "POST", path, &body.to_string())
    };
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| engine.post("/v1/completions", &body));
        let streamed = scope.spawn(|| stream("/v1/completions", body.clone()));
        let said = json!({"model": "code", "input": "Count:", "ignore_eos": true});
        let responses = scope.spawn(|| stream("/v1/responses", said));
        let seen = || {
            let status = request(&engine.internal, "GET", "/internal/status", "").1;
            let status: Value = serde_json::from_str(&status).unwrap();
            let told = |pointer: &str| status.pointer(pointer).unwrap().as_u64().unwrap();
            (told("/queue/running"), told("/progress/tokensGenerated"))
        };
        let began = Instant::now();
        let wait = |running: u64, tokens: u64| {
            while seen().0 < running || seen().1 < tokens {
                assert!(began.elapsed() < PATIENCE && !streamed.is_finished());
            }
            seen().1
        };
        // A stream that has shown nothing yet would be refused as a whole; some steps later each has.
        let tokens = wait(3, 0);
        wait(3, tokens + 60);
        engine.signal("-TERM");
        let (status, answer) = whole.join().unwrap();
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("engine_draining")), "{answer}");
        let (status, text) = streamed.join().unwrap();
        let last = events(&text).pop().unwrap();
        assert_eq!((status, &last["error"]["code"]), (200, &json!("engine_draining")), "{text}");
        let (status, text) = responses.join().unwrap();
        let last = events(&text).pop().unwrap();
        assert_eq!((status, &last["type"]), (200, &json!("response.failed")), "{text}");
    });
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_keeps_a_model_from_being_served_has_its_exit_code_and_words() {
    let folder = tempfile::tempdir().unwrap();
    let corrupt = folder.path().join("corrupt.gguf");
    std::fs::write(&corrupt, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    let real = model();
    let (corrupt, real) = (corrupt.to_str().unwrap(), real.to_str().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let log = folder.path().join("termination-log");
    let zeros = "0".repeat(64);
    for (model, more, code, words) in [
        ("/nowhere/model.gguf", vec![], 10, "/nowhere/model.gguf cannot be read"),
        (corrupt, vec![], 11, "the tensor count at byte"),
        (real, vec!["--sha256", &zeros], 12, "expected 0000"),
        (real, vec!["--port", &port], 14, port.as_str()),
        (real, vec!["--backend", "hip", "--system-root", "/nonexistent"], 22, NO_HIP),
        (real, vec!["--context-tokens", "9000"], 2, "more than the 8192"),
        ("ftp://host/key", vec![], 2, "\"ftp://host/key\" is not supported"),
    ] {
        let _ = std::fs::remove_file(&log);
        let more = [vec!["--termination-log", log.to_str().unwrap()], more].concat();
        let mut command = command(model, &more);
        let Output { status, stderr, .. } = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
        assert!(std::fs::read_to_string(&log).unwrap().contains(words));
    }
}
