//! What is deleted goes and takes nothing else along, and what comes again by its name goes on: with the real garbage
//! collector and the real namespace controller.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use atlas_tests::{
    support::{init_logging, wait_until},
    tour::{
        NAMESPACE,
        report::{Report, Screen},
        stage::{LocalStage, Stage},
    },
};
use serde_json::{Value, json};

/// The name of the small model on the local cluster's server.
const FILE: &str = "smollm2-135m-primary.gguf";
const GONE: &str = "gone";
const ENGINES: &str = "app.kubernetes.io/component=engine";

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_goes_alone_and_what_comes_again_goes_on() -> Result<()> {
    init_logging();
    let (screen, mut report) = (Screen::default(), Report::default());
    let local = LocalStage::start(&screen, &mut report, BTreeMap::new()).await?;
    let stage = Stage::Local(Box::new(local));
    let outcome = scenario(&stage).await;
    if outcome.is_err() {
        screen.detail(&stage.kubectl(&["describe", "atlasmodels", "-A"]).await.unwrap_or_default());
    }
    stage.stop().await;
    outcome
}

async fn scenario(stage: &Stage) -> Result<()> {
    stage.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let kept = model("kept", "rx-7900-xtx");
    stage.apply(&kept).await?;
    ready(stage, NAMESPACE, "kept").await?;
    let engines = pods(stage, NAMESPACE).await?;
    a_namespace_goes_in_the_middle_of_a_rollout(stage).await?;
    ensure!(pods(stage, NAMESPACE).await? == engines, "a namespace took another one's pods along");

    // A profile that is made anew is another object, and no reason to touch what runs.
    let text = stage.kubectl(&["get", "gpuprofile", "rx-7900-xtx", "-o", "json"]).await?;
    let mut profile: Value = serde_json::from_str(&text)?;
    profile["metadata"] = json!({"name": "rx-7900-xtx"});
    if let Some(fields) = profile.as_object_mut() {
        fields.remove("status");
    }
    stage.kubectl(&["delete", "gpuprofile", "rx-7900-xtx"]).await?;
    reason(stage, "kept", "Accepted", "ProfileNotFound").await?;
    stage.apply(&profile).await?;
    reason(stage, "kept", "Accepted", "Valid").await?;
    ready(stage, NAMESPACE, "kept").await?;

    // A model that left everything behind takes it up again.
    stage
        .kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "kept", "--cascade=orphan", "--timeout=60s"])
        .await?;
    stage.apply(&kept).await?;
    reason(stage, "kept", "Accepted", "Valid").await?;
    ready(stage, NAMESPACE, "kept").await?;
    ensure!(pods(stage, NAMESPACE).await? == engines, "engines were made anew that served");

    // One that is replaced within a moment waits for what its predecessor leaves.
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "kept", "--timeout=60s"]).await?;
    stage.apply(&kept).await?;
    reason(stage, "kept", "Accepted", "Valid").await?;
    wait_until("engines of the new model alone", PATIENCE, async || {
        let now = pods(stage, NAMESPACE).await.map_err(|error| format!("{error:#}"))?;
        if now != engines && now.split_whitespace().count() == 1 { Ok(()) } else { Err(now) }
    })
    .await?;
    ready(stage, NAMESPACE, "kept").await?;
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "kept", "--timeout=60s"]).await?;
    Ok(())
}

async fn a_namespace_goes_in_the_middle_of_a_rollout(stage: &Stage) -> Result<()> {
    let mut manifest = model("short", "rx-7600");
    manifest["metadata"]["namespace"] = GONE.into();
    for again in [false, true] {
        stage.kubectl(&["create", "namespace", GONE]).await?;
        stage.apply(&manifest).await?;
        ready(stage, GONE, "short").await?;
        if !again {
            let change =
                "--patch=[{\"op\": \"replace\", \"path\": \"/spec/tiers/0/contextTokens\", \"value\": 256}]";
            stage.kubectl(&["patch", "atlasmodel", "-n", GONE, "short", "--type=json", change]).await?;
        }
        stage.kubectl(&["delete", "namespace", GONE, "--timeout=100s"]).await?;
    }
    wait_until("the card to be free", PATIENCE, async || {
        let path = "jsonpath={.status.inUse}";
        let used = stage.kubectl(&["get", "gpuprofile", "rx-7600", "-o", path]).await;
        let used = used.map_err(|error| format!("{error:#}"))?;
        if used == "0" { Ok(()) } else { Err(used) }
    })
    .await?;
    Ok(())
}

/// The uids of a namespace's engine pods.
async fn pods(stage: &Stage, namespace: &str) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.uid} {end}";
    stage.kubectl(&["get", "pods", "-n", namespace, "-l", ENGINES, "-o", path]).await
}

async fn ready(stage: &Stage, namespace: &str, name: &str) -> Result<()> {
    let wait = ["wait", "atlasmodel", "-n", namespace, name, "--for=condition=Ready", "--timeout=100s"];
    stage.kubectl(&wait).await?;
    Ok(())
}

async fn reason(stage: &Stage, name: &str, condition: &str, expected: &str) -> Result<()> {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].reason}}");
    wait_until(expected, PATIENCE, async || {
        let found = stage.kubectl(&["get", "atlasmodel", "-n", NAMESPACE, name, "-o", &path]).await;
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found == expected { Ok(()) } else { Err(found) }
    })
    .await?;
    Ok(())
}

fn model(name: &str, profile: &str) -> Value {
    let source = json!({"source": format!("http://models.atlas.test:8089/{FILE}")});
    json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"rollout": {"drainTimeout": "5s"},
                 "tiers": [{"name": "only", "gpuProfile": profile, "contextTokens": 512, "model": source}]}})
}
