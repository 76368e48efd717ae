//! Clients that we did not write, against a real engine. `make setup` installs them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::PathBuf;
use std::process::Command;
use support::{Engine, cache};

#[test]
fn the_openai_python_client_understands_every_answer() {
    let python = cache().join("venv/bin/python");
    assert!(python.exists(), "{} is missing: run make setup", python.display());
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/openai_python.py");
    let engine = Engine::start(&["--context-tokens", "1024"]);
    let output = Command::new(python).arg(script).arg(format!("http://{}/v1", engine.api)).output().unwrap();
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("ok ")).count(), 6, "{shown}");
}
