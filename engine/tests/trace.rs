//! Spans of requests, at a collector that speaks OTLP over HTTP.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use support::{Engine, PATIENCE, prompt};

/// A collector: its address, and the spans it gets.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 0 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                assert!(!line.starts_with("POST ") || line.starts_with("POST /v1/traces "), "{line}");
                if line == "\r\n" {
                    break;
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let message: Value = serde_json::from_slice(&body).unwrap();
            for span in message["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap() {
                // The test may have seen enough.
                let _ = sender.send(span.clone());
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (address, spans)
}

fn ask(address: &str, path: &str, body: &Value, traceparent: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    let head = format!("traceparent: {traceparent}\r\ncontent-length: {}\r\nconnection: close", body.len());
    write!(stream, "POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn an_embedding_leaves_its_spans_too() {
    let (endpoint, spans) = collector();
    let mut engine = Engine::start(&["--otlp-endpoint", &endpoint]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = json!({"model": "code", "input": ["The capital", "of France"]});
    ask(&engine.api, "/v1/embeddings", &body, &format!("00-{trace}-00f067aa0ba902b7-01"));
    engine.signal("-TERM");
    let received: Vec<Value> = (0..3).map(|_| spans.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
    let names: Vec<&str> = received.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["embeddings code", "queued", "prefill"]);
    assert!(received.iter().all(|span| span["traceId"] == trace));
    // The stages fill the whole of it.
    assert_eq!(received[1]["startTimeUnixNano"], received[0]["startTimeUnixNano"]);
    assert_eq!(received[1]["endTimeUnixNano"], received[2]["startTimeUnixNano"]);
    assert_eq!(received[2]["endTimeUnixNano"], received[0]["endTimeUnixNano"]);
}

#[test]
fn a_request_leaves_its_spans_in_the_callers_trace() {
    let (endpoint, spans) = collector();
    let mut engine = Engine::start(&["--otlp-endpoint", &endpoint]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = prompt("The capital of France is", json!({"max_tokens": 5, "ignore_eos": true}));
    ask(&engine.api, COMPLETIONS, &body, &format!("00-{trace}-00f067aa0ba902b7-01"));
    // The gateway's port belongs to the same trace; who wants no spans gets none.
    ask(&engine.internal, COMPLETIONS, &body, &format!("00-{trace}-00f067aa0ba902b7-01"));
    ask(&engine.api, COMPLETIONS, &body, "00-0123456789abcdef0123456789abcdef-00f067aa0ba902b7-00");
    engine.signal("-TERM");
    // What is not sent yet leaves before the process ends.
    let received: Vec<Value> = (0..8).map(|_| spans.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
    assert!(spans.try_recv().is_err(), "a span that nobody wanted");
    for request in received.chunks(4) {
        let names: Vec<&str> = request.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["text_completion code", "queued", "prefill", "decode"]);
        let whole = &request[0];
        assert_eq!((&whole["parentSpanId"], &whole["kind"]), (&json!("00f067aa0ba902b7"), &json!(2)));
        let attribute = |key: &str| {
            let attributes = whole["attributes"].as_array().unwrap();
            attributes.iter().find(|attribute| attribute["key"] == key).unwrap()["value"].clone()
        };
        assert_eq!(attribute("gen_ai.usage.input_tokens"), json!({"intValue": "5"}));
        assert_eq!(attribute("gen_ai.usage.output_tokens"), json!({"intValue": "5"}));
        let nanos = |span: &Value, name: &str| -> u64 { span[name].as_str().unwrap().parse().unwrap() };
        let mut at = nanos(whole, "startTimeUnixNano");
        for span in request {
            assert_eq!(span["traceId"], trace);
            if span["name"] != whole["name"] {
                assert_eq!(span["parentSpanId"], whole["spanId"]);
                // One stage begins where the one before it ends.
                assert_eq!(nanos(span, "startTimeUnixNano"), at, "{span}");
                at = nanos(span, "endTimeUnixNano");
            }
        }
        assert!(at <= nanos(whole, "endTimeUnixNano"));
    }
}

#[test]
fn a_collector_that_is_gone_changes_no_answer_and_is_counted() {
    let engine = Engine::start(&["--otlp-endpoint", "http://127.0.0.1:9"]);
    let body = prompt("The capital of France is", json!({"max_tokens": 2}));
    assert_eq!(engine.complete(body), " Paris.");
    let began = std::time::Instant::now();
    while !engine.get("/metrics").1.contains("atlas_engine_dropped_spans_total 4") {
        assert!(began.elapsed() < PATIENCE, "{}", engine.get("/metrics").1);
    }
}
