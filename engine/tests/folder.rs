//! The real binary on the real model as a folder of safetensors.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/hub.rs"]
mod hub;
mod support;
#[path = "support/folder.rs"]
mod write;

use candle_core::DType;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;
use support::{Engine, PATIENCE, chat, command, model, prompt, request};
use write::Form;

#[test]
fn a_folder_is_served_and_inspected_like_a_file() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("smollm2-135m-instruct");
    std::fs::create_dir(&folder).unwrap();
    let form = Form { rounded: DType::BF16, stored: DType::BF16, layers: 30, files: 2 };
    write::write(&model(), &folder, &form);
    let path = folder.to_str().unwrap();

    let engine = Engine::spawn(command(path, &[]));
    let began = Instant::now();
    while engine.get("/readyz").0 != 200 {
        assert!(began.elapsed() < PATIENCE, "the engine is not ready in time");
        std::thread::yield_now();
    }
    assert_eq!(engine.complete(prompt("The capital of France is", json!({"max_tokens": 2}))), " Paris.");
    let (status, answer) = engine.post("/v1/chat/completions", &chat(json!({})));
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(4)), "{answer}");
    let (_, text) = request(&engine.internal, "GET", "/internal/status", "");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["modelFile"], "smollm2-135m-instruct");
    let held: u64 =
        std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(status["download"]["bytes"], held);
    drop(engine);

    // The same from a hub: fetched, and loaded from the cache.
    let hub = hub::Hub::of(&folder);
    let cache = tempfile::tempdir().unwrap();
    let mut fetching = command("hf://acme/model@main", &["--cache-dir", cache.path().to_str().unwrap()]);
    fetching.env("HF_ENDPOINT", &hub.url);
    let engine = Engine::spawn(fetching);
    let began = Instant::now();
    while engine.get("/readyz").0 != 200 {
        assert!(began.elapsed() < PATIENCE, "the engine is not ready in time");
        std::thread::yield_now();
    }
    assert_eq!(engine.complete(prompt("The capital of France is", json!({"max_tokens": 2}))), " Paris.");
    let (_, text) = request(&engine.internal, "GET", "/internal/status", "");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["modelFile"], "model");
    let sizes = (&status["download"]["bytes"], &status["download"]["totalBytes"]);
    assert_eq!(sizes, (&json!(held), &json!(held)), "{status}");
    assert!(status["download"]["checkedBytes"].as_u64().unwrap() > held / 10 * 9, "{status}");
    drop(engine);

    let inspected =
        Command::new(env!("CARGO_BIN_EXE_atlas-engine")).args(["inspect", path]).output().unwrap();
    let text = String::from_utf8(inspected.stdout).unwrap();
    for wanted in ["folder of safetensors", "30 layers", "BF16", "tokenizer.json, byte level, 49152 tokens"] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }

    let refused = |more: &[&str]| {
        let output = command(path, more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = refused(&["--sha256", &"0".repeat(64)]);
    assert!(code == Some(2) && text.contains("is a folder"), "{code:?}: {text}");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let (code, text) = refused(&[]);
    assert!(code == Some(10) && text.contains("tokenizer.json"), "{code:?}: {text}");
    std::fs::write(folder.join("config.json"), r#"{"model_type":"bert"}"#).unwrap();
    let (code, text) = refused(&[]);
    assert!(code == Some(11) && text.contains("model_type \"bert\""), "{code:?}: {text}");
}
