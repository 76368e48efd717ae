//! A model's memory: what does not fit, what a change may not break, what is put back, what a deleted profile leaves.

use anyhow::{Result, ensure};
use kube::api::{DeleteParams, DynamicObject};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, tier},
    scenarios::{pod_status, settle},
};

/// 3,600 MiB of weights, 2,048 of KV cache at 4,096 tokens, on a card that offers 5,616.
fn wide(name: &str, context: i32) -> Value {
    let mut tier = tier(name, "small");
    tier["model"]["source"] = "hf://acme/models/wide.gguf".into();
    tier["contextTokens"] = context.into();
    tier
}

fn replicas(wanted: i64) -> impl Fn(&DynamicObject) -> Result<(), String> {
    move |object| {
        let found = &object.data["spec"]["replicas"];
        if *found == wanted { Ok(()) } else { Err(found.to_string()) }
    }
}

pub async fn what_does_not_fit_is_not_started_and_says_what_would(bench: &Bench) -> Result<()> {
    let at = ("memory", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[wide("wide", 8192), tier("other", "big")], json!({})).await?;
    let says = [
        "tier wide: it needs",
        "of the 5,616 MiB",
        "Radeon RX 7600",
        "KV cache 4,096 MiB",
        "contextTokens 8192 -> ",
    ];
    bench.condition(at, "VramFits", "False", "DoesNotFit", &says).await?;
    // Its tier has no pods, and the other one all that it wants.
    bench.wait_for("Deployment", (Some(at.0), "code-t-wide"), replicas(0)).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-other"), replicas(1)).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &["tier wide: it needs"]).await?;
    ensure!(bench.event(at.0, at.1, "DoesNotFit").await?.contains("contextTokens 8192 -> "));
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    let vram = &model.data["status"]["tiers"][0]["vram"];
    ensure!(
        vram["weights"] == "3600Mi" && vram["kvCache"] == "4096Mi" && vram["available"] == "5616Mi",
        "{vram}"
    );
    // What the advice says fits, does.
    let fitting = vram["maxContextTokens"].as_i64().unwrap_or(0);
    ensure!((3000..4096).contains(&fitting), "{vram}");
    let tiers = [wide("wide", i32::try_from(fitting)?), tier("other", "big")];
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": tiers}})).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-wide"), replicas(1)).await?;
    // The other tier's header is not there, and only that is left to say.
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &["tier other", "answers 404"]).await?;
    let tiers = [wide("wide", i32::try_from(fitting)?)];
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": tiers}})).await?;
    bench.condition(at, "VramFits", "True", "Fits", &["tier wide needs", "of 5,616 MiB, tight"]).await?;
    bench.remove_model(at).await
}

pub async fn what_the_advice_says_of_the_kv_cache_works(bench: &Bench) -> Result<()> {
    let at = ("memory", "halved");
    // At this context the card holds the cache in Q8_0 alone.
    bench.model(at, &[wide("wide", 3600)], json!({})).await?;
    bench.condition(at, "VramFits", "False", "DoesNotFit", &["kvCacheType F16 -> Q8_0"]).await?;
    let mut halved = wide("wide", 3600);
    halved["kvCacheType"] = "Q8_0".into();
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [halved]}})).await?;
    bench.wait_for("Deployment", (Some(at.0), "halved-t-wide"), replicas(1)).await?;
    bench.condition(at, "VramFits", "True", "Fits", &["of 5,616 MiB"]).await?;
    let live = bench.api("Deployment", Some(at.0)).get("halved-t-wide").await?;
    let args = live.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(args.contains("\"--kv-cache-type\",\"Q8_0\""), "{args}");
    bench.remove_model(at).await
}

pub async fn a_change_that_does_not_fit_leaves_what_serves(bench: &Bench) -> Result<()> {
    let at = ("memory", "serves");
    bench.model(at, &[wide("wide", 2048)], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "serves-t-wide"), replicas(1)).await?;
    let pod = bench.engine_pod(at, "wide", Some("rx")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    settle(bench, at.0, "serves-t-wide").await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    let before = bench.api("Deployment", Some(at.0)).get("serves-t-wide").await?;
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [wide("wide", 8192)]}})).await?;
    bench.condition(at, "VramFits", "False", "DoesNotFit", &["contextTokens 8192 -> "]).await?;
    bench.condition(at, "Progressing", "True", "RollingOut", &["goes on as it was"]).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    let after = bench.api("Deployment", Some(at.0)).get("serves-t-wide").await?;
    ensure!(before.data["spec"] == after.data["spec"], "{} became {}", before.data, after.data);
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [wide("wide", 2048)]}})).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await
}

pub async fn a_hand_edit_is_put_back_and_told_by_its_field(bench: &Bench) -> Result<()> {
    let at = ("memory", "edited");
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let name = "edited-llm-config";
    let written = bench.wait_for("ConfigMap", (Some(at.0), name), |_| Ok(())).await?;
    let text = written.data["data"]["llm_config.yaml"].as_str().unwrap_or_default().to_owned();
    let edited = text.replace("max_batch_size: 1", "max_batch_size: 64");
    ensure!(edited != text, "{text}");
    // The store has to know the file first, or the edit is all that it ever saw.
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    bench.patch("ConfigMap", (at.0, name), json!({"data": {"llm_config.yaml": edited}})).await?;
    let note = bench.event(at.0, at.1, "HandEditReverted").await?;
    ensure!(
        note.contains("hardware.primary_gpu.max_batch_size") && note.contains("spec.tiers[].maxBatch"),
        "{note}"
    );
    bench
        .wait_for("ConfigMap", (Some(at.0), name), |map| {
            let found = map.data["data"]["llm_config.yaml"].as_str().unwrap_or_default();
            if found == text { Ok(()) } else { Err(found.to_owned()) }
        })
        .await?;
    bench.remove_model(at).await
}

pub async fn a_profile_that_is_deleted_in_use_takes_nothing_away(bench: &Bench) -> Result<()> {
    let at = ("memory", "orphan");
    let spec = json!({"product": "P", "gfxTarget": "gfx1100", "vram": "48Gi", "match": {"vramClass": "48G", "computeUnits": 96}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": "gone"}, "spec": spec})).await?;
    bench.card_node("w7900", "48G", "96").await?;
    bench.model(at, &[tier("primary", "gone")], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "orphan-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(at, "primary", Some("w7900")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    bench.api("GpuProfile", None).delete("gone", &DeleteParams::default()).await?;
    bench.condition(at, "Accepted", "False", "ProfileNotFound", &["\"gone\" does not exist"]).await?;
    // It goes on serving, and nothing of it was touched.
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    bench.wait_for("Deployment", (Some(at.0), "orphan-t-primary"), replicas(1)).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.api("Node", None).delete("w7900", &DeleteParams::default()).await?;
    bench.remove_model(at).await
}
