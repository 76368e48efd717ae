//! Clients that we did not write, against a real engine. `make setup` installs them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::PathBuf;
use std::process::Command;
use support::{Engine, cache};

/// Runs a script of tests/clients, which prints a line of `ok` for each of its checks.
fn check(program: PathBuf, script: &str, more: Option<PathBuf>, checks: usize) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(script);
    let engine = Engine::start(&["--context-tokens", "2048"]);
    let output = Command::new(&program)
        .arg(script)
        .arg(format!("http://{}/v1", engine.api))
        .args(more)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}: run make setup", program.display()));
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}");
    println!("{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("ok ")).count(), checks, "{shown}");
}

/// The Python of a virtual environment that setup makes.
fn python(venv: &str) -> PathBuf {
    cache().join(venv).join("bin/python")
}

#[test]
fn the_openai_client_for_python_understands_every_answer() {
    check(python("venv"), "openai_python.py", None, 7);
}

#[test]
fn the_openai_client_for_node_understands_every_answer() {
    check("node".into(), "openai_node.mjs", Some(cache().join("node")), 5);
}

#[test]
fn the_other_clients_understand_every_answer() {
    check(python("venv-others"), "others.py", None, 5);
}

#[test]
fn answers_under_a_schema_are_valid() {
    check(python("venv-others"), "schemas.py", None, 1);
}

#[test]
fn answers_under_the_schemas_of_the_public_suite_are_valid() {
    check(python("venv-others"), "schema_suite.py", Some(cache().join("schemas/tests/draft2020-12")), 1);
}

#[test]
fn calls_of_tools_that_people_wrote_are_valid() {
    check(python("venv-others"), "tool_suite.py", Some(cache().join("schemas/tools")), 1);
}
