//! A namespace as one comparable value: what two runs must agree on, whatever happened on the way.
//!
//! Taken out: what the API server numbers and dates, what belongs to the Deployment controller, and the namespace's name.

use std::collections::BTreeMap;

use anyhow::Result;
use futures::future::try_join_all;
use kube::{ResourceExt, api::DynamicObject, api::ListParams};
use serde_json::Value;

use crate::bench::Bench;

/// Kinds that the operator writes in a model's namespace.
pub const CHILDREN: [&str; 7] = [
    "Deployment",
    "Service",
    "ConfigMap",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ServiceAccount",
    "RoleBinding",
];

/// Everything of one namespace, and every GpuProfile, by `Kind/name`.
pub type World = BTreeMap<String, Value>;

/// The objects of these kinds, by `Kind/name`.
pub async fn list(bench: &Bench, namespace: &str, kinds: &[&str]) -> Result<BTreeMap<String, DynamicObject>> {
    let lists = try_join_all(kinds.iter().map(async |kind| {
        let namespace = (*kind != "GpuProfile").then_some(namespace);
        let listed = bench.api(kind, namespace).list(&ListParams::default()).await?;
        anyhow::Ok(
            listed.items.into_iter().map(move |object| (format!("{kind}/{}", object.name_any()), object)),
        )
    }))
    .await?;
    Ok(lists.into_iter().flatten().collect())
}

/// Looks at a namespace.
pub async fn look(bench: &Bench, namespace: &str) -> Result<World> {
    let mut kinds = CHILDREN.to_vec();
    kinds.extend(["AtlasModel", "GpuProfile"]);
    let objects = list(bench, namespace, &kinds).await?;
    let model = objects.get("AtlasModel/code").and_then(|model| model.uid()).unwrap_or_default();
    let plain = |object: &DynamicObject| -> Result<Value> {
        let text = serde_json::to_string(&canonical(object)?)?;
        let text = if model.is_empty() { text } else { text.replace(&model, "UID") };
        Ok(serde_json::from_str(&text.replace(namespace, "NAMESPACE"))?)
    };
    objects.iter().map(|(name, object)| Ok((name.clone(), plain(object)?))).collect()
}

fn canonical(object: &DynamicObject) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    let generation = object.metadata.generation;
    let metadata = &mut value["metadata"];
    for number in ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"] {
        remove(metadata, number);
    }
    // A hash of the whole object, its namespace too; and when it was last written, which faults may well put off.
    for history in ["atlas.gillsystems.com/applied", "atlas.gillsystems.com/generation"] {
        remove(&mut metadata["annotations"], history);
    }
    for assigned in ["clusterIP", "clusterIPs"] {
        remove(&mut value["spec"], assigned);
    }
    let ours = value["kind"] == "AtlasModel" || value["kind"] == "GpuProfile";
    if !ours {
        remove(&mut value, "status");
        return Ok(value);
    }
    let status = &mut value["status"];
    let current = |number: &Value| number.as_i64() == generation;
    if let Some(number) = status.get_mut("observedGeneration") {
        *number = current(number).into();
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        remove(condition, "lastTransitionTime");
        condition["observedGeneration"] = current(&condition["observedGeneration"]).into();
    }
    Ok(value)
}

fn remove(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.shift_remove(key);
    }
}

/// The first difference between two worlds, in words.
pub fn difference(expected: &World, found: &World) -> Option<String> {
    for (name, wanted) in expected {
        match found.get(name) {
            None => return Some(format!("{name} is missing")),
            Some(seen) if seen != wanted => return Some(format!("{name}{}", differing(wanted, seen))),
            Some(_) => {}
        }
    }
    found.keys().find(|name| !expected.contains_key(*name)).map(|name| format!("{name} is too much"))
}

/// The path of the first difference and both values there.
fn differing(wanted: &Value, found: &Value) -> String {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let keys: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
            for key in keys {
                let (wanted, found) =
                    (wanted.get(key).unwrap_or(&Value::Null), found.get(key).unwrap_or(&Value::Null));
                if wanted != found {
                    return format!(".{key}{}", differing(wanted, found));
                }
            }
            String::new()
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => wanted
            .iter()
            .zip(found)
            .position(|(wanted, found)| wanted != found)
            .map_or_else(String::new, |at| format!("[{at}]{}", differing(&wanted[at], &found[at]))),
        _ => format!(": {found} in place of {wanted}"),
    }
}
