//! `atlas-engine bench` on the real model: what its JSON and its table say.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::Value;
use support::model;

fn bench(arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["bench", "--threads", "2", "--model"]).arg(model()).args(arguments).output().unwrap()
}

#[test]
fn every_test_is_reported_beside_the_roofline() {
    let tests = r#"[{"kind": "prefill", "depth": 0, "sequences": 1, "tokens": 33},
                    {"kind": "decode", "depth": 17, "sequences": 3, "tokens": 2}]"#;
    let output = bench(&["--json", "--tests", tests]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (index, tokens) in [(0, 33.0), (1, 6.0)] {
        let test = &report["tests"][index];
        let [seconds, rate, roofline] =
            ["seconds", "tokens_per_second", "roofline"].map(|key| test[key].as_f64().unwrap());
        assert!((rate * seconds - tokens).abs() < 1e-6 && roofline > 0.0, "{test}");
    }
    for key in ["weight_bytes", "read_bytes_per_second", "products_per_second", "load_seconds", "peak_bytes"]
    {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let table = bench(&["--tests", tests]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
}

#[test]
fn tests_that_compute_nothing_are_refused() {
    let output = bench(&["--tests", "[]"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no tests"));
}
