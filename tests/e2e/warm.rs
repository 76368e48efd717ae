//! A tier with `standby: Warm`: its weights are on its node before they are needed, and failover fetches nothing.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Result, ensure};
use atlas_tests::{
    lab::PRIMARY_NODE,
    support::wait_until,
    tour::{NAMESPACE, stage::Stage},
};
use serde_json::json;

use super::{PATIENCE, condition_of, model};

/// The file that only the warm tier asks for; the model server loses it once it is kept.
pub const FILE: &str = "warm.gguf";

pub async fn a_warm_tier_takes_over_without_a_download(stage: &Stage, served: &Path) -> Result<()> {
    let cache = tempfile::tempdir()?;
    // As the documents say: writable for the image's user.
    std::fs::set_permissions(cache.path(), std::fs::Permissions::from_mode(0o777))?;
    set_cache(stage, json!({"emptyDir": null, "hostPath": {"path": cache.path()}})).await?;
    let mut manifest = model("warm", "rx-7900-xtx", "smollm2-135m-primary.gguf", None);
    let mut fallback = model("", "rx-7600", FILE, None)["spec"]["tiers"][0].clone();
    fallback["name"] = "fallback".into();
    fallback["standby"] = "Warm".into();
    if let Some(tiers) = manifest["spec"]["tiers"].as_array_mut() {
        tiers.push(fallback);
    }
    manifest["spec"]["failover"] = json!({"failbackAfter": "1s"});
    stage.apply(&manifest).await?;

    let get = async |kind: &str, name: &str, path: &str| {
        let path = format!("jsonpath={{{path}}}");
        stage.kubectl(&["get", kind, "-n", NAMESPACE, name, "-o", &path]).await
    };
    let reads = async |kind: &str, name: &str, path: &str, wanted: &str| match get(kind, name, path).await {
        Ok(found) if found == wanted => Ok(()),
        other => Err(format!("{kind} {name} {path}: {other:?}, wanted {wanted}")),
    };
    wait_until("the weights to be kept and the first tier to serve", PATIENCE, async || {
        reads("deployment", "warm-w-fallback", ".status.readyReplicas", "1").await?;
        reads("atlasmodel", "warm", ".status.activeTier", "only").await?;
        let cached = condition_of(stage, "warm", "ModelCached").await.map_err(|e| format!("{e:#}"))?;
        if cached["status"] == "True" { Ok(()) } else { Err(cached.to_string()) }
    })
    .await?;
    let reads_now = async |kind: &str, name: &str, path: &str, wanted: &str| {
        reads(kind, name, path, wanted).await.map_err(anyhow::Error::msg)
    };
    reads_now("deployment", "warm-t-fallback", ".spec.replicas", "0").await?;
    reads_now("gpuprofile", "rx-7600", ".status.inUse", "0").await?;
    let kept: Vec<_> = std::fs::read_dir(cache.path())?.collect::<Result<_, _>>()?;
    ensure!(kept.len() == 1 && kept[0].metadata()?.len() > 1 << 20, "{kept:?}");

    // Nobody can fetch it any more.
    std::fs::remove_file(served)?;
    stage.kubectl(&["cordon", PRIMARY_NODE]).await?;
    let engine = "atlas.gillsystems.com/model=warm,atlas.gillsystems.com/tier=only";
    stage.kubectl(&["delete", "pod", "-n", NAMESPACE, "-l", engine, "--wait=false"]).await?;
    wait_until("the warm tier to serve", PATIENCE, async || {
        reads("atlasmodel", "warm", ".status.activeTier", "fallback").await?;
        reads("deployment", "warm-t-fallback", ".status.readyReplicas", "1").await
    })
    .await?;
    stage.kubectl(&["uncordon", PRIMARY_NODE]).await?;
    wait_until(
        "the first tier to serve again and the warm one to give its card back",
        PATIENCE,
        async || {
            reads("atlasmodel", "warm", ".status.activeTier", "only").await?;
            reads("deployment", "warm-t-fallback", ".spec.replicas", "0").await?;
            reads("gpuprofile", "rx-7600", ".status.inUse", "0").await
        },
    )
    .await?;
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "warm", "--timeout=60s"]).await?;
    wait_until("what kept the weights to be gone", PATIENCE, async || {
        let pods = stage.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"]).await;
        match pods.map_err(|error| format!("{error:#}"))? {
            pods if pods.contains("warm-") => Err(pods),
            _ => Ok(()),
        }
    })
    .await?;
    set_cache(stage, json!({"emptyDir": {}, "hostPath": null})).await
}

/// Where engines of the second card keep model files.
pub async fn set_cache(stage: &Stage, cache: serde_json::Value) -> Result<()> {
    let patch = json!({"spec": {"modelCache": cache}}).to_string();
    stage.kubectl(&["patch", "gpuprofile", "rx-7600", "--type=merge", "-p", &patch]).await?;
    Ok(())
}
