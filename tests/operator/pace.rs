//! How soon objects follow a model, and that nothing goes on once they do.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::{TryStreamExt, pin_mut};
use kube::{
    ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::json;

use crate::bench::{Bench, tier};

const MODELS: usize = 20;

pub async fn objects_follow_soon_and_then_all_is_quiet(bench: &Bench) -> Result<()> {
    let namespace = "pace";
    bench.namespace(namespace).await?;
    let deployments = bench.api("Deployment", Some(namespace));
    let version = deployments.list(&ListParams::default()).await?.metadata.resource_version;
    let events = deployments.watch(&WatchParams::default(), &version.context("no version")?).await?;
    pin_mut!(events);
    let mut millis = Vec::with_capacity(MODELS);
    for index in 0..MODELS {
        let name = format!("m{index}");
        let asked = Instant::now();
        bench
            .model((namespace, &name), &[tier("primary", "big"), tier("fallback", "small")], json!({}))
            .await?;
        let mut missing = vec![format!("{name}-t-primary"), format!("{name}-t-fallback")];
        while !missing.is_empty() {
            let event = events.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Added(object) = event {
                missing.retain(|name| *name != object.name_any());
            }
        }
        millis.push(asked.elapsed().as_micros() as f64 / 1000.0);
    }
    millis.sort_by(f64::total_cmp);
    println!(
        "apply of an AtlasModel to its Deployments: p50 {:.1} ms, slowest of {MODELS} {:.1} ms",
        millis[MODELS / 2],
        millis[MODELS - 1]
    );
    for index in 0..MODELS {
        bench.condition((namespace, &format!("m{index}")), "Accepted", "True", "Valid", &[]).await?;
    }

    // What is repaired costs a few reconciles, where a loop would count by the hundred.
    let reconciles = "atlas_reconciles_total{controller=\"atlasmodel\"}";
    let repaired = async |data: &str| {
        let at = (namespace, "m0-llm-config");
        bench.patch("ConfigMap", at, json!({"data": {"llm_config.yaml": data}})).await?;
        bench
            .wait_for("ConfigMap", (Some(at.0), at.1), |o| {
                let text = o.data["data"]["llm_config.yaml"].as_str().unwrap_or_default();
                if text == data { Err(text.to_owned()) } else { Ok(()) }
            })
            .await
    };
    let before = bench.metric(reconciles).await?;
    for index in 0..MODELS {
        repaired(&index.to_string()).await?;
    }
    let cost = bench.metric(reconciles).await? - before;
    ensure!((20.0..160.0).contains(&cost), "{MODELS} repairs cost {cost} reconciles");
    for index in 0..MODELS {
        bench.remove_model((namespace, &format!("m{index}"))).await?;
    }
    Ok(())
}
