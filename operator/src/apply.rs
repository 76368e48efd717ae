//! Server-side apply of the desired objects, in waves: what pods need, what makes pods, everything else.
//!
//! An object that is already as desired costs no request, and one of that name that is not ours is never forced.

use std::sync::Arc;

use atlas_crds::names;
use atlas_operator_core::llm_config::{FILE_NAME, changed_fields};
use futures::{StreamExt, stream::FuturesUnordered};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::Value;

use crate::{
    desired::{APPLIED_ANNOTATION, Desired, GENERATION_ANNOTATION},
    error::{ApplyError, RefusedWrite},
    kinds::Kind,
    metrics::Metrics,
    ownership::{Owned, Ownership},
    stores::{Stores, annotation},
    validate::ValidatedModel,
};

/// What became of the desired objects; only [`apply_objects`] makes one.
#[derive(Debug, Default)]
pub struct Applied {
    /// Objects of a wanted name that belong to somebody else, as `Kind/name`.
    pub taken: Vec<String>,
    /// Objects of a deleted model of the same name, as `Kind/name`: garbage collection is about to take them.
    pub leaving: Vec<String>,
    /// Objects that the API server does not take.
    pub refused: Vec<RefusedWrite>,
    /// Number of writes.
    pub writes: usize,
    /// Generated files that were changed by hand and put back: name and fields of each.
    pub hand_edits: Vec<HandEdit>,
}

/// A generated file that a person had changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandEdit {
    /// Name of the ConfigMap.
    pub name: String,
    /// Paths of the fields.
    pub fields: Vec<String>,
}

/// Clients and counters that applying needs.
pub struct Applier {
    /// The API server.
    pub client: Client,
    /// Reflected copies.
    pub stores: Arc<Stores>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

enum Outcome {
    Same,
    Written(Option<HandEdit>),
    Taken(String),
    Leaving(String),
}

impl Outcome {
    /// What becomes of an object that may not be changed.
    fn of_foreign(owned: Owned, kind: Kind, name: &str) -> Option<Self> {
        let what = || format!("{}/{name}", kind.as_str());
        match owned {
            Owned::Ours => None,
            Owned::Predecessors => Some(Self::Leaving(what())),
            Owned::Theirs => Some(Self::Taken(what())),
        }
    }
}

impl Applier {
    /// Applies the objects wave by wave ([`Kind::wave`]), those of a wave concurrently.
    ///
    /// Pods need longest until they serve, so their Deployments never queue behind the other objects in the API
    /// server.
    ///
    /// # Errors
    ///
    /// The first that failed; the others are applied all the same. What is refused for good is no failure: it is told.
    pub async fn apply_objects(
        &self,
        objects: &[Desired],
        ownership: Ownership<'_>,
    ) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        let mut failed = None;
        for wave in Kind::WAVES {
            let mut running: FuturesUnordered<_> = objects
                .iter()
                .filter(|object| object.kind.wave() == wave)
                .map(|object| self.apply_one(object, ownership))
                .collect();
            while let Some(outcome) = running.next().await {
                match outcome {
                    Ok(Outcome::Same) => {}
                    Ok(Outcome::Written(edit)) => {
                        applied.writes += 1;
                        applied.hand_edits.extend(edit);
                    }
                    Ok(Outcome::Taken(what)) => applied.taken.push(what),
                    Ok(Outcome::Leaving(what)) => applied.leaving.push(what),
                    Err(error) => match error.refusal() {
                        Some(refusal) => applied.refused.push(refusal),
                        None => failed = failed.or(Some(error)),
                    },
                }
            }
        }
        applied.taken.sort();
        applied.leaving.sort();
        applied.refused.sort_by(|a, b| a.object.cmp(&b.object));
        failed.map_or(Ok(applied), Err)
    }

