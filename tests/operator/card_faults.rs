//! A card fails under its engine: forgiven once, left alone after the second time, and what nodes show of it.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, holds, tier},
    scenarios::pod_status,
    wrong_card::avoids,
};

const PROFILE: &str = "faulty";
const TAINT: &str = "atlas.gillsystems.com/gpu-fault";

fn ago(seconds: i64) -> Result<String> {
    Ok(jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - seconds)?.to_string())
}

/// An engine that is up again, or not, after it ended with this code at a time, by which faults are told apart.
fn ended(code: i32, message: &str, at: &str, ready: bool, restarts: i32) -> Value {
    let ended = json!({"terminated": {"exitCode": code, "message": message, "reason": "Error",
        "startedAt": at, "finishedAt": at}});
    let state = if ready {
        json!({"running": {"startedAt": at}})
    } else {
        json!({"waiting": {"reason": "CrashLoopBackOff"}})
    };
    let mut status = pod_status(ready, state);
    status["containerStatuses"][0]["lastState"] = ended;
    status["containerStatuses"][0]["restartCount"] = restarts.into();
    status
}

fn has_taint(node: &DynamicObject) -> bool {
    node.data["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|t| t["key"] == TAINT))
}

fn tainted(wanted: bool) -> impl Fn(&DynamicObject) -> Result<(), String> {
    move |node| if has_taint(node) == wanted { Ok(()) } else { Err(node.data["spec"].to_string()) }
}

fn faults(count: i64, active: bool, error: &str) -> impl Fn(&DynamicObject) -> Result<(), String> {
    let error = error.to_owned();
    move |profile| {
        let fault = &profile.data["status"]["cardFaults"][0];
        let right = fault["count"] == count && fault["active"] == active && fault["error"] == error.as_str();
        let placed = fault["node"] == "f1" && fault["card"] == "0000:03:00.0";
        if right && placed { Ok(()) } else { Err(profile.data["status"]["cardFaults"].to_string()) }
    }
}

/// Puts another operator in the place of the one that runs, with these flags.
async fn restart(bench: &Bench, flags: &[&str]) -> Result<()> {
    drop(bench.replace_operator(None));
    let operator = bench.spawn_operator_with("operator-a", flags).await?;
    bench.replace_operator(Some(operator));
    Ok(())
}

pub async fn a_card_that_fails_twice_is_left_alone_for_a_while(bench: &Bench) -> Result<()> {
    let at = ("card-faults", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Card", "gfxTarget": "gfx1101", "vram": "12272Mi", "match": {"vramClass": "9G", "computeUnits": 50}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": PROFILE}, "spec": spec})).await?;
    bench.card_node("f1", "9G", "50").await?;
    bench.model(at, &[tier("primary", PROFILE)], json!({})).await?;
    let deployment = (Some(at.0), "code-t-primary");
    bench.wait_for("Deployment", deployment, avoids(&[])).await?;
    let pod = bench.engine_pod(at, "primary", Some("f1")).await?;

    // Once: the engine is started again and serves on, and the card is remembered.
    let hang = "card 0000:03:00.0 (gfx1101): the device hangs";
    let first = ago(60)?;
    bench.patch_status("Pod", (Some(at.0), &pod), ended(30, hang, &first, false, 1)).await?;
    bench
        .condition(at, "Progressing", "False", "EngineHung", &[hang, "a second time within the hour"])
        .await?;
    bench.patch_status("Pod", (Some(at.0), &pod), ended(30, hang, &first, true, 1)).await?;
    bench.wait_for("GpuProfile", (None, PROFILE), faults(1, false, "Hang")).await?;
    let lately = ["node f1", "the device hangs", "another fault leaves the card alone"];
    let profile = (None, PROFILE);
    bench
        .wait_for("GpuProfile", profile, |p| holds(p, "CardsHealthy", "True", "FailedLately", &lately))
        .await?;
    bench.condition(at, "Ready", "True", "Serving", &["f1"]).await?;

    // An operator that knows of it only from the profile counts the second time, and marks the node as it is told.
    restart(bench, &["--mark-nodes", "taint"]).await?;
    let lost = "card 0000:03:00.0 (gfx1101): cannot use the device: the device is lost";
    bench.patch_status("Pod", (Some(at.0), &pod), ended(31, lost, &ago(5)?, false, 2)).await?;
    bench.wait_for("GpuProfile", profile, faults(2, true, "Lost")).await?;
    let says = ["node f1", "0000:03:00.0 failed 2 times", "Lost", "the device is lost", "left alone until"];
    bench
        .wait_for("GpuProfile", profile, |p| {
            holds(p, "CardsHealthy", "False", "CardFault", &says)?;
            holds(p, "NodesUsable", "False", "NodesRefused", &["its card 0000:03:00.0 failed 2 times"])
        })
        .await?;
    let told = bench.event("default", PROFILE, "CardFault").await?;
    ensure!(told.contains("power, heat and slot"), "{told}");
    bench.condition(at, "Progressing", "False", "GpuLost", &[lost]).await?;
    bench.wait_for("Node", (None, "f1"), tainted(true)).await?;
    bench.wait_for("Deployment", deployment, avoids(&["f1"])).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench
        .condition(at, "Scheduled", "False", "NodesRefused", &["its card 0000:03:00.0 failed 2 times"])
        .await?;
    // Without its pod, and after a restart, the card stays marked: the profile says so.
    restart(bench, &["--mark-nodes", "taint"]).await?;
    bench.condition(at, "Scheduled", "False", "NodesRefused", &["failed 2 times"]).await?;
    bench.wait_for("GpuProfile", profile, faults(2, true, "Lost")).await?;

    // An edit of the profile tries it at once, and takes the mark away.
    let patch = Patch::Merge(json!({"spec": {"boardPowerWatts": 245}}));
    bench.api("GpuProfile", None).patch(PROFILE, &PatchParams::default(), &patch).await?;
    bench.wait_for("GpuProfile", profile, |p| holds(p, "CardsHealthy", "True", "NoFault", &[])).await?;
    bench.wait_for("Node", (None, "f1"), tainted(false)).await?;
    bench.wait_for("Deployment", deployment, avoids(&[])).await?;

    // The same as a condition, which leaves the kubelet's alone.
    restart(bench, &["--mark-nodes=condition"]).await?;
    let pod = bench.engine_pod(at, "primary", Some("f1")).await?;
    for (seconds, restarts) in [(30, 3), (3, 4)] {
        bench
            .patch_status("Pod", (Some(at.0), &pod), ended(30, hang, &ago(seconds)?, false, restarts))
            .await?;
        bench.wait_for("GpuProfile", profile, faults(i64::from(restarts) - 2, restarts == 4, "Hang")).await?;
    }
    bench
        .wait_for("Node", (None, "f1"), |node| {
            holds(node, "AtlasGpuFault", "True", "CardFault", &["0000:03:00.0", "the device hangs"])?;
            holds(node, "Ready", "True", "KubeletReady", &[])
        })
        .await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await?;
    bench.api("GpuProfile", None).delete(PROFILE, &DeleteParams::default()).await?;
    restart(bench, &[]).await?;
    bench.api("Node", None).delete("f1", &DeleteParams::default()).await.context("the node")?;
    Ok(())
}

pub async fn short_memory_marks_no_card_and_becomes_does_not_fit(bench: &Bench) -> Result<()> {
    let at = ("card-faults", "large");
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    let faults_of = async || -> Result<Value> {
        Ok(bench.api("GpuProfile", None).get("big").await?.data["status"]["cardFaults"].clone())
    };
    let before = faults_of().await?;
    let short = "the model needs 9 bytes, and the card has 8 left";
    for (restarts, reason) in [(0, "OutOfMemory"), (3, "DoesNotFit")] {
        bench.patch_status("Pod", (Some(at.0), &pod), ended(32, short, &ago(5)?, false, restarts)).await?;
        bench.condition(at, "VramFits", "False", reason, &[short, "lower contextTokens or maxBatch"]).await?;
    }
    let after = faults_of().await?;
    ensure!(before == after, "{before} {after}");
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await
}
