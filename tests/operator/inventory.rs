//! Nodes: which ones refuse engine pods and why, what other workloads hold, who keeps a card, scale and suspend.

use std::time::Duration;

use anyhow::{Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::{DeleteParams, DynamicObject};
use serde_json::{Value, json};

use crate::bench::{Bench, holds, tier};

/// A kind of card that no other scenario has.
const PROFILE: &str = "inventory";

pub fn replicas(wanted: i64) -> impl Fn(&DynamicObject) -> Result<(), String> {
    move |object| {
        let found = &object.data["spec"]["replicas"];
        if *found == wanted { Ok(()) } else { Err(format!("{found} replicas")) }
    }
}

/// What the leader's metrics say of a model that is suspended.
const SUSPENDED: &str = r#"atlas_model_condition{condition="Ready",model="scaled",namespace="inventory",reason="Suspended",status="False"}"#;

async fn shows(bench: &Bench, series: &str, wanted: f64) -> Result<()> {
    wait_until(series, Duration::from_secs(30), async || {
        let found = bench.metric(series).await.map_err(|error| error.to_string())?;
        if found == wanted { Ok(()) } else { Err(format!("{found} instead of {wanted}")) }
    })
    .await?;
    Ok(())
}

async fn train(bench: &Bench, node: &str) -> Result<()> {
    let limits = json!({"limits": {"amd.com/gpu": "1"}});
    let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "example/train", "resources": limits}]});
    let pod = json!({"metadata": {"name": "train", "namespace": "inventory"}, "spec": spec});
    bench.create("Pod", Some("inventory"), pod).await.map(|_| ())
}

async fn patch_node(bench: &Bench, node: &str, spec: Value) -> Result<()> {
    let patch = kube::api::Patch::Merge(json!({"spec": spec}));
    bench.api("Node", None).patch(node, &kube::api::PatchParams::default(), &patch).await?;
    Ok(())
}

pub async fn refused_nodes_are_told_with_what_to_do(bench: &Bench) -> Result<()> {
    let at = ("inventory", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Card", "gfxTarget": "gfx1101", "vram": "12272Mi", "match": {"vramClass": "12G", "computeUnits": 54}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": PROFILE}, "spec": spec})).await?;
    for node in ["i1", "i2"] {
        bench.card_node(node, "12G", "54").await?;
    }
    // One card is another workload's, the other node is cordoned.
    train(bench, "i1").await?;
    patch_node(bench, "i2", json!({"unschedulable": true})).await?;
    let says = ["inventory/train of other workloads holds its amd.com/gpu", "kubectl uncordon i2"];
    bench
        .wait_for("GpuProfile", (None, PROFILE), |p| holds(p, "NodesUsable", "False", "NodesRefused", &says))
        .await?;
    ensure!(bench.event("default", PROFILE, "NodesRefused").await?.contains("is refused"));
    bench.model(at, &[tier("primary", PROFILE)], json!({})).await?;
    bench.condition(at, "Scheduled", "False", "NodesRefused", &says).await?;
    bench.event(at.0, at.1, "NodesRefused").await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), replicas(1)).await?;

    let taint = json!([{"key": "team", "value": "ml", "effect": "NoSchedule"}]);
    patch_node(bench, "i2", json!({"unschedulable": null, "taints": taint})).await?;
    bench
        .condition(
            at,
            "Scheduled",
            "False",
            "NodesRefused",
            &["taint team=ml:NoSchedule", "spec.tolerations"],
        )
        .await?;
    let tolerations = json!({"spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}});
    let patch = kube::api::Patch::Merge(tolerations);
    bench.api("GpuProfile", None).patch(PROFILE, &kube::api::PatchParams::default(), &patch).await?;
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"]).await?;

    // Without that node, the other workload is the only reason left, and it is named.
    bench.api("Node", None).delete("i2", &DeleteParams::default()).await?;
    bench.condition(at, "Scheduled", "False", "CardInUse", &["pod inventory/train holds"]).await?;
    bench.remove_pod((at.0, "train")).await?;
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"]).await?;
    bench
        .wait_for("GpuProfile", (None, PROFILE), |p| {
            holds(p, "NodesUsable", "True", "Usable", &[])?;
            let node = &p.data["status"]["nodes"][0];
            if node["name"] == "i1" && node["free"] == 1 { Ok(()) } else { Err(node.to_string()) }
        })
        .await?;
    // A device plugin that hands nothing out, as after a kubelet's restart.
    let none = json!({"allocatable": {"amd.com/gpu": "0"}});
    bench.patch_status("Node", (None, "i1"), none).await?;
    bench
        .condition(at, "Scheduled", "False", "NoCardOffered", &["i1", "restart the AMD device plugin"])
        .await?;
    bench.patch_status("Node", (None, "i1"), json!({"allocatable": {"amd.com/gpu": "1"}})).await?;
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &[]).await?;
    bench.remove_model(at).await
}

