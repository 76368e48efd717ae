//! Many faults at once, while the model is edited, its objects are deleted, and the operator is killed: when the storm
//! is over, the cluster comes to the rest that it comes to without one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::api::{DeleteParams, Patch, PatchParams};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{
    canonical::{CHILDREN, list},
    next_namespace, restart,
    script::{Stage, changed_spec, first_tiers},
};

/// Things that happen in one storm.
const HAPPENINGS: usize = 12;

/// Plays some storms, each from a seed of its own.
pub async fn storms_come_to_the_same_rest(stage: &Stage<'_>, count: u64, seed: u64) -> Result<()> {
    for seed in (0..count).map(|number| seed.wrapping_add(number)) {
        let began = Instant::now();
        play(stage, seed).await.with_context(|| format!("the storm of seed {seed}"))?;
        println!("a storm of seed {seed}: {} ms", began.elapsed().as_millis());
    }
    Ok(())
}

async fn play(stage: &Stage<'_>, seed: u64) -> Result<()> {
    let namespace = next_namespace();
    let mut random = StdRng::seed_from_u64(seed);
    stage.proxy.begin_storm(&namespace, seed);
    restart(stage.bench).await?;
    stage.make(&namespace).await?;
    let mut happened = Vec::new();
    for _ in 0..HAPPENINGS {
        happened.push(happen(stage, &namespace, &mut random).await?);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..700))).await;
    }
    stage.proxy.calm();
    edit(stage, ("AtlasModel", &namespace, "code"), json!({"suspend": null})).await?;
    edit(stage, ("GpuProfile", "", "big"), json!({"reservedVram": null})).await?;
    edit(stage, ("Node", "", "rx"), json!({"unschedulable": null})).await?;
    let told = || happened.join("; ");
    stage.change(&namespace).await.with_context(told)?;
    stage.stay(&namespace, 1).await.with_context(told)?;
    stage.shorten(&namespace).await.with_context(told)?;
    stage.stay(&namespace, 2).await.with_context(told)?;
    stage.delete(&namespace).await.with_context(told)
}

/// One thing that people, kubelets or nodes do, in words.
async fn happen(stage: &Stage<'_>, namespace: &str, random: &mut StdRng) -> Result<String> {
    let model = ("AtlasModel", namespace, "code");
    match random.random_range(0..10) {
        0 => {
            let spec = json!({"tiers": first_tiers(), "aliases": null, "requests": null});
            edit(stage, model, spec).await
        }
        1 => edit(stage, model, changed_spec()).await,
        // The second tier goes; another edit brings it back.
        2 => edit(stage, model, json!({"tiers": &first_tiers()[..1]})).await,
        3 => edit(stage, model, json!({"suspend": random.random::<bool>()})).await,
        4 => {
            let reserved = if random.random() { json!("3Gi") } else { Value::Null };
            edit(stage, ("GpuProfile", "", "big"), json!({"reservedVram": reserved})).await
        }
        5 => edit(stage, ("Node", "", "rx"), json!({"unschedulable": random.random::<bool>()})).await,
        6 => {
            let edited = json!({"activeTier": "edited", "conditions": []});
            stage.bench.patch_status("AtlasModel", (Some(namespace), "code"), edited).await?;
            stage.bench.patch_status("GpuProfile", (None, "small"), json!({"inUse": 9})).await?;
            Ok("statuses edited".to_owned())
        }
        7 => {
            stage.bench.remove_pod((namespace, "code-t-fallback-0")).await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            stage.serve(namespace, "fallback", "rx").await?;
            Ok("the fallback's pod lost and made anew".to_owned())
        }
        8 => delete_a_child(stage, namespace, random).await,
        _ => {
            restart(stage.bench).await?;
            Ok("the operator killed".to_owned())
        }
    }
}

/// Edits an object's specification; an empty namespace is that of the cluster's own objects.
async fn edit(stage: &Stage<'_>, (kind, namespace, name): (&str, &str, &str), spec: Value) -> Result<String> {
    let told = format!("{kind} {name} {spec}");
    let api = stage.bench.api(kind, (!namespace.is_empty()).then_some(namespace));
    let patch = Patch::Merge(json!({"spec": spec}));
    api.patch(name, &PatchParams::default(), &patch).await.with_context(|| told.clone())?;
    Ok(told)
}

async fn delete_a_child(stage: &Stage<'_>, namespace: &str, random: &mut StdRng) -> Result<String> {
    let children = list(stage.bench, namespace, &CHILDREN).await?;
    let names: Vec<&String> = children.keys().collect();
    let Some(name) = names.choose(random) else { return Ok("nothing to delete yet".to_owned()) };
    let (kind, plain) = name.split_once('/').context("no kind")?;
    let api = stage.bench.api(kind, Some(namespace));
    // The operator may have been faster.
    let _ = api.delete(plain, &DeleteParams::background()).await;
    Ok(format!("{name} deleted"))
}