    async fn apply_one(&self, desired: &Desired, ownership: Ownership<'_>) -> Result<Outcome, ApplyError> {
        let Desired { kind, namespace, name, body } = desired;
        let api = self.api(*kind, namespace);
        let known = self.stores.read_child(*kind, namespace, name);
        let edit = known.as_ref().and_then(|live| find_hand_edit(desired, live));
        let params = match known {
            Some(live) => {
                if let Some(foreign) = Outcome::of_foreign(ownership.judge(&live), *kind, name) {
                    return Ok(foreign);
                }
                if is_applied(body, &live) {
                    return Ok(Outcome::Same);
                }
                PatchParams::apply(names::FIELD_MANAGER).force()
            }
            // The watches see labelled objects only, so somebody else's is found by asking.
            None => match api.get_metadata_opt(name).await {
                Ok(None) => PatchParams::apply(names::FIELD_MANAGER),
                Ok(Some(live)) => {
                    let live = DynamicObject { types: None, metadata: live.metadata, data: Value::Null };
                    if let Some(foreign) = Outcome::of_foreign(ownership.judge(&live), *kind, name) {
                        return Ok(foreign);
                    }
                    PatchParams::apply(names::FIELD_MANAGER).force()
                }
                Err(source) => {
                    return Err(ApplyError::Read { kind: kind.as_str(), name: name.clone(), source });
                }
            },
        };
        self.metrics.writes.with_label_values(&[kind.as_str()]).inc();
        match api.patch(name, &params, &Patch::Apply(body)).await {
            Ok(_) => Ok(Outcome::Written(edit)),
            // A conflict too: whoever made the object since it was asked for, the next pass sees whose it is.
            Err(source) => Err(ApplyError::Write { kind: kind.as_str(), name: name.clone(), source }),
        }
    }

    /// Deletes what a model owned for tiers that it no longer has; answers with what the API server keeps.
    ///
    /// # Errors
    ///
    /// The first that failed; the others are deleted all the same. What is refused for good is no failure: it is told.
    pub async fn delete_leftovers(
        &self,
        namespace: &str,
        model: &str,
        uid: &str,
        desired: &[Desired],
    ) -> Result<Vec<RefusedWrite>, ApplyError> {
        let ownership = Ownership::ControlledBy { model, uid };
        let (mut refused, mut failed) = (Vec::new(), None);
        for kind in [Kind::Deployment, Kind::Service, Kind::ConfigMap, Kind::ResourceClaimTemplate] {
            for live in self.stores.children_of(kind, namespace, model) {
                let name = &live.name_any();
                // A tier that keeps, or may return to, an older revision needs that revision's claim template.
                let wanted = desired.iter().any(|object| object.kind == kind && object.name == *name)
                    || (kind == Kind::ResourceClaimTemplate
                        && desired.iter().any(|object| object.body.to_string().contains(name.as_str())));
                if wanted
                    || live.meta().deletion_timestamp.is_some()
                    || ownership.judge(&*live) != Owned::Ours
                {
                    continue;
                }
                match self.api(kind, namespace).delete(name, &DeleteParams::background()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(source) => {
                        let error = ApplyError::Delete { kind: kind.as_str(), name: name.clone(), source };
                        match error.refusal() {
                            Some(refusal) => refused.push(refusal),
                            None => failed = failed.or(Some(error)),
                        }
                    }
                }
            }
        }
        failed.map_or(Ok(refused), Err)
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.api_resource())
    }
}

/// The fields in which a generated file was changed, where it was applied from the very same rendering before.
fn find_hand_edit(desired: &Desired, live: &DynamicObject) -> Option<HandEdit> {
    if desired.kind != Kind::ConfigMap || !same_rendering(&desired.body, live) {
        return None;
    }
    let wanted = desired.body["data"][FILE_NAME].as_str()?;
    let found = live.data.pointer("/data").and_then(|data| data[FILE_NAME].as_str()).unwrap_or_default();
    (wanted != found).then(|| HandEdit { name: desired.name.clone(), fields: changed_fields(wanted, found) })
}

