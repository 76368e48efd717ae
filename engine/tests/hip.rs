//! The real binary with `--backend hip` on the stand-in runtime.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../kernels/tests/support/mod.rs"]
mod support;

use atlas_kernels::hip::BUILT;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn library() -> PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    support::standin(BUILT.0, &kernels, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn selftest(settings: &str, gfx_version: u32) -> Output {
    let root = support::root(gfx_version, support::VRAM_BYTES);
    let (_folder, path) = support::standin_with(&library(), settings);
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["selftest", "--megabytes", "4", "--hip-library", &path, "--system-root"]).arg(root.path());
    command.output().unwrap()
}

#[test]
fn the_self_test_tells_the_card_its_checks_and_its_speeds_on_a_page() {
    let output = selftest("", 110_002);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in [
        "card      gfx1102 at 0000:03:00.0, 25753026560 bytes of VRAM",
        "(HIP 6.0.32830)",
        "used 1073741824 bytes, busy 42 %, junction 61 C, power 212 W",
        "checks passed",
        "speed     matrices of a layer 512 and 768 wide as one run, over 4 MiB",
        "8 rows",
        "matvec_q4_k",
        "attend_q8",
        "matmul_awq4",
        "prefill_f16",
        "GB/s (share of the copy's)",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
}

#[test]
fn predictions_need_no_card() {
    let output = Command::new(env!("CARGO_BIN_EXE_atlas-engine")).args(["selftest", "--model-only"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("| matvec_q4_k_1 |") && text.contains("no run on a card"), "{text}");
}

#[test]
fn a_self_test_without_a_usable_card_ends_with_the_codes_of_the_contract() {
    for (settings, gfx_version, code, words) in [
        ("", 90_402, 20, "this build has no kernels for gfx942; it has them for gfx1100, gfx1102"),
        ("fault=hipModuleLaunchKernel:9:719", 110_000, 31, "hipErrorLaunchFailure"),
    ] {
        let output = selftest(settings, gfx_version);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

const MODEL: &str = "models/smollm2-135m-instruct-q4_1.gguf";
/// Much longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn model() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    let path = cache.or_else(home).unwrap_or_default().join(MODEL);
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

/// An engine on a simulated card; ended when dropped.
struct Engine {
    child: Child,
    api: String,
    internal: String,
    log: BufReader<ChildStderr>,
    /// What it logged until it listened.
    began: String,
    files: [tempfile::TempDir; 2],
}

impl Engine {
    /// Starts it; ready or not.
    fn spawn(settings: &str, more: &[&str]) -> Self {
        let root = support::root(110_000, support::VRAM_BYTES);
        let (folder, library) = support::standin_with(&library(), settings);
        let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
        command.args(["serve", "--served-model-name", "code", "--backend", "hip", "--host", "127.0.0.1"]);
        command.args(["--port", "0", "--internal-port", "0", "--context-tokens", "64", "--max-batch", "1"]);
        command.arg("--model").arg(model()).arg("--system-root").arg(root.path());
        command.args(["--hip-library", &library]).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut line, mut began) = (String::new(), String::new());
        while !line.contains("listening") {
            line.clear();
            if log.read_line(&mut line).unwrap() == 0 {
                break;
            }
            began.push_str(&line);
        }
        let address = |name: &str| {
            let start = line.find(name).map(|start| start + name.len())?;
            line[start..].split('"').next().map(str::to_owned)
        };
        let api = address("api=Some(\"").unwrap_or_default();
        let internal = address("internal=Some(\"").unwrap_or_default();
        Self { child, api, internal, log, began, files: [root, folder] }
    }

    fn start(settings: &str) -> Self {
        Self::start_with(settings, &[])
    }

    /// Starts it and waits until it serves.
    fn start_with(settings: &str, more: &[&str]) -> Self {
        let mut engine = Self::spawn(settings, more);
        let (began, mut seen) = (Instant::now(), 0);
        loop {
            let (status, body) = engine.get("/readyz");
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            // Bytes that go to the card: never fewer than before, never more than there are.
            if let (Some(bytes), Some(total)) =
                (body["loading"]["bytes"].as_u64(), body["loading"]["totalBytes"].as_u64())
            {
                assert!(seen <= bytes && bytes <= total, "{seen} bytes before: {body}");
                seen = bytes;
            }
            if status == 200 {
                break;
            }
            if let Some(status) = engine.child.try_wait().unwrap() {
                panic!("the engine ended with {status}: {}", engine.rest());
            }
            assert!(began.elapsed() < PATIENCE, "the engine is not ready in time");
            std::thread::yield_now();
        }
        engine
    }

    /// Lets the faults of the settings happen from now on.
    fn arm(&self) {
        std::fs::write(self.files[1].path().join("armed"), "").unwrap();
    }

    fn get(&self, path: &str) -> (u16, String) {
        request(&self.internal, "GET", path, "")
    }

    fn complete(&self, prompt: &str, tokens: usize) -> (u16, Value) {
        let body = json!({"model": "code", "prompt": prompt, "temperature": 0, "max_tokens": tokens});
        let (status, text) = request(&self.api, "POST", "/v1/completions", &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn rest(&mut self) -> String {
        let mut text = std::mem::take(&mut self.began);
        let _ = self.log.read_to_string(&mut text);
        text
    }

    /// Waits for its end: the exit code and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        let text = self.rest();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own; status 0 where nobody answers.
fn request(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut text = String::new();
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    if sent.and_then(|()| stream.read_to_string(&mut text)).is_err() {
        return (0, text);
    }
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return (0, text) };
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
}

#[test]
fn a_card_serves_and_tells_what_it_is() {
    let engine = Engine::start("");
    let (status, answer) = engine.complete("The capital of France is", 2);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(" Paris.")), "{answer}");
    let status: Value = serde_json::from_str(&engine.get("/internal/status").1).unwrap();
    assert_eq!(status["backend"], "hip");
    assert_eq!(
        status["card"],
        json!({"pciAddress": "0000:03:00.0", "gfxTarget": "gfx1100", "vramBytes": support::VRAM_BYTES})
    );
    // The card had 1 GiB in use before the engine began, and the stand-in takes none of it.
    let vram = |status: &Value| {
        ["usedBytes", "ownPeakBytes", "weightBytes", "kvCacheBytes"]
            .map(|field| status["vram"][field].as_u64().unwrap())
    };
    let [used, own, weights, kv_cache] = vram(&status);
    assert_eq!((used, own), (1 << 30, 0));
    // Thirty layers of keys and values in three heads of 64 halves.
    assert_eq!(kv_cache, 30 * 2 * 3 * 64 * 2 * 64);
    assert!((90 << 20..100 << 20).contains(&weights), "{weights}");
    let ready: Value = serde_json::from_str(&engine.get("/readyz").1).unwrap();
    let layers = json!({"layers": 30, "totalLayers": 30, "bytes": weights, "totalBytes": weights});
    assert_eq!(ready["loading"], layers);
    let file = engine.files[0].path().join("sys/bus/pci/devices/0000:03:00.0/mem_info_vram_used");
    for (now, peak) in [(3 << 29, 1 << 29), (5 << 28, 1 << 29)] {
        std::fs::write(&file, format!("{now}\n")).unwrap();
        let status: Value = serde_json::from_str(&engine.get("/internal/status").1).unwrap();
        assert_eq!(vram(&status)[..2], [now, peak]);
    }
    std::fs::write(&file, "1073741824\n").unwrap();
    let metrics = engine.get("/metrics").1;
    for wanted in [
        "atlas_engine_vram_total_bytes 25753026560",
        "atlas_engine_vram_used_bytes 1073741824",
        "atlas_engine_card_busy_ratio 0.42",
        "atlas_engine_card_junction_celsius 61",
        "atlas_engine_card_power_watts 212",
    ] {
        assert!(metrics.lines().any(|line| line == wanted), "{wanted} is missing:\n{metrics}");
    }
    assert!(!metrics.contains("card_memory_celsius "), "a sensor that the card lacks shows nothing");
}

#[test]
fn a_cache_of_eight_bits_serves_and_takes_half() {
    let engine = Engine::start_with("", &["--kv-cache-type", "Q8_0"]);
    let (status, answer) = engine.complete("The capital of France is", 2);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(" Paris.")), "{answer}");
    let status: Value = serde_json::from_str(&engine.get("/internal/status").1).unwrap();
    // 34 bytes for 32 values, where halves take 64.
    assert_eq!(status["vram"]["kvCacheBytes"], 30 * 2 * 3 * 64 / 32 * 34 * 64);
}

#[test]
fn a_card_that_cannot_serve_ends_the_engine_with_the_contracts_code() {
    for (settings, more, code, words) in [
        ("", &["--expect-gfx-target", "gfx1102"][..], 20, "is gfx1100, and --expect-gfx-target is gfx1102"),
        ("", &["--expect-vram-bytes", "8573157376"], 20, "25753026560 bytes of VRAM"),
        ("vram=380000000", &[], 13, "the model needs"),
        ("fault=hipMalloc:1:2", &[], 32, "arena"),
        ("fault=hipModuleLoadData:1:200", &[], 1, "hipErrorInvalidImage"),
    ] {
        let (found, text) = Engine::spawn(settings, more).end();
        assert_eq!(found, Some(code), "{settings} {more:?}: {text}");
        assert!(text.contains(words), "{settings} {more:?}: {text}");
    }
}

/// Memory that is short for a moment costs the requests that run, with an answer that says to come again.
#[test]
fn memory_that_is_short_in_flight_sheds_load_and_the_engine_goes_on() {
    let engine = Engine::start("arm=file;fault=hipGraphLaunch:1:2:1");
    engine.arm();
    let (status, answer) = engine.complete("The capital of France is", 8);
    assert_eq!((status, answer["error"]["code"].as_str()), (503, Some("engine_failed")), "{answer}");
    assert!(engine.get("/metrics").1.contains("atlas_engine_shed_choices_total 1"));
    let (status, answer) = engine.complete("The capital of France is", 2);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(" Paris.")), "{answer}");
}

