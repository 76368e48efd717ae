//! Profiles, nodes and cards: who gets one, and what is said where none is to be had.

use anyhow::{Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::json;

use crate::bench::{Bench, LONG, PROFILES, holds, tier};

const UNREAD: &str = "the default profiles could not be created";

pub async fn default_profiles_are_created_once_and_never_overwritten(bench: &Bench) -> Result<()> {
    for name in ["big", "small"] {
        bench.wait_for("GpuProfile", (None, name), |_| Ok(())).await?;
    }
    let api = bench.api("GpuProfile", None);
    let patch = Patch::Merge(json!({"spec": {"boardPowerWatts": 999}}));
    api.patch("big", &PatchParams::default(), &patch).await?;
    // A restart meets the changed one and leaves it; a file that cannot be read keeps nobody from working.
    drop(bench.replace_operator(None));
    bench.write_profiles("kind: GpuProfile\n")?;
    let operator = bench.spawn_operator("operator-a").await?;
    bench.replace_operator(Some(operator));
    bench.wait_for("GpuProfile", (None, "small"), |p| has_status(p, "NodesMatched")).await?;
    wait_until("the file that cannot be read to be told", LONG, async || {
        let log = bench.log("operator-a");
        if log.contains(UNREAD) { Ok(()) } else { Err(log) }
    })
    .await?;
    let third = "metadata: {name: third}, spec: {product: P, backend: Cpu, vram: 8Gi}";
    let head = "apiVersion: atlas.gillsystems.com/v1alpha1, kind: GpuProfile";
    bench.write_profiles(&format!("{PROFILES}---\n{{{head}, {third}}}\n"))?;
    bench.wait_for("GpuProfile", (None, "third"), |_| Ok(())).await?;
    ensure!(api.get("big").await?.data["spec"]["boardPowerWatts"] == 999);
    let told = bench.log("operator-a").matches(UNREAD).count();
    ensure!(told == 1, "told {told} times: {}", bench.log("operator-a"));
    api.delete("third", &DeleteParams::default()).await?;
    Ok(())
}

fn has_status(object: &DynamicObject, condition: &str) -> Result<(), String> {
    let text = object.data["status"]["conditions"].to_string();
    if text.contains(condition) { Ok(()) } else { Err(text) }
}

pub async fn a_profile_without_nodes_says_what_was_looked_for(bench: &Bench) -> Result<()> {
    bench
        .wait_for("GpuProfile", (None, "big"), |object| {
            holds(object, "NodesMatched", "False", "NoMatchingNode", &["amd.com/gpu.vram=24G"])
        })
        .await?;
    bench.namespace("nodeless").await?;
    bench.model(("nodeless", "code"), &[tier("primary", "big")], json!({})).await?;
    bench
        .condition(
            ("nodeless", "code"),
            "Scheduled",
            "False",
            "NoMatchingNode",
            &["big", "amd.com/gpu.cu-count=96", "node labeller"],
        )
        .await?;
    bench.card_node("xtx", "24G", "96").await?;
    bench.card_node("rx", "8G", "32").await?;
    bench
        .condition(("nodeless", "code"), "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"])
        .await?;
    bench
        .wait_for("GpuProfile", (None, "big"), |p| {
            holds(p, "NodesMatched", "True", "Matched", &[])?;
            holds(p, "Unambiguous", "True", "OneKind", &[])?;
            if p.data["status"]["capacity"] == 1 { Ok(()) } else { Err(p.data["status"].to_string()) }
        })
        .await?;
    bench.remove_model(("nodeless", "code")).await
}

pub async fn two_models_and_one_card(bench: &Bench) -> Result<()> {
    let (old, young) = (("cards", "old"), ("cards", "young"));
    bench.namespace("cards").await?;
    bench.model(old, &[tier("primary", "big")], json!({})).await?;
    let replicas = |wanted: i64| {
        move |object: &DynamicObject| {
            let found = &object.data["spec"]["replicas"];
            if *found == wanted { Ok(()) } else { Err(found.to_string()) }
        }
    };
    bench.wait_for("Deployment", (Some("cards"), "old-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(old, "primary", Some("xtx")).await?;
    bench
        .wait_for("GpuProfile", (None, "big"), |p| {
            if p.data["status"]["inUse"] == 1 { Ok(()) } else { Err(p.data["status"].to_string()) }
        })
        .await?;
    bench.model(young, &[tier("primary", "big"), tier("fallback", "small")], json!({})).await?;
    bench.condition(young, "Scheduled", "False", "CardInUse", &["cards/old", "big"]).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-primary"), replicas(0)).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-fallback"), replicas(1)).await?;
    // It starts when the card is free.
    bench.remove_model(old).await?;
    bench.remove_pod(("cards", &pod)).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-primary"), replicas(1)).await?;
    bench.remove_model(young).await
}

pub async fn two_profiles_of_one_node_are_told(bench: &Bench) -> Result<()> {
    let at = ("ambiguous", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    bench.condition(at, "Scheduled", "True", "AllScheduled", &[]).await?;
    let twin = json!({"product": "P", "gfxTarget": "gfx1100", "vram": "16Gi", "match": {"vramClass": "24G", "computeUnits": 96}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": "twin"}, "spec": twin})).await?;
    for (one, other) in [("big", "twin"), ("twin", "big")] {
        bench
            .wait_for("GpuProfile", (None, one), |p| {
                holds(p, "Unambiguous", "False", "Ambiguous", &["xtx", other])
            })
            .await?;
        ensure!(bench.event("default", one, "Ambiguous").await?.contains(other));
    }
    bench
        .condition(at, "Scheduled", "True", "AllScheduled", &["node xtx is matched by profile twin too"])
        .await?;
    bench.api("GpuProfile", None).delete("twin", &DeleteParams::default()).await?;
    bench.wait_for("GpuProfile", (None, "big"), |p| holds(p, "Unambiguous", "True", "OneKind", &[])).await?;
    bench
        .wait_for("AtlasModel", (Some(at.0), at.1), |model| {
            let text = model.data["status"]["conditions"].to_string();
            if text.contains("twin") { Err(text) } else { Ok(()) }
        })
        .await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await
}