/// Whether the live object was applied from this rendering, whatever became of it since.
fn same_rendering(desired: &Value, live: &DynamicObject) -> bool {
    desired["metadata"]["annotations"][APPLIED_ANNOTATION].as_str() == annotation(live, APPLIED_ANNOTATION)
}

/// Whether an object of the model was written from a newer generation than the one that is seen now.
///
/// After a restart lists may be older than what the predecessor saw: acting on them would undo its work, and roll
/// engines that serve.
#[must_use]
pub fn is_behind(desired: &[Desired], model: &ValidatedModel, stores: &Stores) -> bool {
    desired.iter().filter_map(|object| stores.child(object.kind, &object.namespace, &object.name)).any(
        |live| {
            let written = annotation(&*live, GENERATION_ANNOTATION).and_then(|text| text.parse::<i64>().ok());
            Ownership::ControlledBy { model: &model.name, uid: &model.uid }.holds(&*live)
                && written.is_some_and(|written| written > model.generation)
        },
    )
}

/// Whether the live object holds everything that is desired, and was applied from the same rendering.
fn is_applied(desired: &Value, live: &DynamicObject) -> bool {
    if !same_rendering(desired, live) {
        return false;
    }
    let Ok(mut metadata) = serde_json::to_value(&live.metadata) else { return false };
    if let Some(wanted) = desired["metadata"]["annotations"].get(GENERATION_ANNOTATION) {
        metadata["annotations"][GENERATION_ANNOTATION] = wanted.clone();
    }
    // A version is asked for where something is written, and is no reason to write.
    if let Some(expected) = desired["metadata"].get("resourceVersion") {
        metadata["resourceVersion"] = expected.clone();
    }
    desired.as_object().is_some_and(|fields| {
        fields.iter().all(|(key, value)| match key.as_str() {
            "apiVersion" | "kind" => true,
            "metadata" => holds(value, &metadata),
            _ => live.data.get(key).is_some_and(|live| holds(value, live)),
        })
    })
}

/// Fields that are replaced as a whole and to which the API server adds nothing.
const SELECTORS: [&str; 3] = ["selector", "podSelector", "namespaceSelector"];

/// Whether `live` holds everything of `desired`: the API server adds defaults, it takes nothing away.
fn holds(desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => {
            desired.iter().all(|(key, value)| match live.get(key) {
                // One label more, and a selector selects nothing.
                Some(live) if SELECTORS.contains(&key.as_str()) => value == live,
                Some(live) => holds(value, live),
                // The server drops empty maps and lists, and fields that hold their zero value.
                None => is_empty(value),
            })
        }
        (Value::Array(desired), Value::Array(live)) => {
            desired.len() == live.len()
                && desired.iter().zip(live).all(|(desired, live)| holds(desired, live))
        }
        (desired, live) => desired == live,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(flag) => !flag,
        _ => value.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_label_more_in_a_selector_is_drift() {
        let desired = json!({"spec": {"selector": {"app": "a"}, "labels": {"app": "a"}}});
        let live = |selector: Value, labels: Value| json!({"spec": {"selector": selector, "labels": labels}});
        assert!(holds(&desired, &live(json!({"app": "a"}), json!({"app": "a", "more": "b"}))));
        assert!(!holds(&desired, &live(json!({"app": "a", "more": "b"}), json!({"app": "a"}))));
    }

    #[test]
    fn server_defaults_are_no_drift_and_changes_are() {
        let desired = json!({"a": 1, "list": [{"x": "y"}], "off": false, "none": {}});
        assert!(holds(&desired, &json!({"a": 1, "list": [{"x": "y", "default": 1}], "more": true})));
        for drift in [
            json!({"a": 2, "list": [{"x": "y"}]}),
            json!({"a": 1, "list": []}),
            json!({"a": 1, "list": [{"x": "y"}, {}]}),
            json!({"a": 1, "list": [{"x": "y"}], "off": true}),
            json!({"list": [{"x": "y"}]}),
        ] {
            assert!(!holds(&desired, &drift), "{drift}");
        }
    }
}
