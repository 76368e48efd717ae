//! A real engine on the real model for the suites, over HTTP. `make setup` fetches the model.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = "models/smollm2-135m-instruct-q4_1.gguf";
/// Much longer than anything here takes, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder that `make setup` fills.
pub fn cache() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    cache.or_else(home).unwrap_or_default()
}

/// The small model.
pub fn model() -> PathBuf {
    let path = cache().join(MODEL);
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

/// The engine's command line.
pub fn command(model: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["serve", "--model", model, "--served-model-name", "code", "--served-model-name", "alias"]);
    command.args(["--host", "127.0.0.1", "--internal-port", "0"]);
    let defaults = [
        ("--backend", "cpu"),
        ("--port", "0"),
        ("--context-tokens", "512"),
        ("--max-batch", "4"),
        ("--max-body-bytes", "100000"),
    ];
    for (flag, value) in defaults {
        if !more.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(more).stderr(Stdio::piped());
    command
}

/// A running engine; ended when dropped.
pub struct Engine {
    /// The process.
    pub child: Child,
    /// Address of the API.
    pub api: String,
    /// Address of the internal port.
    pub internal: String,
    _log: BufReader<ChildStderr>,
}

impl Engine {
    /// Starts one and waits until it is ready.
    pub fn start(more: &[&str]) -> Self {
        let engine = Self::spawn(command(model().to_str().unwrap(), more));
        let began = Instant::now();
        while engine.get("/readyz").0 != 200 {
            assert!(began.elapsed() < PATIENCE, "the engine is not ready in time");
            std::thread::yield_now();
        }
        engine
    }

    /// Starts one and waits until it listens.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
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
        Self { child, api, internal, _log: log }
    }

    /// A GET on the API.
    pub fn get(&self, path: &str) -> (u16, String) {
        request(&self.api, "GET", path, "")
    }

    /// A POST on the API.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = request(&self.api, "POST", path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The text of a completion.
    pub fn complete(&self, body: Value) -> String {
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
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
pub fn request(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
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

/// A chat request.
pub fn chat(more: Value) -> Value {
    let mut body = json!({"model": "code", "temperature": 0, "max_tokens": 4,
        "messages": [{"role": "user", "content": "What is 2 + 2?"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A completion request.
pub fn prompt(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "code", "temperature": 0, "max_tokens": 8, "prompt": text});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The JSON objects of a stream of server-sent events.
pub fn events(text: &str) -> Vec<Value> {
    let data = |event: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix("data: "))?;
        serde_json::from_str(line).ok()
    };
    text.split("\n\n").filter_map(data).collect()
}

/// Joins a field of all events.
pub fn joined(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}
