//! A file on the node, which only the engine can read: its word is planned with, also where it finds too little memory.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use atlas_tests::{
    assets::cache_folder,
    lab::MODEL_FILE,
    support::wait_until,
    tour::{NAMESPACE, stage::Stage},
};
use serde_json::{Value, json};

use super::{PATIENCE, condition, model, warm::set_cache};

pub async fn a_file_on_the_node_is_planned_with_the_engines_word(stage: &Stage) -> Result<()> {
    let file = cache_folder().join("models").join(MODEL_FILE);
    let (cache, readable) = (tempfile::tempdir()?, |mode| std::fs::Permissions::from_mode(mode));
    std::fs::set_permissions(cache.path(), readable(0o777))?;
    std::fs::copy(&file, cache.path().join(MODEL_FILE))?;
    std::fs::set_permissions(cache.path().join(MODEL_FILE), readable(0o644))?;
    set_cache(stage, json!({"emptyDir": null, "hostPath": {"path": cache.path()}})).await?;
    let mut manifest = model("on-node", "rx-7600", MODEL_FILE, None);
    let tier = &mut manifest["spec"]["tiers"][0];
    tier["model"]["source"] = format!("file:///models/{MODEL_FILE}").into();
    // More than any machine has: the engine ends as soon as it has read the header.
    tier["engine"] = json!({"extraArgs": ["--kv-cache-tokens", "60000000000"]});
    stage.apply(&manifest).await?;
    let message = condition(stage, "on-node", "VramFits", "DoesNotFit").await?;
    for part in ["exit code 13", "bytes of KV cache", "as planned it needs ", " of 5,616 MiB of the card"] {
        ensure!(message.contains(part), "{part:?} is not in: {message}");
    }
    manifest["spec"]["tiers"][0]["engine"] = json!({"extraArgs": []});
    stage.apply(&manifest).await?;
    let read = atlas_headers::read_file(&file)?.weight_bytes();
    let expected = format!("{}Mi", read.div_ceil(1 << 20));
    wait_until("the file to be planned and served", PATIENCE, async || {
        let text = stage.kubectl(&["get", "atlasmodel", "-n", NAMESPACE, "on-node", "-o", "json"]).await;
        let object: Value =
            serde_json::from_str(&text.map_err(|e| format!("{e:#}"))?).map_err(|e| e.to_string())?;
        let (tier, conditions) = (&object["status"]["tiers"][0], object["status"]["conditions"].as_array());
        let fits = conditions.into_iter().flatten().find(|condition| condition["type"] == "VramFits");
        let fits = fits.is_some_and(|fits| fits["status"] == "True" && fits["reason"] == "Fits");
        if fits && tier["ready"] == 1 && tier["vram"]["weights"] == expected.as_str() {
            Ok(())
        } else {
            Err(object["status"].to_string())
        }
    })
    .await?;
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "on-node", "--timeout=60s"]).await?;
    set_cache(stage, json!({"emptyDir": {}, "hostPath": null})).await
}
