//! What engines measure of their cards: for plans to come, and never a reason to touch what serves.

use anyhow::{Context, Result, ensure};
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject},
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, tier},
    gateways::FakeGateway,
    scenarios::{hand_over, pod_status, settle},
};

const MIB: u64 = 1 << 20;

/// 3,600 MiB of weights and 512 KiB of KV cache a token, on a card of its own that offers 5,616.
fn wide(context: i32) -> Value {
    let mut tier = tier("wide", "measured");
    tier["model"]["source"] = "hf://acme/models/wide.gguf".into();
    tier["contextTokens"] = context.into();
    tier
}

/// What a gateway tells of an engine that uses so much of its card.
fn engine(context: u64, own_peak: u64) -> Value {
    json!({
        "tier": "wide", "address": "127.0.0.1:8000", "health": "Healthy", "cause": null,
        "modelFile": "wide", "contextTokens": context, "maxBatch": 1,
        "vram": {
            "gfxTarget": "gfx1101", "ownPeakBytes": own_peak * MIB, "weightBytes": 3600 * MIB,
            "kvCacheBytes": context * 512 * 1024,
        },
    })
}

/// What of a tier's Deployment its pods are made from, and its generation.
async fn deployment(bench: &Bench, at: (&str, &str)) -> Result<(Value, Option<i64>, Option<String>)> {
    let live = bench.api("Deployment", Some(at.0)).get(&format!("{}-t-wide", at.1)).await?;
    let planned = live.annotations().get("atlas.gillsystems.com/planned-runtime-bytes").cloned();
    Ok((live.data["spec"].clone(), live.metadata.generation, planned))
}

pub async fn what_engines_measure_is_planned_with_and_rolls_nothing(bench: &Bench) -> Result<()> {
    let at = ("measured", "code");
    bench.namespace(at.0).await?;
    let spec = json!({"product": "Radeon RX 7700 XT", "gfxTarget": "gfx1101", "vram": "8176Mi",
        "match": {"vramClass": "12G", "computeUnits": 54}});
    bench.create("GpuProfile", None, json!({"metadata": {"name": "measured"}, "spec": spec})).await?;
    bench.card_node("xt", "12G", "54").await?;
    bench.model(at, &[wide(2048)], json!({})).await?;
    let pod = bench.engine_pod(at, "wide", Some("xt")).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    settle(bench, at.0, "code-t-wide").await?;
    bench.condition(at, "VramFits", "True", "Fits", &["of 5,616 MiB"]).await?;
    let pod_uid = bench.api("Pod", Some(at.0)).get(&pod).await?.uid();
    let before = deployment(bench, at).await?;
    let planned =
        bench.api("AtlasModel", Some(at.0)).get(at.1).await?.data["status"]["tiers"][0]["vram"].clone();

    // 1,000 MiB beyond weights and cache: with so much the very same setting would not be started.
    let gateway = FakeGateway::join(bench, at.0, "xt", Some("wide")).await?;
    gateway.say_engines(Some("wide"), &[engine(2048, 5624)]);
    let kept = bench
        .wait_for("GpuProfile", (None, "measured"), |profile| {
            let found = &profile.data["status"]["calibration"];
            let right = found["gfxTarget"] == "gfx1101"
                && found["measuredOn"] == "measured/code tier wide"
                && found["runtime"].as_str().is_some_and(|text| text.ends_with("Mi"));
            if right { Ok(()) } else { Err(found.to_string()) }
        })
        .await?;
    let runtime = kept.data["status"]["calibration"]["runtime"].as_str().unwrap_or_default().to_owned();
    let runtime_mib: u64 = runtime.trim_end_matches("Mi").parse()?;
    ensure!((864..=1000).contains(&runtime_mib) && runtime_mib.is_multiple_of(16), "{runtime}");
    bench
        .wait_for("AtlasModel", (Some(at.0), at.1), |model| {
            let vram = &model.data["status"]["tiers"][0]["vram"];
            // Everything planned is as it was, beside what was measured.
            let mut expected = planned.clone();
            expected["measured"] = "5624Mi".into();
            if *vram == expected { Ok(()) } else { Err(vram.to_string()) }
        })
        .await?;
    let line = "atlas_vram_estimate_error_bytes{model=\"code\",namespace=\"measured\",tier=\"wide\"}";
    let error = bench.metric(line).await?;
    ensure!(error < -600.0 * MIB as f64, "an estimate that is 700 MiB too low shows as {error}");
    let shown = bench.metric("atlas_vram_calibrated_runtime_bytes{gfx_target=\"gfx1101\"}").await?;
    ensure!(shown == (runtime_mib * MIB) as f64, "{shown}");

    // An engine that ends for a moment, an operator that starts anew, gateways that tell nothing.
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(false, json!({"running": {}}))).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;
    gateway.leave(bench, at.0).await?;
    hand_over(bench, "operator-measured").await?;
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    let other = ("measured", "other");
    bench.model(other, &[wide(2048)], json!({})).await?;
    let says = ["tier wide: it needs", "of the 5,616 MiB", "overhead"];
    bench.condition(other, "VramFits", "False", "DoesNotFit", &says).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;
    let after = deployment(bench, at).await?;
    ensure!(before == after, "{before:?} became {after:?}");
    ensure!(bench.api("Pod", Some(at.0)).get(&pod).await?.uid() == pod_uid, "the pod was made anew");
    let still = bench.api("GpuProfile", None).get("measured").await?;
    ensure!(still.data["status"]["calibration"]["runtime"] == runtime, "{}", still.data["status"]);

    // The next change of the tier is planned with the figure, and says so.
    bench.remove_model(other).await?;
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [wide(512)]}})).await?;
    let planned_with = (runtime_mib * MIB).to_string();
    bench
        .wait_for("Deployment", (Some(at.0), "code-t-wide"), |live: &DynamicObject| {
            let found = live.annotations().get("atlas.gillsystems.com/planned-runtime-bytes");
            if found == Some(&planned_with) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await?;
    let (_, generation, _) = deployment(bench, at).await?;
    ensure!(generation > before.1, "an edit rolls as ever");

    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await?;
    bench.api("GpuProfile", None).delete("measured", &DeleteParams::default()).await.context("profile")?;
    bench.api("Node", None).delete("xt", &DeleteParams::default()).await.context("node")?;
    Ok(())
}