pub async fn a_model_keeps_its_card_while_its_pod_is_replaced(bench: &Bench) -> Result<()> {
    let (old, young) = (("inventory", "a-old"), ("inventory", "b-young"));
    bench.model(old, &[tier("primary", PROFILE)], json!({"replicas": 0})).await?;
    bench.model(young, &[tier("primary", PROFILE)], json!({})).await?;
    bench.wait_for("Deployment", (Some(young.0), "b-young-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(young, "primary", Some("i1")).await?;
    let in_use = |wanted: i64| {
        move |p: &DynamicObject| {
            let found = &p.data["status"]["inUse"];
            if *found == wanted { Ok(()) } else { Err(found.to_string()) }
        }
    };
    bench.wait_for("GpuProfile", (None, PROFILE), in_use(1)).await?;
    // kubectl scale, the real one.
    bench.kubectl(&["scale", "-n", old.0, "atlasmodel/a-old", "--replicas=1"]).await?;
    bench.condition(old, "Scheduled", "False", "CardInUse", &["inventory/b-young holds"]).await?;
    let version = async |name: &str| -> Result<Option<String>> {
        Ok(bench.api("Deployment", Some("inventory")).get(name).await?.metadata.resource_version)
    };
    let before = (version("a-old-t-primary").await?, version("b-young-t-primary").await?);
    bench.remove_pod((young.0, &pod)).await?;
    bench.wait_for("GpuProfile", (None, PROFILE), in_use(0)).await?;
    bench.condition(young, "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"]).await?;
    bench.condition(old, "Scheduled", "False", "CardInUse", &["inventory/b-young holds"]).await?;
    let after = (version("a-old-t-primary").await?, version("b-young-t-primary").await?);
    ensure!(before == after, "a card changed hands: {before:?} {after:?}");
    // A model that gives its card back lets the other one have it.
    bench.patch("AtlasModel", young, json!({"spec": {"suspend": true}})).await?;
    bench.wait_for("Deployment", (Some(old.0), "a-old-t-primary"), replicas(1)).await?;
    bench.remove_model(old).await?;
    bench.remove_model(young).await
}

pub async fn kubectl_scales_the_first_tier_and_suspend_stops_every_one(bench: &Bench) -> Result<()> {
    let at = ("inventory", "scaled");
    bench.card_node("i3", "12G", "54").await?;
    bench.model(at, &[tier("primary", PROFILE), tier("fallback", "small")], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-primary"), replicas(1)).await?;
    bench.kubectl(&["scale", "-n", at.0, "atlasmodel/scaled", "--replicas=2"]).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-primary"), replicas(2)).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-fallback"), replicas(1)).await?;
    // What an autoscaler reads.
    let pod = bench.engine_pod(at, "primary", Some("i1")).await?;
    bench
        .wait_for("AtlasModel", (Some(at.0), at.1), |m| {
            let found = &m.data["status"]["replicas"];
            if *found == 1 { Ok(()) } else { Err(found.to_string()) }
        })
        .await?;
    let scale = bench
        .kubectl(&[
            "get",
            "--raw",
            "/apis/atlas.gillsystems.com/v1alpha1/namespaces/inventory/atlasmodels/scaled/scale",
        ])
        .await?;
    let scale: Value = serde_json::from_str(&scale)?;
    let selector = scale["status"]["selector"].as_str().unwrap_or_default();
    ensure!(scale["spec"]["replicas"] == 2 && scale["status"]["replicas"] == 1, "{scale}");
    let selected = bench.kubectl(&["get", "pods", "-n", at.0, "-l", selector, "-o", "name"]).await?;
    ensure!(selected.trim() == format!("pod/{pod}"), "{selector} selects {selected}");
    // There are two such cards, and no more.
    bench.kubectl(&["scale", "-n", at.0, "atlasmodel/scaled", "--replicas=3"]).await?;
    bench.condition(at, "Scheduled", "False", "TooFewCards", &["there are 2 card(s)", "for the 3"]).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-primary"), replicas(2)).await?;

    bench.patch("AtlasModel", at, json!({"spec": {"suspend": true}})).await?;
    for name in ["scaled-t-primary", "scaled-t-fallback"] {
        bench.wait_for("Deployment", (Some(at.0), name), replicas(0)).await?;
    }
    bench.remove_pod((at.0, &pod)).await?;
    bench.condition(at, "Ready", "False", "Suspended", &["set it to false to serve"]).await?;
    bench.condition(at, "Scheduled", "True", "Suspended", &[]).await?;
    shows(bench, SUSPENDED, 1.0).await?;
    bench.patch("AtlasModel", at, json!({"spec": {"suspend": false}})).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-primary"), replicas(2)).await?;
    bench.wait_for("Deployment", (Some(at.0), "scaled-t-fallback"), replicas(1)).await?;
    bench.remove_model(at).await?;
    shows(bench, SUSPENDED, 0.0).await?;
    for node in ["i1", "i3"] {
        bench.api("Node", None).delete(node, &DeleteParams::default()).await?;
    }
    bench.api("GpuProfile", None).delete(PROFILE, &DeleteParams::default()).await?;
    Ok(())
}