#[test]
fn a_lost_card_ends_the_engine() {
    let engine = Engine::start("arm=file;fault=hipGraphLaunch:2:719");
    engine.arm();
    let (status, answer) = engine.complete("The capital of France is", 8);
    assert_eq!(status, 503, "{answer}");
    let (code, text) = engine.end();
    assert_eq!(code, Some(31), "{text}");
    assert!(
        text.contains("card 0000:03:00.0 (gfx1100): ")
            && text.contains("the device is lost")
            && text.contains("hipErrorLaunchFailure"),
        "{text}"
    );
}

#[test]
fn a_card_that_hangs_ends_the_engine() {
    let engine = Engine::start("arm=file;hang=1");
    engine.arm();
    let _ = engine.complete("The capital of France is", 8);
    let (code, text) = engine.end();
    assert_eq!(code, Some(30), "{text}");
    assert!(text.contains("card 0000:03:00.0 (gfx1100): the device hangs"), "{text}");
}

/// The embedding and twenty of thirty layers on the processor, the rest and the head on the card.
#[test]
fn a_model_that_exceeds_the_card_is_served_with_its_first_layers_on_the_processor() {
    let mut engine = Engine::start_with("vram=380000000", &["--cpu-layers", "20"]);
    let (status, answer) = engine.complete("The capital of France is", 2);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(" Paris.")), "{answer}");
    engine.child.kill().unwrap();
    let log = engine.rest();
    let at = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words:?} is missing: {log}"));
    assert!(at("expected_tokens_per_second=") < at("taking memory on the card"), "{log}");
    let uploaded = log[at("uploaded bytes=")..].lines().next().unwrap_or_default();
    let mut numbers = uploaded.split(['=', ' ']).filter_map(|word| word.parse::<u64>().ok());
    let (bytes, total) = (numbers.next(), numbers.next());
    assert!(bytes == total && bytes.is_some_and(|bytes| bytes > 20 << 20), "{uploaded}");
}

/// The small model on the simulated card, one layer's worth of steps: what `bench` and `logits` say of a card.
#[test]
fn a_card_is_measured_and_compared_like_the_processor() {
    let root = support::root(110_000, support::VRAM_BYTES);
    let (_folder, library) = support::standin_with(&library(), "");
    let run = |arguments: &[&str], input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
        command.args(arguments).args(["--backend", "hip", "--hip-library", &library, "--system-root"]);
        command.arg(root.path()).arg("--model").arg(model());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let tests = r#"[{"kind": "decode", "depth": 0, "sequences": 1, "tokens": 1}]"#;
    let report: Value = serde_json::from_slice(&run(&["bench", "--json", "--tests", tests], "")).unwrap();
    // By the data sheet of the RX 7900 XTX.
    assert_eq!(report["read_bytes_per_second"], 960e9);
    assert_eq!(report["device"], "the card");
    assert!(report["tests"][0]["roofline"].as_f64().unwrap() > 0.0, "{report}");
    let logits = run(&["logits"], "[1, 2]\n");
    let logits: Vec<f32> = logits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(logits.len(), 2 * 49_152);
    assert!(logits.iter().all(|logit| logit.is_finite()));
}
