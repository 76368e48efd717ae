//! What the probes say while the model is still fetched, loaded and warmed up.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::Instant;
use support::{Engine, PATIENCE, chat, command, model, request};

/// Bytes that the server sends before it waits.
const FIRST: usize = 1_000_000;

#[test]
fn probes_show_how_far_starting_has_come() {
    let file = std::fs::read(model()).unwrap();
    let size = file.len();
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&file));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/model.gguf", listener.local_addr().unwrap());
    let (go_on, wait) = channel();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(head.map(Result::unwrap).any(|line| line.is_empty()));
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n").unwrap();
        stream.write_all(&file[..FIRST]).unwrap();
        wait.recv().unwrap();
        stream.write_all(&file[FIRST..]).unwrap();
    });
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let engine = Engine::spawn(command(&url, &["--cache-dir", cache, "--sha256", &sum]));

    // The server waits, so the download stands where it is, and everything is asked at leisure.
    let began = Instant::now();
    let readiness = loop {
        let [(status, body), (internal, _)] =
            [&engine.api, &engine.internal].map(|address| request(address, "GET", "/readyz", ""));
        assert_eq!((status, internal), (503, 503), "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        if body["download"]["bytes"] == FIRST {
            break body;
        }
        assert!(began.elapsed() < PATIENCE, "{body}");
    };
    assert_eq!(
        (&readiness["phase"], &readiness["ready"], &readiness["download"]["totalBytes"]),
        (&json!("Fetching"), &json!(false), &json!(size))
    );
    assert_eq!((&readiness["loading"], &readiness["warmUp"]), (&Value::Null, &Value::Null));
    assert_eq!((engine.get("/healthz").0, engine.get("/health").0), (200, 503));
    let (status, refused) = engine.post("/v1/chat/completions", &chat(json!({})));
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("engine_not_ready")));
    let (status, refused) = engine.post("/v1/messages", &chat(json!({})));
    let kind = &refused["error"]["type"];
    assert_eq!((status, &refused["type"], kind), (503, &json!("error"), &json!("overloaded_error")));

    go_on.send(()).unwrap();
    server.join().unwrap();
    let mut phases: Vec<String> = Vec::new();
    let ready = loop {
        let (status, body) = engine.get("/readyz");
        let body: Value = serde_json::from_str(&body).unwrap();
        let phase = body["phase"].as_str().unwrap().to_owned();
        assert_eq!(status == 200, phase == "Serving", "{body}");
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        if status == 200 {
            break body;
        }
        assert!(began.elapsed() < PATIENCE, "{body}");
    };
    assert_eq!(engine.get("/health").0, 200);
    // A phase may be over between two looks, and none comes twice.
    let order = ["Fetching", "Loading", "WarmingUp", "Serving"];
    let places = phases.iter().map(|phase| order.iter().position(|known| known == phase).unwrap());
    assert!(places.is_sorted(), "{phases:?}");
    assert_eq!(ready["download"]["checkedBytes"], json!(size), "{ready}");
    assert_eq!(ready["loading"], json!({"layers": 30, "totalLayers": 30, "bytes": null, "totalBytes": null}));
    assert!(ready["warmUp"]["steps"].as_u64().unwrap() > 1, "{ready}");
}
