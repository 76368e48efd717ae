//! An engine finds another card than its profile's: on a node with one kind of card, and on one with several.

use anyhow::{Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, LONG, holds, tier},
    inventory::replicas,
    scenarios::pod_status,
};

const PROFILE: &str = "wrong-card";

/// What the kubelet leaves of an engine that ended because of its card, this many seconds ago.
fn wrong_card(seconds: i64) -> Result<Value> {
    let at = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - seconds)?.to_string();
    let ended = json!({"exitCode": 20, "message": "found gfx1102, wanted gfx1101", "reason": "Error",
        "startedAt": at, "finishedAt": at});
    Ok(pod_status(false, json!({"terminated": ended})))
}

pub fn avoids(nodes: &[&str]) -> impl Fn(&DynamicObject) -> Result<(), String> {
    let wanted: Vec<Value> =
        nodes.iter().map(|n| json!({"key": "metadata.name", "operator": "NotIn", "values": [n]})).collect();
    move |deployment| {
        let affinity = &deployment.data["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
        let terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found = |term: &Value| term["matchFields"].as_array().cloned().unwrap_or_default();
        if !terms.is_empty() && terms.iter().all(|term| found(term) == wanted) {
            Ok(())
        } else {
            Err(affinity.to_string())
        }
    }
}

pub async fn a_wrong_card_excludes_its_node_until_the_profile_is_mended(bench: &Bench) -> Result<()> {
    let at = ("wrong-card", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Card", "gfxTarget": "gfx1101", "vram": "12272Mi", "match": {"vramClass": "10G", "computeUnits": 54}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": PROFILE}, "spec": spec})).await?;
    bench.card_node("w1", "10G", "54").await?;
    bench.model(at, &[tier("primary", PROFILE)], json!({})).await?;
    let deployment = (Some(at.0), "code-t-primary");
    bench.wait_for("Deployment", deployment, avoids(&[])).await?;
    let pod = bench.engine_pod(at, "primary", Some("w1")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), wrong_card(5)?).await?;

    let says = ["node w1 is refused: an engine found another card there", "found gfx1102, wanted gfx1101"];
    bench
        .wait_for("GpuProfile", (None, PROFILE), |p| {
            holds(p, "NodesUsable", "False", "NodesRefused", &says)?;
            let excluded = &p.data["status"]["excluded"];
            let right =
                excluded[0]["name"] == "w1" && excluded[0]["active"] == true && excluded[0]["failures"] == 1;
            if right { Ok(()) } else { Err(excluded.to_string()) }
        })
        .await?;
    ensure!(bench.event("default", PROFILE, "NodesRefused").await?.contains("w1"));
    bench.wait_for("Deployment", deployment, avoids(&["w1"])).await?;
    // The Deployment controller takes the old pod away; its successor has no node left.
    bench.remove_pod((at.0, &pod)).await?;
    bench.condition(at, "Scheduled", "False", "NodesRefused", &says).await?;
    // Another node with the card takes it, and a pod that serves there is left as it is.
    bench.card_node("w2", "10G", "54").await?;
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &["node w1 is refused"]).await?;
    let pod = bench.engine_pod(at, "primary", Some("w2")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    bench.condition(at, "Ready", "True", "Serving", &["w2"]).await?;
    let before = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    // An edit of the profile gives every node another chance.
    let patch = Patch::Merge(json!({"spec": {"boardPowerWatts": 245}}));
    bench.api("GpuProfile", None).patch(PROFILE, &PatchParams::default(), &patch).await?;
    bench
        .wait_for("GpuProfile", (None, PROFILE), |p| {
            let excluded = &p.data["status"]["excluded"];
            if excluded.is_null() { Ok(()) } else { Err(excluded.to_string()) }
        })
        .await?;
    bench.condition(at, "Scheduled", "True", "AllScheduled", &[]).await?;
    let after = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    ensure!(before.data["spec"] == after.data["spec"], "a serving pod was rolled for an exclusion's sake");
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await?;
    for node in ["w1", "w2"] {
        bench.api("Node", None).delete(node, &DeleteParams::default()).await?;
    }
    Ok(())
}

pub async fn on_a_node_with_two_kinds_the_pod_is_made_anew(bench: &Bench) -> Result<()> {
    let at = ("wrong-card", "mixed");
    let labels = json!({"amd.com/gpu.vram.10G": "1", "amd.com/gpu.vram.6G": "1",
        "amd.com/gpu.cu-count.54": "1", "amd.com/gpu.cu-count.28": "1"});
    bench.create("Node", None, json!({"metadata": {"name": "both", "labels": labels}})).await?;
    let cards = json!({"amd.com/gpu": "2", "cpu": "8", "memory": "16Gi", "pods": "110"});
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
    let status = json!({"capacity": cards, "allocatable": cards, "conditions": ready});
    bench.patch_status("Node", (None, "both"), status).await?;
    bench.model(at, &[tier("primary", PROFILE)], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "mixed-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(at, "primary", Some("both")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), wrong_card(5)?).await?;
    let says = ["found gfx1102", "the pod is made anew, later each time", "allocation: ResourceClaim"];
    bench.condition(at, "Scheduled", "False", "WrongCard", &says).await?;
    let api = bench.api("Pod", Some(at.0));
    ensure!(api.get(&pod).await?.metadata.deletion_timestamp.is_none(), "it is not made anew at once");
    // Half a minute later.
    bench.patch_status("Pod", (Some(at.0), &pod), wrong_card(31)?).await?;
    wait_until("the pod to be deleted", LONG, async || match api.get_opt(&pod).await {
        Ok(Some(pod)) if pod.metadata.deletion_timestamp.is_none() => Err("it stays".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    let profile = bench.api("GpuProfile", None).get(PROFILE).await?;
    ensure!(profile.data["status"]["excluded"].is_null(), "{}", profile.data["status"]);
    let _ = api.delete(&pod, &DeleteParams::default().grace_period(0)).await;
    bench.remove_model(at).await?;
    bench.api("Node", None).delete("both", &DeleteParams::default()).await?;
    bench.api("GpuProfile", None).delete(PROFILE, &DeleteParams::default()).await?;
    Ok(())
}
