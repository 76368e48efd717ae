//! Files that only an engine can read: what it tells of them is planned with, kept, and asked of nobody else.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};
use atlas_crds::names::ENGINE_INTERNAL_PORT;
use axum::{Json, Router, extract::State, routing::get};
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    bench::{Bench, tier},
    scenarios::{hand_over, pod_status, settle},
};

const SOURCE: &str = "file:///models/wide.gguf";
const MIB: i64 = 1 << 20;

/// A file on the nodes, on a card that offers 5,616 MiB.
fn wide(context: i32) -> Value {
    let mut tier = tier("wide", "reported");
    tier["model"]["source"] = SOURCE.into();
    tier["contextTokens"] = context.into();
    tier
}

/// 3,600 MiB of weights, and 512 KiB of KV cache a token.
fn header(weights: i64) -> Value {
    json!({
        "source": SOURCE, "architecture": "llama", "quantization": "Q4_K_M", "parameters": 6_700_000_000_i64,
        "layerWeightBytes": vec![(weights - 16) * MIB / 32; 32], "otherWeightBytes": 16 * MIB,
        "keyElements": 4096, "valueElements": 4096, "hidden": 4096, "feedForward": 11008, "queryElements": 4096,
        "takesQ8Cache": true, "vocabulary": 32000, "trainedContext": 16384,
    })
}

/// An engine that says what a test wants it to say, and counts who asks.
struct FakeEngine {
    address: SocketAddr,
    told: Arc<Mutex<(Value, usize)>>,
    server: JoinHandle<()>,
}

impl FakeEngine {
    /// The contract names the port, so the address is what is free.
    async fn start(header: Value) -> Result<Self> {
        for _ in 0..64 {
            let [a, b, c, _] = rand::random::<u32>().to_be_bytes();
            let ip = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
            let Ok(listener) = TcpListener::bind((ip, ENGINE_INTERNAL_PORT)).await else { continue };
            let status = json!({"phase": "Serving", "ready": true, "error": null, "header": header,
                "download": {"bytes": 1, "totalBytes": 1, "checkedBytes": 1, "attempts": 1}});
            let told = Arc::new(Mutex::new((status, 0)));
            let answer = async |State(told): State<Arc<Mutex<(Value, usize)>>>| {
                let mut told = told.lock().unwrap();
                told.1 += 1;
                Json(told.0.clone())
            };
            let router = Router::new().route("/internal/status", get(answer)).with_state(Arc::clone(&told));
            let address = listener.local_addr()?;
            let server = tokio::spawn(async move {
                axum::serve(listener, router).await.unwrap();
            });
            return Ok(Self { address, told, server });
        }
        bail!("no free address in 127.0.0.0/8")
    }

    fn asked(&self) -> usize {
        self.told.lock().unwrap().1
    }

    /// The status of its pod.
    fn pod_status(&self, ready: bool) -> Value {
        let mut status = pod_status(ready, json!({"running": {}}));
        let ip = self.address.ip().to_string();
        status["podIPs"] = json!([{"ip": ip}]);
        status["podIP"] = ip.into();
        status
    }
}

fn weights(object: &DynamicObject, expected: &str) -> Result<(), String> {
    let tier = &object.data["status"]["tiers"][0];
    let right = tier["vram"]["weights"] == expected && tier["header"]["source"] == SOURCE;
    if right { Ok(()) } else { Err(tier.to_string()) }
}

