//! What is left: nothing of an older specification while a model lives, and nothing that garbage collection would keep after.
//!
//! Every namespaced kind that the API server serves is looked through, not only those that the operator is known to write.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, LONG, tier},
    perturb::CHILDREN,
};

/// Made by others on account of what is ours, or told for a while and then forgotten.
const OF_OTHERS: [&str; 3] = ["events", "endpointslices", "endpoints"];

/// A model that needs an object of every kind, and cannot serve: nothing here runs pods.
fn everything() -> (Vec<Value>, Value) {
    let mut warm = tier("warm", "kept-cached");
    warm["standby"] = "Warm".into();
    let tiers = vec![tier("primary", "big"), tier("claimed", "kept-claims"), warm];
    (
        tiers,
        json!({"aliases": ["other-id"], "access": {"apiKeysSecret": "keys"}, "expose": {"type": "NodePort"}}),
    )
}

/// Every object of a namespace that the operator manages or that an AtlasModel owns, by `Kind/name`.
async fn ours(bench: &Bench, kinds: &str, namespace: &str) -> Result<BTreeMap<String, Value>> {
    let text = bench.kubectl(&["get", kinds, "-n", namespace, "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&text)?;
    let found = list["items"].as_array().context("no list")?.iter().filter(|object| {
        let metadata = &object["metadata"];
        let owned = metadata["ownerReferences"].as_array().into_iter().flatten();
        object["kind"] != "AtlasModel"
            && (metadata["labels"]["app.kubernetes.io/managed-by"] == "atlas-operator"
                || owned.into_iter().any(|owner| owner["kind"] == "AtlasModel"))
    });
    let name = |object: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
    };
    Ok(found.map(|object| (name(object), object.clone())).collect())
}

async fn namespaced_kinds(bench: &Bench) -> Result<String> {
    let text = bench.kubectl(&["api-resources", "--verbs=list,delete", "--namespaced", "-o", "name"]).await?;
    let kinds: Vec<&str> = text
        .lines()
        .filter(|kind| !OF_OTHERS.contains(&kind.split('.').next().unwrap_or_default()))
        .collect();
    ensure!(kinds.len() > 15, "{kinds:?}");
    Ok(kinds.join(","))
}

pub async fn no_child_outlives_what_it_was_made_for(bench: &Bench) -> Result<()> {
    let kinds = namespaced_kinds(bench).await?;
    let spec = json!({"product": "P", "gfxTarget": "gfx1100", "vram": "48Gi"});
    for (name, more) in [
        (
            "kept-claims",
            json!({"allocation": "ResourceClaim", "match": {"vramClass": "47G", "computeUnits": 96}}),
        ),
        (
            "kept-cached",
            json!({"match": {"vramClass": "46G", "computeUnits": 96}, "modelCache": {"hostPath": {"path": "/var/lib/models"}}}),
        ),
    ] {
        let mut spec = spec.clone();
        spec.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
        bench.create("GpuProfile", None, json!({"metadata": {"name": name}, "spec": spec})).await?;
    }
    let (old, plain) = (("kept-old", "code"), [tier("only", "small")]);
    let (tiers, more) = everything();
    bench.namespace(old.0).await?;
    let uid = bench.model(old, &tiers, more).await?.uid().context("uid")?;
    bench.condition(old, "Accepted", "True", "Valid", &[]).await?;
    bench.wait_for("Deployment", (Some(old.0), "atlas-gateway"), |_| Ok(())).await?;
    let whole = ours(bench, &kinds, old.0).await?;
    for kind in CHILDREN.into_iter().chain(["ResourceClaimTemplate"]) {
        ensure!(
            whole.keys().any(|name| name.starts_with(&format!("{kind}/"))),
            "no {kind}: {:?}",
            whole.keys()
        );
    }

    // A model that was never anything else shows what may be there.
    let new = ("kept-new", "code");
    bench.namespace(new.0).await?;
    bench.model(new, &plain, json!({})).await?;
    bench.condition(new, "Accepted", "True", "Valid", &[]).await?;
    bench.wait_for("Deployment", (Some(new.0), "atlas-gateway"), |_| Ok(())).await?;
    let without = json!({"tiers": plain, "aliases": null, "access": null, "expose": null});
    bench.patch("AtlasModel", old, json!({"spec": without})).await?;
    wait_until("everything of the older specification to go", LONG, async || {
        let names = async |namespace| -> Result<Vec<String>> {
            Ok(ours(bench, &kinds, namespace).await?.into_keys().collect())
        };
        let expected = names(new.0).await.map_err(|e| e.to_string())?;
        let found = names(old.0).await.map_err(|e| e.to_string())?;
        if found == expected { Ok(()) } else { Err(format!("{found:?} in place of {expected:?}")) }
    })
    .await?;

    all_go_with_their_model(bench, &kinds, old.0, &uid).await?;
    bench.remove_model(old).await?;
    bench.remove_model(new).await?;
    for name in ["kept-claims", "kept-cached"] {
        bench.api("GpuProfile", None).delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// What garbage collection needs: every owner is the model, and nothing waits for anybody.
async fn all_go_with_their_model(bench: &Bench, kinds: &str, namespace: &str, uid: &str) -> Result<()> {
    for (name, object) in ours(bench, kinds, namespace).await? {
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let right = owners.iter().all(|owner| owner["uid"] == uid && owner["name"] == "code");
        ensure!(!owners.is_empty() && right, "{name} stays: {owners:?}");
        ensure!(object["metadata"]["finalizers"].is_null(), "{name} waits: {}", object["metadata"]);
    }
    Ok(())
}
