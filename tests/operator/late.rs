//! A header that comes late: what it says is acted on when it comes, and nobody looks for it again and again.

use anyhow::{Result, ensure};
use atlas_tests::support::{narrow_header, wide_header};
use kube::ResourceExt;
use serde_json::json;

use crate::bench::{Bench, tier};

const RECONCILES: &str = "atlas_reconciles_total{controller=\"atlasmodel\"}";

/// Only the triggers of what has come can bring the model on here: its next look by the clock is ten minutes away.
pub async fn a_header_that_comes_late_needs_no_second_look(bench: &Bench) -> Result<()> {
    let at = ("late", "code");
    bench.namespace(at.0).await?;
    bench.card_node("rx", "8G", "32").await?;
    let mut late = tier("only", "small");
    late["model"]["source"] = "hf://acme/models/late.gguf".into();
    late["contextTokens"] = 8192.into();
    bench.model(at, &[late], json!({})).await?;
    // A first start waits for the header as long as it may, and goes on without.
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &["is being read"]).await?;
    bench
        .wait_for("Deployment", (Some(at.0), "code-t-only"), |object| {
            let replicas = object.data["spec"]["replicas"].as_i64();
            if replicas == Some(1) { Ok(()) } else { Err(format!("{replicas:?}")) }
        })
        .await?;
    bench.hub.put_late(Some(narrow_header()));
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;

    // A successor reads every header anew, and what was told stays true as long as a first start would wait.
    bench.hub.put_late(None);
    drop(bench.replace_operator(None));
    let operator = bench.spawn_operator("operator-a").await?;
    bench.replace_operator(Some(operator));
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &["is being read"]).await?;
    let before = bench.settled_version(at).await?;
    let looks = bench.metric(RECONCILES).await?;
    println!("a restart, five seconds without the header, and a rest: {looks} reconciles");
    ensure!(looks <= 4.0, "it was looked at {looks} times while there was nothing to see");
    ensure!(bench.settled_version(at).await? == before && bench.metric(RECONCILES).await? == looks);
    bench.hub.put_late(Some(wide_header()));
    bench.condition(at, "VramFits", "False", "DoesNotFit", &["contextTokens 8192 -> "]).await?;
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    ensure!(model.resource_version() != before);
    Ok(())
}
