//! The GpuProfile controller: which nodes carry a card, how many are in use, and whether that is unambiguous.
//!
//! It writes nothing but the status, and creates missing default profiles once, at start.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use atlas_crds::{
    GpuProfile, names,
    profile::{Allocation, Backend, GpuProfileStatus},
};
use atlas_operator_core::{
    engine_contract::EngineExit,
    inventory::{CardReports, FaultReport, NodeView, WrongCard, forgotten_at, match_node},
    vram::Calibrations,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::PostParams,
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde::Deserialize;

use crate::{
    context::Context,
    error::{backoff, tell},
    events::{build_profile_events, build_status_event},
    measure::measurements,
    node_marks::mark_nodes,
    observe::{TierPods, last_end, view_pod},
    place::names_profile,
    profile_status::{Seen, compute_profile_status},
    status_write::{Kept, Need, write_status},
};

const CONTROLLER: &str = "gpuprofile";

/// Why a profile's status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The API server refused the status.
    #[error("the status of GpuProfile {name} could not be written")]
    Status {
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// A node could not be marked.
    #[error("a node with a card of GpuProfile {name} could not be marked: check the operator's permissions")]
    Node {
        /// The profile's name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

/// Why the default profiles could not be created.
#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    /// The file cannot be read.
    #[error("--default-profiles {path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("--default-profiles {path} holds no GpuProfiles: write YAML documents or one list of them")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// The API server refused one.
    #[error("default GpuProfile {name} could not be created")]
    Create {
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

/// Reconciles one profile.
///
/// # Errors
///
/// The status could not be written.
#[tracing::instrument(skip_all, fields(profile = object.name_any()))]
pub async fn reconcile(object: Arc<GpuProfile>, context: Arc<Context>) -> Result<Action, ProfileError> {
    let timer = context.metrics.seconds.with_label_values(&[CONTROLLER]).start_timer();
    context.metrics.reconciles.with_label_values(&[CONTROLLER]).inc();
    let profiles = context.stores.profiles.state();
    let profiles: Vec<&GpuProfile> = profiles.iter().map(AsRef::as_ref).collect();
    let nodes = context.stores.nodes();
    let nodes: Vec<&NodeView> = nodes.values().map(AsRef::as_ref).collect();
    let name = object.name_any();
    let mut in_use = 0;
    let mut held = BTreeMap::new();
    let mut reports = CardReports::default();
    for node in &nodes {
        let matched = match_node(&object, node);
        if matched.is_some_and(|matched| !matched.mixed) {
            reports.unmixed.insert(node.name.clone());
        }
        // The cards of claims are found without labels.
        if matched.is_some() || object.spec.allocation == Allocation::ResourceClaim {
            reports.carrying.insert(node.name.clone());
        }
    }
    for model in context.stores.models.state() {
        if !names_profile(&model, &object) {
            continue;
        }
        let pods = context.stores.engine_pods(&model.namespace().unwrap_or_default(), &model.name_any());
        for tier in model.spec.tiers.iter().filter(|tier| tier.gpu_profile == name) {
            let holding = pods.iter().filter(|pod| {
                pod.labels().get(names::LABEL_TIER) == Some(&tier.name) && TierPods::holds_card(pod)
            });
            for pod in holding {
                report_card(pod, &object, &mut reports);
                in_use += 1;
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                *held.entry(node).or_insert(0) += 1;
            }
        }
    }
    // Whatever the API server stores has a uid.
    let uid = object.uid().unwrap_or_default();
    let kept = {
        let mut all = context.kept_profiles();
        all.retain(|uid, _| profiles.iter().any(|profile| profile.metadata.uid.as_ref() == Some(uid)));
        all.get(&uid).cloned()
    };
    // What was found out before lies in the status: as it was written, whatever somebody else made of it.
    let before = match &kept {
        Some(kept) => Arc::new(GpuProfile { status: Some(kept.status.clone()), ..(*object).clone() }),
        None => Arc::clone(&object),
    };
    let measurements = measurements(
        &object,
        &context.gateways.measured(),
        |namespace, name| context.stores.models.get(&ObjectRef::new(name).within(namespace)),
        context.headers.as_deref(),
    );
    context.metrics.note_runtimes(&Calibrations::of(profiles.iter().copied()));
    let seen = Seen {
        profiles: &profiles,
        nodes: &nodes,
        others: &context.stores.others(),
        in_use,
        held: &held,
        reports: &reports,
        measurements: &measurements,
        now: Timestamp::now(),
    };
    let status = compute_profile_status(&before, &seen);
    timer.observe_duration();
    let need = Kept::need(kept.as_ref(), &status, &*object, object.status.as_ref());
    put_status((&object, &uid), &before, &status, need, &context)
        .await
        .map_err(|source| ProfileError::Status { name: name.clone(), source })?;
    mark_nodes(&name, &status, &context)
        .await
        .map_err(|source| ProfileError::Node { name: name.clone(), source })?;
    // An exclusion ends by itself, and is forgotten later by itself; so is a fault.
    let ends = status.excluded.iter().flat_map(|node| {
        let lasted = node.until.0.duration_since(node.since.0);
        [Some(node.until.0), node.until.0.checked_add(lasted).ok()].into_iter().flatten()
    });
    let ends = ends.chain(status.card_faults.iter().flat_map(|fault| [fault.until.0, forgotten_at(fault)]));
    let now = Timestamp::now();
    Ok(match ends.filter(|at| *at > now).min() {
        Some(at) => Action::requeue(at.duration_since(now).unsigned_abs() + Duration::from_secs(1)),
        None => Action::await_change(),
    })
}

/// Writes the status where that is needed, and tells what is new.
async fn put_status(
    (object, uid): (&GpuProfile, &str),
    before: &GpuProfile,
    status: &GpuProfileStatus,
    need: Need,
    context: &Context,
) -> Result<(), kube::Error> {
    context.stores.told.note(Some(uid), status);
    let edited = match need {
        Need::Nothing => return Ok(()),
        Need::Keep => {
            let kept = Kept::of(status.clone(), object, object.status.as_ref());
            context.kept_profiles().insert(uid.to_owned(), kept);
            return Ok(());
        }
        Need::Write { edited } => edited,
    };
    context.kept_profiles().get_mut(uid).into_iter().for_each(Kept::forget_version);
    let api: Api<GpuProfile> = Api::all(context.client.clone());
    context.metrics.writes.with_label_values(&["GpuProfile"]).inc();
    let written = match write_status(&api, object, status, |profile| profile.status.as_ref()).await {
        Ok(written) => written,
        Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
        Err(error) => return Err(error),
    };
    context.stores.told.note(Some(uid), &written.status);
    let kept = Kept::of(status.clone(), &written, written.status.as_ref());
    context.kept_profiles().insert(uid.to_owned(), kept);
    // A new profile had no conditions, so each is news.
    let before = before.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let mut events = build_profile_events(before, &status.conditions);
    events.extend(edited.then(build_status_event));
    context.events.publish_all(object.object_ref(&()), events);
    Ok(())
}

impl Context {
    /// The statuses of profiles, by uid.
    fn kept_profiles(&self) -> MutexGuard<'_, HashMap<String, Kept<GpuProfileStatus>>> {
        self.profiles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes what an engine found about its card, and how it failed.
fn report_card(pod: &Pod, profile: &GpuProfile, reports: &mut CardReports) {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    // A processor that hangs is no card that fails.
    if let (Some(node), Backend::Hip, Some(end)) = (node, profile.spec.backend, last_end(pod)) {
        let error = end.exit.card_error();
        if error.is_some() || end.exit == EngineExit::NoRuntime {
            let at = end.at.unwrap_or_default();
            reports.faults.push(FaultReport { node, error, at, message: end.message });
        }
    }
    let view = view_pod(pod);
    let Some(node) = view.node else { return };
    if view.ready {
        reports.confirmed.insert(node);
    } else if let Some(failure) = view.failure.filter(|failure| failure.exit == EngineExit::WrongCard) {
        let at = failure.at.unwrap_or_default();
        reports.wrong.push(WrongCard { node, at, message: failure.message });
    }
}

/// When a failed reconcile is tried again.
pub fn on_error(object: Arc<GpuProfile>, error: &ProfileError, context: Arc<Context>) -> Action {
    let what = match error {
        ProfileError::Status { .. } => "status",
        ProfileError::Node { .. } => "node",
    };
    context.metrics.errors.with_label_values(&[CONTROLLER, what]).inc();
    tracing::warn!(profile = object.name_any(), error = %tell(error), "reconcile failed");
    Action::requeue(std::time::Duration::from_secs(5))
}

/// Creates the missing default profiles, again and again until it succeeds: what exists is reconciled meanwhile, and
/// a mended ConfigMap reaches the file without a restart.
pub async fn create_defaults_until_done(client: &Client, path: &Path) {
    let mut tries = 0;
    while let Err(error) = create_defaults(client, path).await {
        tries += 1;
        if tries == 1 {
            tracing::error!(
                error = %tell(&error),
                "the default profiles could not be created: trying again until they are"
            );
        }
        tokio::time::sleep(backoff(tries)).await;
    }
    if tries > 0 {
        tracing::info!(tries, "the default profiles are there now");
    }
}

/// Creates the profiles of a file that do not exist, and leaves those that do as they are.
///
/// # Errors
///
/// The file is missing or holds something else, or the API server refuses a profile.
async fn create_defaults(client: &Client, path: &Path) -> Result<(), DefaultsError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|source| DefaultsError::Read { path: path.display().to_string(), source })?;
    let profiles = parse_defaults(&text)
        .map_err(|source| DefaultsError::Parse { path: path.display().to_string(), source })?;
    let api: Api<GpuProfile> = Api::all(client.clone());
    for profile in profiles {
        match api.create(&PostParams::default(), &profile).await {
            Ok(_) => tracing::info!(profile = profile.name_any(), "created a default GpuProfile"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(DefaultsError::Create { name: profile.name_any(), source }),
        }
    }
    Ok(())
}

fn parse_defaults(text: &str) -> Result<Vec<GpuProfile>, serde_yaml_ng::Error> {
    let mut profiles = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        match serde_yaml_ng::Value::deserialize(document)? {
            serde_yaml_ng::Value::Null => {}
            serde_yaml_ng::Value::Sequence(list) => {
                for item in list {
                    profiles.push(serde_yaml_ng::from_value(item)?);
                }
            }
            one => profiles.push(serde_yaml_ng::from_value(one)?),
        }
    }
    Ok(profiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_profiles_are_read_from_documents_and_lists() {
        let one = |name: &str| {
            format!(
                "apiVersion: atlas.gillsystems.com/v1alpha1\nkind: GpuProfile\nmetadata: {{name: {name}}}\nspec: {{product: P, vram: 8Gi, backend: Cpu}}\n"
            )
        };
        let names = |text: &str| -> Vec<String> {
            parse_defaults(text).unwrap().iter().map(|profile| profile.name_any()).collect()
        };
        assert_eq!(names(&format!("{}---\n{}", one("a"), one("b"))), ["a", "b"]);
        let list = "- {apiVersion: atlas.gillsystems.com/v1alpha1, kind: GpuProfile, metadata: {name: c}, spec: {product: P, vram: 8Gi, backend: Cpu}}\n";
        assert_eq!(names(list), ["c"]);
        assert!(parse_defaults("kind: GpuProfile\n").is_err());
    }
}
