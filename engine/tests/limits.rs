//! What the engine refuses and when it gives up: keys, origins, slow clients, overload, timeouts.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;
use support::{Engine, PATIENCE, prompt, request};

/// A request as it stands, and everything that comes back.
fn raw(address: &str, text: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).to_ascii_lowercase()
}

fn get(engine: &Engine, path: &str, header: &str) -> String {
    raw(&engine.api, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n"))
}

#[test]
fn keys_and_origins_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "first\nsecond\n").unwrap();
    let engine = Engine::start(&[
        "--api-keys-file",
        keys.to_str().unwrap(),
        "--cors-allow-origin",
        "https://a.example",
    ]);
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer third\r\n", 401),
        ("authorization: Bearer first\r\n", 200),
        ("x-api-key: second\r\n", 200),
    ] {
        let answer = get(&engine, "/v1/models", header);
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{header} gave {answer}");
    }
    assert!(get(&engine, "/v1/models", "").contains("\"code\":\"invalid_api_key\""));
    assert!(get(&engine, "/healthz", "").starts_with("http/1.1 200"));
    // The internal port is the gateway's, which has asked for the key already.
    let (status, _) =
        request(&engine.internal, "POST", "/v1/completions", &prompt("x", json!({})).to_string());
    assert_eq!(status, 200);

    let preflight = |origin: &str| {
        let head = "OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccess-control-request-method: GET";
        raw(
            &engine.api,
            &format!("{head}\r\naccess-control-request-headers: authorization\r\norigin: {origin}\r\n\r\n"),
        )
    };
    let allowed = preflight("https://a.example");
    assert!(
        allowed.starts_with("http/1.1 204")
            && allowed.contains("access-control-allow-origin: https://a.example")
    );
    assert!(allowed.contains("access-control-allow-headers: authorization"), "{allowed}");
    assert!(!preflight("https://b.example").contains("access-control-allow-origin"));
    let with_key = "authorization: Bearer first\r\norigin: https://a.example\r\n";
    assert!(get(&engine, "/v1/models", with_key).contains("access-control-allow-origin: https://a.example"));
}

#[test]
fn slow_clients_and_long_answers_end_at_their_timeouts() {
    let more = ["--header-timeout", "300ms", "--request-timeout", "1s", "--write-timeout", "500ms"];
    let engine = Engine::start(&more);
    // Headers that never end, and a connection that never asks again.
    let began = Instant::now();
    for text in ["GET /healthz HTTP/1.1\r\nhost: ", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(&engine.api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    assert!(began.elapsed() < PATIENCE, "a slow client keeps its connection");
    // Longer than its time: an error before the first byte, an error event after it.
    let long = |stream: bool| {
        prompt("Count: 1, 2,", json!({"max_tokens": 400, "ignore_eos": true, "stream": stream, "n": 8}))
    };
    let (status, answer) = engine.post("/v1/completions", &long(false));
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("request_timeout")), "{answer}");
    let (status, answer) = engine.post("/v1/completions", &long(true));
    let text = answer.as_str().unwrap_or_default();
    assert!(status == 504 || (status == 200 && text.contains("request_timeout")), "{status} {answer}");
    let metrics = engine.get("/metrics").1;
    assert!(metrics.contains("atlas_engine_aborted_requests_total{reason=\"timeout\"} 2"), "{metrics}");
}

#[test]
fn overload_is_told_with_the_queues_length_and_clients_that_leave_are_counted() {
    let engine = Engine::start(&["--queue", "1", "--max-concurrent-requests", "4", "--max-batch", "1"]);
    let body =
        prompt("Count: 1, 2,", json!({"max_tokens": 300, "ignore_eos": true, "stream": true})).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let send = || {
        let mut stream = TcpStream::connect(&engine.api).unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    let status = || -> Value {
        serde_json::from_str(&request(&engine.internal, "GET", "/internal/status", "").1).unwrap()
    };
    let wait_for = |queue: Value| {
        let began = Instant::now();
        while status()["queue"] != queue {
            assert!(began.elapsed() < PATIENCE, "the queue is {} instead of {queue}", status()["queue"]);
        }
    };
    let running = send();
    wait_for(json!({"running": 1, "waiting": 0}));
    let waiting = send();
    wait_for(json!({"running": 1, "waiting": 1}));
    let refused =
        raw(&engine.api, &format!("{}{body}", head.replace("host: x", "host: x\r\nconnection: close")));
    assert!(refused.starts_with("http/1.1 429"), "{refused}");
    assert!(refused.contains("retry-after: ") && refused.contains("x-atlas-queue-length: 1"), "{refused}");
    // Dropped clients free their places at once.
    drop((running, waiting));
    wait_for(json!({"running": 0, "waiting": 0}));
    let began = Instant::now();
    while !engine.get("/metrics").1.contains("atlas_engine_aborted_requests_total{reason=\"client\"} 2") {
        assert!(began.elapsed() < PATIENCE, "{}", engine.get("/metrics").1);
    }
}

/// Kilobytes that the process has held at most.
fn peak(engine: &Engine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn texts_far_beyond_the_context_are_refused_before_they_take_memory() {
    let engine = Engine::start(&["--max-body-bytes", "8388608"]);
    // A token each: the tokenizer would take two gigabytes.
    let digits = "7".repeat(6_000_000);
    let before = peak(&engine);
    let message = json!([{"role": "user", "content": digits}]);
    for (path, body, param) in [
        ("/v1/completions", json!({"model": "code", "prompt": digits}), "prompt"),
        ("/v1/completions", json!({"model": "code", "prompt": ["a", digits]}), "prompt"),
        ("/v1/chat/completions", json!({"model": "code", "messages": message}), "messages"),
        ("/v1/responses", json!({"model": "code", "input": digits}), "input"),
        ("/v1/messages", json!({"model": "code", "max_tokens": 1, "messages": message}), "messages"),
        ("/v1/embeddings", json!({"model": "code", "input": digits}), "input"),
        ("/tokenize", json!({"prompt": digits}), "prompt"),
        ("/v1/messages/count_tokens", json!({"messages": message}), "messages"),
    ] {
        let (status, refused) = engine.post(path, &body);
        assert_eq!(status, 400, "{path} gave {refused}");
        let error = &refused["error"];
        if path != "/v1/messages" && path != "/v1/messages/count_tokens" {
            assert_eq!(error["param"], param, "{path} gave {refused}");
        }
        if !path.contains("token") {
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("512 tokens") && message.contains("bytes"), "{path} gave {message}");
        }
    }
    let grown = peak(&engine) - before;
    assert!(grown < 400 << 10, "{grown} kB more");
    // Many bytes may still be few tokens, and the exact numbers are told near the limit.
    let spaces = prompt(&" ".repeat(6_000), json!({"max_tokens": 1}));
    assert_eq!(engine.post("/v1/completions", &spaces).0, 200);
    let (_, near) = engine.post("/v1/completions", &prompt(&"7".repeat(600), json!({"max_tokens": 1})));
    assert!(near["error"]["message"].as_str().unwrap().contains("600 in the prompt"), "{near}");
    let (_, long) = engine.post("/tokenize", &json!({"prompt": "7".repeat(100_000)}));
    assert_eq!(long["count"], 100_000);
}