pub async fn what_only_an_engine_reads_is_planned_with_its_word(bench: &Bench) -> Result<()> {
    let at = ("reported", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Radeon RX 7600 XT", "gfxTarget": "gfx1102", "vram": "8176Mi",
        "match": {"vramClass": "16G", "computeUnits": 32}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": "reported"}, "spec": spec})).await?;
    bench.card_node("xt16", "16G", "32").await?;
    bench.model(at, &[wide(2048)], json!({})).await?;
    let says = ["tier wide: file:// is read by the engine alone", "known once its engine has read the file"];
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &says).await?;

    let engine = FakeEngine::start(header(3600)).await?;
    let pod = bench.engine_pod(at, "wide", Some("xt16")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), engine.pod_status(true)).await?;
    settle(bench, at.0, "code-t-wide").await?;
    bench.condition(at, "VramFits", "True", "Fits", &["tier wide needs", "of 5,616 MiB"]).await?;
    let told = bench.wait_for("AtlasModel", (Some(at.0), at.1), |object| weights(object, "3600Mi")).await?;
    ensure!(told.data["status"]["tiers"][0]["vram"]["kvCache"] == "1024Mi", "{}", told.data["status"]);
    ensure!(told.data["status"]["tiers"][0]["download"].is_null(), "a ready engine downloads nothing");
    bench.settled_version(at).await?;
    ensure!(engine.asked() == 1, "asked {} times", engine.asked());

    a_change_that_cannot_fit_is_warned_of_and_held(bench, at).await?;
    what_was_told_outlives_engine_and_operator(bench, at, &pod, &engine).await?;

    engine.server.abort();
    an_end_for_want_of_memory_tells_what_would_fit(bench, at, &pod).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await?;
    bench.api("GpuProfile", None).delete("reported", &DeleteParams::default()).await.context("profile")?;
    bench.api("Node", None).delete("xt16", &DeleteParams::default()).await.context("node")?;
    Ok(())
}

/// What serves goes on as it was, and the numbers are there.
async fn a_change_that_cannot_fit_is_warned_of_and_held(bench: &Bench, at: (&str, &str)) -> Result<()> {
    let before = bench.api("Deployment", Some(at.0)).get("code-t-wide").await?;
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [wide(8192)]}})).await?;
    let says = ["it needs", "of the 5,616 MiB", "contextTokens 8192 -> "];
    bench.condition(at, "VramFits", "False", "DoesNotFit", &says).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    let after = bench.api("Deployment", Some(at.0)).get("code-t-wide").await?;
    ensure!(before.data["spec"] == after.data["spec"], "{} became {}", before.data, after.data);
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [wide(2048)]}})).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await
}

/// Neither an engine that is away nor an operator that starts anew makes it unknown again, not even for a moment.
async fn what_was_told_outlives_engine_and_operator(
    bench: &Bench,
    at: (&str, &str),
    pod: &str,
    engine: &FakeEngine,
) -> Result<()> {
    bench.patch_status("Pod", (Some(at.0), pod), pod_status(false, json!({"running": {}}))).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &[]).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;
    let settled = bench.settled_version(at).await?;
    hand_over(bench, "operator-reported").await?;
    ensure!(bench.settled_version(at).await? == settled, "the new operator wrote something else");
    bench.patch_status("Pod", (Some(at.0), pod), engine.pod_status(true)).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    // Another engine of the pod, which finds another file under the same name.
    engine.told.lock().unwrap().0["header"] = header(3000);
    let mut restarted = engine.pod_status(true);
    restarted["containerStatuses"][0]["restartCount"] = 2.into();
    bench.patch_status("Pod", (Some(at.0), pod), restarted).await?;
    bench.wait_for("AtlasModel", (Some(at.0), at.1), |object| weights(object, "3000Mi")).await?;
    Ok(())
}

async fn an_end_for_want_of_memory_tells_what_would_fit(
    bench: &Bench,
    at: (&str, &str),
    pod: &str,
) -> Result<()> {
    let message = format!("the model does not fit: too much\nheader: {}\n", header(5000));
    let ended =
        json!({"terminated": {"exitCode": 13, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}});
    bench.patch_status("Pod", (Some(at.0), pod), pod_status(false, ended)).await?;
    let says = [
        "the model does not fit: too much (pod",
        "exit code 13",
        "it needs",
        "of the 5,616 MiB",
        "would fit",
    ];
    bench.condition(at, "VramFits", "False", "DoesNotFit", &says).await?;
    let told = bench.wait_for("AtlasModel", (Some(at.0), at.1), |object| weights(object, "5000Mi")).await?;
    let text = told.data["status"]["conditions"].to_string();
    ensure!(!text.contains("layerWeightBytes"), "numbers for machines are no message: {text}");
    // The file may be another one by the time that it starts again, so it is not kept from starting.
    let live = bench.api("Deployment", Some(at.0)).get("code-t-wide").await?;
    ensure!(live.data["spec"]["replicas"] == 1, "{}", live.data["spec"]);
    ensure!(live.name_any() == "code-t-wide");
    Ok(())
}
