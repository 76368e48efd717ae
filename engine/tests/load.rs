//! Load by a generator that we did not write: 64 streams at a time, every one whole, and nothing left behind.
//!
//! Ten seconds of warming up and ten that count; `ATLAS_LOAD_SECONDS` makes the second part longer, as `make load` does.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use support::{Engine, PATIENCE};

const CONNECTIONS: &str = "64";
/// Growth of the process between the two parts that is not taken for a leak: one stream's buffers, 64 times.
const SLACK_KIB: u64 = 16 << 10;

/// Runs wrk for so many seconds; what its script printed.
fn load(engine: &Engine, seconds: u64) -> Value {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/load/streams.lua");
    let output = Command::new("wrk")
        .args(["--threads", "1", "--connections", CONNECTIONS, "--timeout", "300s", "--duration"])
        .arg(format!("{seconds}s"))
        .arg("--script")
        .arg(script)
        .arg(format!("http://{}", engine.api))
        .output()
        .unwrap_or_else(|error| panic!("wrk: {error}: run make setup"));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = shown.lines().find(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{shown}{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Memory of the process that is resident now.
fn resident_kib(engine: &Engine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn wait_until_idle(engine: &Engine) {
    let began = Instant::now();
    let idle = |metrics: &str| {
        ["kv_used_blocks 0", "running_requests 0", "waiting_requests 0"]
            .iter()
            .all(|line| metrics.lines().any(|found| found == format!("atlas_engine_{line}")))
    };
    while !idle(&engine.get("/metrics").1) {
        assert!(began.elapsed() < PATIENCE, "the pool is not full again: {}", engine.get("/metrics").1);
        std::thread::yield_now();
    }
}

#[test]
fn sixty_four_streams_are_answered_whole_and_leave_nothing_behind() {
    let seconds = std::env::var("ATLAS_LOAD_SECONDS").ok().map_or(10, |seconds| seconds.parse().unwrap());
    // A cache that 16 sequences do not fit into, so that some have to give way, and that is soon used to its end.
    let engine = Engine::start(&["--max-batch", "16", "--queue", "64", "--kv-cache-tokens", "1024"]);
    let warm = load(&engine, 10);
    wait_until_idle(&engine);
    let before = resident_kib(&engine);
    let result = load(&engine, seconds);
    let during = resident_kib(&engine);
    wait_until_idle(&engine);
    let after = resident_kib(&engine);
    println!("{result}, VmRSS {before} KiB before, {during} at the end, {after} after");
    for part in [&warm, &result] {
        for count in ["failed", "broken", "timeouts"] {
            assert_eq!(part[count], 0, "{part}");
        }
        assert_ne!(part["answered"], 0, "{part}");
    }
    assert!(during.max(after) <= before + SLACK_KIB, "memory grows: {before}, {during}, {after} KiB");
    let metrics = engine.get("/metrics").1;
    let refused = metrics
        .lines()
        .find(|line| line.starts_with("atlas_engine_requests_total{") && !line.contains("code=\"200\""));
    assert_eq!(refused, None);
    for reason in ["engine", "timeout"] {
        let line = format!("atlas_engine_aborted_requests_total{{reason=\"{reason}\"}}");
        assert!(!metrics.contains(&line), "{metrics}");
    }
}
