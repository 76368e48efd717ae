//! The status of a model and of a profile, edited, added to and taken away by hand.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{next_namespace, restart, script::Stage};

/// Writes that put one edit back: the apply, what takes out what was added, and one more of a pass that saw it halfway.
const WRITES: usize = 3;

fn edits() -> Vec<(&'static str, Value)> {
    let other = json!([{"type": "Other", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    vec![
        ("AtlasModel", json!({"activeTier": "edited", "replicas": 7, "conditions": []})),
        ("AtlasModel", json!({"conditions": other, "download": "primary 1%"})),
        ("AtlasModel", json!({"tiers": [{"name": "primary", "ready": 9}, {"name": "nowhere", "ready": 1}]})),
        ("AtlasModel", Value::Null),
        ("GpuProfile", json!({"matchedNodes": 99, "nodes": [], "conditions": other})),
        (
            "GpuProfile",
            json!({"calibration": {"gfxTarget": "gfx1100", "runtime": "9Gi", "measuredOn": "x", "since": "2026-01-01T00:00:00Z"}}),
        ),
        ("GpuProfile", Value::Null),
    ]
}

pub async fn statuses_edited_by_hand_are_put_back(stage: &Stage<'_>) -> Result<()> {
    let namespace = next_namespace();
    stage.proxy.begin(&namespace, None);
    restart(stage.bench).await?;
    stage.create(&namespace).await?;
    let edits = edits();
    for (kind, status) in &edits {
        let at = match *kind {
            "AtlasModel" => (Some(namespace.as_str()), "code"),
            _ => (None, "big"),
        };
        let object = stage.bench.api(kind, at.0).get(at.1).await?;
        let count = || stage.proxy.writes().iter().filter(|write| write.path.ends_with("/status")).count();
        let before = count();
        stage.bench.patch_status(kind, at, status.clone()).await?;
        let edited = stage.bench.api(kind, at.0).get(at.1).await?;
        ensure!(edited.resource_version() != object.resource_version(), "{kind}: {status} changes nothing");
        stage.rest(&namespace, 0).await.with_context(|| format!("{kind}: {status}"))?;
        stage.stay(&namespace, 0).await?;
        let writes = count() - before;
        ensure!((1..=WRITES).contains(&writes), "{kind}: {status} was put back by {writes} writes");
    }
    println!("statuses edited by hand: {}", edits.len());
    stage.delete(&namespace).await
}
