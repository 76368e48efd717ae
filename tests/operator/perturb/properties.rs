//! Every property of an AtlasModel's specification, changed and reverted: the world is as it was.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::PostParams;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};

use super::{
    next_namespace, restart,
    script::{LIMIT, Stage},
};

/// How many are drawn where not all are played.
const SAMPLE: usize = 6;

/// Paths below `spec`, and what is written there; the tier of the first path's number is meant.
fn changes() -> Vec<Vec<(&'static str, Value)>> {
    let one = |path, value| vec![(path, value)];
    vec![
        one("/aliases", json!(["other-id"])),
        one("/replicas", json!(0)),
        one("/suspend", json!(true)),
        one("/tiers/1/name", json!("spare")),
        one("/tiers/0/gpuProfile", json!("small")),
        one("/tiers/0/model/source", json!("hf://acme/models/not-there.gguf")),
        one("/tiers/0/model/sha256", json!("0123456789abcdef".repeat(4))),
        vec![
            ("/tiers/0/model/source", json!("s3://bucket/not-there.gguf")),
            ("/tiers/0/model/credentialsSecret", json!("bucket-keys")),
            (
                "/tiers/0/model/s3",
                json!({"endpoint": "http://127.0.0.1:9", "region": "elsewhere", "pathStyle": true}),
            ),
        ],
        one("/tiers/0/contextTokens", json!(6000)),
        one("/tiers/0/maxBatch", json!(3)),
        one("/tiers/0/kvCacheType", json!("Q8_0")),
        one("/tiers/0/maxVram", json!("20Gi")),
        one("/tiers/0/cpuOffloadLayers", json!(3)),
        one("/tiers/1/replicas", json!(2)),
        one("/tiers/1/standby", json!("Warm")),
        one("/tiers/1/standby", json!("Cold")),
        one("/tiers/0/engine", json!({"image": "example/other:t"})),
        one("/tiers/0/engine", json!({"extraArgs": ["--threads", "3"]})),
        one("/tiers/1/engine", json!({"resources": {"requests": {"cpu": "2"}}})),
        vec![("/failover/mode", json!("Pinned")), ("/failover/pinnedTier", json!("fallback"))],
        one("/failover/unhealthyAfter", json!("3s")),
        one("/failover/failbackAfter", json!("90s")),
        one("/rollout/strategy", json!("Recreate")),
        one("/rollout/drainTimeout", json!("17s")),
        one("/rollout/readyTimeout", json!("90s")),
        one("/requests/timeout", json!("30s")),
        one("/requests/queue", json!(3)),
        one("/requests/maxBodyBytes", json!("3Mi")),
        one("/requests/clientPriority", json!(true)),
        one("/requests/corsOrigins", json!(["https://pages.example"])),
        one("/access", json!({"apiKeysSecret": "keys"})),
        one("/resume/acrossModels", json!(true)),
        one("/expose/type", json!("NodePort")),
    ]
}

/// Plays all of them, or a sample drawn from a seed.
pub async fn what_is_changed_and_reverted_leaves_no_trace(
    stage: &Stage<'_>,
    seed: Option<u64>,
) -> Result<()> {
    let mut changes = changes();
    every_property_is_covered(&changes)?;
    if let Some(seed) = seed {
        changes.shuffle(&mut StdRng::seed_from_u64(seed));
        changes.truncate(SAMPLE);
    }
    let namespace = next_namespace();
    stage.proxy.begin(&namespace, None);
    restart(stage.bench).await?;
    stage.create(&namespace).await?;
    let original = stage.bench.api("AtlasModel", Some(&namespace)).get("code").await?.data["spec"].clone();
    for change in &changes {
        let mut spec = original.clone();
        for (path, value) in change {
            set(&mut spec, path, value.clone());
        }
        ensure!(spec != original, "{change:?} changes nothing");
        write(stage, &namespace, &spec).await.with_context(|| format!("{change:?}"))?;
        seen(stage, &namespace).await.with_context(|| format!("{change:?}"))?;
        write(stage, &namespace, &original).await?;
        stage.rest(&namespace, 0).await.with_context(|| format!("{change:?} reverted"))?;
    }
    println!("properties changed and reverted: {}", changes.len());
    stage.stay(&namespace, 0).await?;
    stage.delete(&namespace).await
}

fn set(spec: &mut Value, path: &str, value: Value) {
    let (parent, key) = path.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = spec.pointer_mut(parent) {
        parent[key] = value;
    }
}

/// Replaces the specification, whatever the operator writes beside it meanwhile.
async fn write(stage: &Stage<'_>, namespace: &str, spec: &Value) -> Result<()> {
    let api = stage.bench.api("AtlasModel", Some(namespace));
    loop {
        let mut object = api.get("code").await?;
        object.data["spec"] = spec.clone();
        match api.replace("code", &PostParams::default(), &object).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the operator has acted on the newest specification.
async fn seen(stage: &Stage<'_>, namespace: &str) -> Result<()> {
    let api = stage.bench.api("AtlasModel", Some(namespace));
    wait_until("the change to be seen", LIMIT, async || {
        let object = api.get("code").await.map_err(|e| e.to_string())?;
        let seen = object.data["status"]["observedGeneration"].as_i64();
        let quiet = stage.proxy.quiet_for();
        if seen == object.metadata.generation && quiet >= Duration::from_millis(300) {
            Ok(())
        } else {
            Err(format!("generation {seen:?} of {:?}, a write {quiet:?} ago", object.metadata.generation))
        }
    })
    .await?;
    Ok(())
}

/// A field that is added to the API has to be added here.
fn every_property_is_covered(changes: &[Vec<(&str, Value)>]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crds/manifests/atlas.gillsystems.com_atlasmodels.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let crd: Value = serde_yaml_ng::from_str(&text)?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut wanted = BTreeSet::new();
    leaves(schema, "", &mut wanted);
    ensure!(wanted.len() > 20, "the schema was not found: {wanted:?}");
    let mut covered = BTreeSet::new();
    for (path, value) in changes.iter().flatten() {
        let path: String = path
            .split('/')
            .skip(1)
            .filter(|part| part.parse::<u8>().is_err())
            .fold(String::new(), |path, part| path + "/" + part);
        match value {
            Value::Object(fields) => covered.extend(fields.keys().map(|key| format!("{path}/{key}"))),
            _ => {
                covered.insert(path);
            }
        }
    }
    let missing: Vec<_> = wanted.difference(&covered).collect();
    ensure!(missing.is_empty(), "properties that no case changes: {missing:?}");
    Ok(())
}

fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let properties = schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object());
    match properties {
        // What a container may ask for is Kubernetes' own.
        Some(properties) if !path.ends_with("/resources") => {
            for (name, schema) in properties {
                leaves(schema, &format!("{path}/{name}"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}
