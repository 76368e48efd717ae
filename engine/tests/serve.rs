//! The real binary on the real model, over HTTP. `make setup` fetches the model.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = "models/smollm2-135m-instruct-q4_1.gguf";
/// Much longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn model() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    let path = cache.or_else(home).unwrap_or_default().join(MODEL);
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

fn command(model: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["serve", "--model", model, "--served-model-name", "code", "--served-model-name", "alias"]);
    command.args([
        "--host",
        "127.0.0.1",
        "--internal-port",
        "0",
        "--max-batch",
        "4",
        "--max-body-bytes",
        "100000",
    ]);
    for (flag, value) in [("--backend", "cpu"), ("--port", "0"), ("--context-tokens", "512")] {
        if !more.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(more).stderr(Stdio::piped());
    command
}

/// A running engine; ended when dropped.
struct Engine {
    child: Child,
    api: String,
    internal: String,
    _log: BufReader<ChildStderr>,
}

impl Engine {
    fn start(more: &[&str]) -> Self {
        let mut child = command(model().to_str().unwrap(), more).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the engine ended before it listened");
        }
        let address = |name: &str| {
            let start = line.find(name).unwrap() + name.len();
            line[start..].split('"').next().unwrap().to_owned()
        };
        let (api, internal) = (address("api=Some(\""), address("internal=Some(\""));
        let engine = Self { child, api, internal, _log: log };
        let began = Instant::now();
        while engine.get("/readyz").0 != 200 {
            assert!(began.elapsed() < PATIENCE, "the engine is not ready in time");
            std::thread::yield_now();
        }
        engine
    }

    fn get(&self, path: &str) -> (u16, String) {
        request(&self.api, "GET", path, "")
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = request(&self.api, "POST", path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn complete(&self, body: Value) -> String {
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own: status and body, chunked bodies joined.
fn request(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A refused body may close the connection before all of it is sent.
    let _ = stream.write_all(body.as_bytes());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {method} {path}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut joined, mut rest) = (Vec::new(), &bytes[text.find("\r\n\r\n").unwrap() + 4..]);
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        joined.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
        if size == 0 {
            break;
        }
    }
    (status, String::from_utf8(joined).unwrap())
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "code", "temperature": 0, "max_tokens": 4,
        "messages": [{"role": "user", "content": "What is 2 + 2?"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn prompt(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "code", "temperature": 0, "max_tokens": 8, "prompt": text});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
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
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
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
        ("/v1/chat/completions", chat(json!({"n": 2})), 400, json!("n")),
        ("/v1/chat/completions", chat(json!({"temperature": 9})), 400, json!("temperature")),
        ("/v1/chat/completions", chat(json!({"max_tokens": 5000})), 400, json!("messages")),
        ("/v1/chat/completions", chat(json!({"tools": [{"type": "function"}]})), 400, json!("tools")),
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
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            engine.post("/v1/completions", &prompt("Count:", json!({"max_tokens": 60, "ignore_eos": true})))
        });
        let busy = || request(&engine.internal, "GET", "/internal/status", "").1.contains(r#""running":1"#);
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
        (real, vec!["--backend", "hip"], 22, "no HIP backend"),
        (real, vec!["--context-tokens", "9000"], 2, "more than the 8192"),
        ("s3://bucket/key", vec![], 2, "s3:// is not built yet"),
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
