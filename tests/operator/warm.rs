//! Standby Warm: weights on every node of the profile, told as they come, and neither card nor engine meanwhile.

use anyhow::{Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::{
    bench::{Bench, LONG, tier},
    gateways::FakeGateway,
    inventory::replicas,
    lifecycle::{proven, recreate, running, with_context},
    scenarios::{pod_status, settle},
};

pub async fn a_warm_tiers_weights_are_kept_on_its_nodes_without_a_card(bench: &Bench) -> Result<()> {
    let at = ("warm", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Radeon RX 7600 XT", "gfxTarget": "gfx1102", "vram": "16368Mi",
        "match": {"vramClass": "16G", "computeUnits": 32}, "modelCache": {"hostPath": {"path": "/var/lib/models"}}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": "cached"}, "spec": spec})).await?;
    for node in ["xt-1", "xt-2"] {
        bench.card_node(node, "16G", "32").await?;
    }
    let mut fallback = tier("fallback", "cached");
    fallback["standby"] = "Warm".into();
    bench.model(at, &[with_context("primary", "big", 1024), fallback.clone()], json!({})).await?;
    let (engines, weights) = ((Some(at.0), "code-t-fallback"), (Some(at.0), "code-w-fallback"));
    bench.wait_for("Deployment", engines, replicas(0)).await?;
    // One a node of its profile, and none asks for a card.
    let live = bench.wait_for("Deployment", weights, replicas(2)).await?;
    let pod = &live.data["spec"]["template"]["spec"];
    let args = pod["containers"][0]["args"].to_string();
    ensure!(args.contains("\"fetch\",\"--model\"") && args.contains("--hold"), "{args}");
    ensure!(!live.data.to_string().contains("amd.com/gpu\":\"1"), "{}", live.data);
    ensure!(pod["volumes"][0]["hostPath"]["path"] == "/var/lib/models", "{pod}");
    let says = ["tier fallback: it stands by (Warm), its weights are kept by 0 of 2 pods, and"];
    bench.condition(at, "Ready", "False", "NoTierServes", &says).await?;
    bench
        .condition(
            at,
            "ModelCached",
            "False",
            "KeepingWeights",
            &["tier fallback: its weights are kept by 0 of 2"],
        )
        .await?;
    let first = recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    for node in ["xt-1", "xt-2"] {
        let labels = json!({
            "atlas.gillsystems.com/model": at.1, "atlas.gillsystems.com/weights-of": "fallback",
            "app.kubernetes.io/component": "weights", "app.kubernetes.io/managed-by": "atlas-operator",
        });
        let pod = json!({
            "metadata": {"name": node, "namespace": at.0, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "hold", "image": "i"}]},
        });
        bench.create("Pod", Some(at.0), pod).await?;
        if node == "xt-1" {
            // What it fetches with says why it cannot.
            let said = "the server answers 404: check the source's spelling";
            let end = json!({"terminated": {"exitCode": 10, "message": said, "reason": "Error"}});
            let init = json!([{"name": "fetch", "ready": false, "restartCount": 1, "image": "i", "imageID": "", "state": end}]);
            let mut status = pod_status(false, json!({"waiting": {"reason": "PodInitializing"}}));
            status["initContainerStatuses"] = init;
            bench.patch_status("Pod", (Some(at.0), node), status).await?;
            bench
                .condition(
                    at,
                    "ModelCached",
                    "False",
                    "ModelUnavailable",
                    &["tier fallback", said, "pod xt-1"],
                )
                .await?;
        }
        let done = json!([{"name": "fetch", "ready": true, "restartCount": 1, "image": "i", "imageID": "",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]);
        let mut status = pod_status(true, json!({"running": {}}));
        status["initContainerStatuses"] = done;
        bench.patch_status("Pod", (Some(at.0), node), status).await?;
    }
    settle(bench, at.0, "code-w-fallback").await?;
    bench.condition(at, "ModelCached", "True", "Cached", &[]).await?;
    // They are no engines: no card is in use, and no tier has them.
    bench
        .wait_for("GpuProfile", (None, "cached"), |profile| {
            let status = &profile.data["status"];
            if status["inUse"] == 0 && status["capacity"] == 2 { Ok(()) } else { Err(status.to_string()) }
        })
        .await?;
    // A node that goes takes its pod's place along.
    bench.api("Node", None).delete("xt-2", &DeleteParams::default()).await?;
    bench.wait_for("Deployment", weights, replicas(1)).await?;
    // A claim is one for all nodes, so one pod fetches into it, as long as no engine has it.
    let claim = json!({"hostPath": null, "claim": {"claimName": "weights", "fsGroup": 65532}});
    let profile = json!({"spec": {"modelCache": claim}});
    let profiles = bench.api("GpuProfile", None);
    profiles.patch("cached", &PatchParams::default(), &Patch::Merge(profile)).await?;
    let live = bench.wait_for("Deployment", weights, |live| {
        let volume = &live.data["spec"]["template"]["spec"]["volumes"][0];
        if volume["persistentVolumeClaim"]["claimName"] == "weights" {
            Ok(())
        } else {
            Err(volume.to_string())
        }
    });
    let live = live.await?;
    replicas(1)(&live).map_err(anyhow::Error::msg)?;
    let gateway = FakeGateway::join(bench, at.0, "xtx", None).await?;
    bench.wait_for("Deployment", engines, replicas(1)).await?;
    bench.wait_for("Deployment", weights, replicas(0)).await?;
    gateway.say(Some("primary"), &[]);
    bench.wait_for("Deployment", engines, replicas(0)).await?;
    bench.wait_for("Deployment", weights, replicas(1)).await?;
    gateway.leave(bench, at.0).await?;
    // Another standby lets all of it go.
    fallback["standby"] = "Cold".into();
    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 1024), fallback]}});
    bench.patch("AtlasModel", at, tiers).await?;
    wait_until("the weights to be let go", LONG, async || {
        let live = bench.api("Deployment", Some(at.0)).get_opt("code-w-fallback").await;
        match live.map_err(|e| e.to_string())? {
            Some(live) if live.metadata.deletion_timestamp.is_none() => Err("it is there".to_owned()),
            _ => Ok(()),
        }
    })
    .await?;
    for pod in [first.as_str(), "xt-1", "xt-2"] {
        bench.remove_pod((at.0, pod)).await?;
    }
    bench.remove_model(at).await?;
    bench.api("GpuProfile", None).delete("cached", &DeleteParams::default()).await?;
    bench.api("Node", None).delete("xt-1", &DeleteParams::default()).await?;
    Ok(())
}
