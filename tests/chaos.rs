//! Faults under load, short: nothing is lost, no stream breaks, and every answer is the one without a fault.
//!
//! `make chaos` plays the same for long and measures it.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_tests::{
    assets::cache_folder,
    chaos::{
        Args, Fault,
        engine::{Engine, free_port},
        gateway::Gateway,
        run,
    },
    lab::MODEL_FILE,
    support::{init_logging, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// The small model under two names: what the second one says of the same text is what the first would have said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_another_model_as_if_it_were_its_own_text() -> anyhow::Result<()> {
    init_logging();
    let folder = tempfile::tempdir()?;
    let model = cache_folder().join("models").join(MODEL_FILE);
    let other = folder.path().join("another.gguf");
    std::os::unix::fs::symlink(&model, &other)?;
    let (primary, fallback) = (Engine::start(&model).await?, Engine::start(&other).await?);
    let gateway = Gateway::start([primary.api, primary.internal], [fallback.api, fallback.internal]).await?;
    gateway.active("primary").await?;
    gateway.all_healthy().await?;

    let ask = async || -> anyhow::Result<TcpStream> {
        let body = r#"{"model": "code", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0,
            "max_tokens": 60, "messages": [{"role": "user", "content": "Tell me a long story of a fox and a hen."}]}"#;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: code\r\nconnection: close\r\n\
            x-atlas-resume-across-models: true\r\n";
        let mut stream = TcpStream::connect(gateway.api).await?;
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
        Ok(stream)
    };
    let mut unbroken = String::new();
    ask().await?.read_to_string(&mut unbroken).await?;
    let (whole, usage) = told(&unbroken);
    assert!(whole.split_whitespace().count() > 10, "{unbroken}");

    let (mut stream, mut broken) = (ask().await?, Vec::new());
    while told(&String::from_utf8_lossy(&broken)).0.len() < whole.len() / 3 {
        assert!(stream.read_buf(&mut broken).await? > 0, "the stream ended before the fault");
    }
    primary.signal(Signal::SIGKILL)?;
    stream.read_to_end(&mut broken).await?;
    let broken = String::from_utf8(broken)?;
    assert_eq!(told(&broken), (whole, usage), "{broken}");
    assert_eq!(broken.matches(": x-atlas-tier: fallback").count(), 1, "{broken}");
    assert!(broken.contains("data: [DONE]") && !broken.contains("\"error\""), "{broken}");
    assert!(broken.to_ascii_lowercase().contains("x-atlas-tier: primary\r\n"), "{broken}");
    let ids: std::collections::BTreeSet<String> =
        events(&broken).map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "one stream has one id: {broken}");
    Ok(())
}

/// The events of an answer as it came; the gateway sends each event in one piece.
/// From how soon an answer begins, nobody learns what others asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_behind_a_gateway_do_not_find_each_others_cached_prefixes() -> anyhow::Result<()> {
    init_logging();
    let engine = Engine::start(&cache_folder().join("models").join(MODEL_FILE)).await?;
    let nobody = [free_port().await?, free_port().await?];
    let gateway = Gateway::start([engine.api, engine.internal], nobody).await?;
    gateway.active("primary").await?;
    // Nothing here is encrypted, and the client asks all the same; another test may have been faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    gateway.require_keys(&[("alice", "sk-a"), ("bob", "sk-b")]);
    let (client, url) = (reqwest::Client::new(), format!("http://{}/v1/chat/completions", gateway.api));
    let prompt = "Tell me a long story of a fox and a hen. ".repeat(8);
    let body = json!({"model": "code", "max_tokens": 1, "messages": [{"role": "user", "content": prompt}]});
    // Before the gateway has taken the keys over, none of them is asked for.
    wait_until("the gateway to ask for keys", PATIENCE, async || {
        let answer = client.post(&url).json(&body).send().await.map_err(|error| error.to_string())?;
        if answer.status() == 401 { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await?;
    let mut cached = Vec::new();
    for key in ["sk-a", "sk-a", "sk-b", "sk-b"] {
        let answer = client.post(&url).bearer_auth(key).json(&body).send().await?.error_for_status()?;
        let answer: Value = answer.json().await?;
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0) > 0);
    }
    assert_eq!(cached, [false, true, false, true]);
    Ok(())
}

fn events(answer: &str) -> impl Iterator<Item = Value> {
    answer.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
}

/// The text of a streamed answer, and its usage.
fn told(answer: &str) -> (String, Value) {
    let text =
        events(answer).filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()));
    let usage = events(answer).map(|event| event["usage"].clone()).find(|usage| !usage.is_null());
    (text.collect(), usage.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_an_engine_loses_or_breaks_an_answer() -> anyhow::Result<()> {
    init_logging();
    let folder = tempfile::tempdir()?;
    let args = Args {
        rounds: 1,
        clients: 4,
        share: 1.0,
        stream_tokens: 24,
        seed: 1,
        faults: [&Fault::OF_ENGINES[..], &[Fault::GatewayKill]].concat(),
        loopback: true,
        peer: false,
        saturate: None,
        out: folder.path().to_owned(),
    };
    let summaries = run(&args).await?;
    for summary in &summaries {
        assert_eq!(summary.lost, 0, "{}: {:?}", summary.fault, summary.failures);
        assert!(!summary.resumes || summary.broken == 0, "{}: {:?}", summary.fault, summary.failures);
        assert!(summary.affected > 0, "{}: no request met the fault", summary.fault);
    }
    let resumed: u64 = summaries.iter().map(|summary| summary.resumed).sum();
    assert!(
        resumed > 0 || summaries.iter().any(|summary| !summary.resumes),
        "no stream had to go on elsewhere"
    );
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("summary.json"))?)?;
    assert_eq!(written.as_array().map(Vec::len), Some(summaries.len()));
    assert!(std::fs::read_to_string(folder.path().join("latency.svg"))?.ends_with("</svg>\n"));
    Ok(())
}
