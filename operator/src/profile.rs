//! The GpuProfile controller: which nodes carry a card, how many are in use, and whether that is unambiguous.
//!
//! It writes nothing but the status, and creates missing default profiles once, at start.

use std::{path::Path, sync::Arc};

use atlas_crds::{
    GpuProfile, ProfileCondition, names,
    profile::{GpuProfileStatus, ProfileNode},
};
use atlas_operator_core::inventory::{
    DriverVerdict, NodeView, describe_match, judge_drivers, label_problems, match_node, unambiguous_problems,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::controller::Action,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::backoff, events::build_profile_events, observe::TierPods, reconcile::Context,
    status::whole_seconds,
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
    let nodes: Vec<&NodeView> = nodes.iter().map(AsRef::as_ref).collect();
    let name = object.name_any();
    let engine_pods = context.stores.engine_pods();
    let in_use = context
        .stores
        .models
        .state()
        .iter()
        .flat_map(|model| model.spec.tiers.iter().map(move |tier| (model, tier)))
        .filter(|(_, tier)| tier.gpu_profile == name)
        .map(|(model, tier)| {
            let holding = engine_pods
                .of(&model.namespace().unwrap_or_default(), &model.name_any())
                .iter()
                .filter(|pod| {
                    pod.labels().get(names::LABEL_TIER) == Some(&tier.name) && TierPods::holds_card(pod)
                })
                .count();
            i32::try_from(holding).unwrap_or(i32::MAX)
        })
        .sum();
    let status = compute_profile_status(&object, &profiles, &nodes, in_use, Timestamp::now());
    timer.observe_duration();
    if object.status.as_ref() != Some(&status) {
        let api: Api<GpuProfile> = Api::all(context.client.clone());
        let body = json!({
            "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
            "kind": "GpuProfile",
            "metadata": {"name": name, "uid": object.metadata.uid},
            "status": status,
        });
        context.metrics.writes.with_label_values(&["GpuProfile"]).inc();
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match api.patch_status(&name, &params, &Patch::Apply(body)).await {
            Ok(_) => {
                let before = object.status.as_ref().map(|status| status.conditions.as_slice());
                let events = build_profile_events(before.unwrap_or_default(), &status.conditions);
                context.events.publish_all(object.object_ref(&()), events);
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 => {}
            Err(source) => return Err(ProfileError::Status { name, source }),
        }
    }
    Ok(Action::await_change())
}

/// When a failed reconcile is tried again.
pub fn on_error(object: Arc<GpuProfile>, error: &ProfileError, context: Arc<Context>) -> Action {
    context.metrics.errors.with_label_values(&[CONTROLLER, "status"]).inc();
    tracing::warn!(profile = object.name_any(), error = error as &dyn std::error::Error, "reconcile failed");
    Action::requeue(std::time::Duration::from_secs(5))
}

fn compute_profile_status(
    profile: &GpuProfile,
    all: &[&GpuProfile],
    nodes: &[&NodeView],
    in_use: i32,
    now: Timestamp,
) -> GpuProfileStatus {
    let resource = &profile.spec.resource_name;
    let matched: Vec<ProfileNode> = nodes
        .iter()
        .filter_map(|node| {
            let matched = match_node(profile, node)?;
            let allocatable = node.allocatable.get(resource).copied().unwrap_or(0);
            Some(ProfileNode {
                name: node.name.clone(),
                cards: matched.cards,
                allocatable: i32::try_from(allocatable).unwrap_or(i32::MAX).min(matched.cards),
            })
        })
        .collect();
    let problems = unambiguous_problems(profile, all, nodes);
    let previous = profile.status.clone().unwrap_or_default();
    let condition = |type_: ProfileCondition, status: &str, reason: &str, message: String| {
        let before = previous.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
        Condition {
            type_: type_.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: profile.metadata.generation,
            last_transition_time: before
                .map_or_else(|| Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
        }
    };
    let nodes_matched = if matched.is_empty() {
        let message = format!(
            "no node has {}: check the node labeller's flags and match of this profile",
            describe_match(profile)
        );
        condition(ProfileCondition::NodesMatched, "False", "NoMatchingNode", message)
    } else {
        let count = matched.len();
        condition(
            ProfileCondition::NodesMatched,
            "True",
            "Matched",
            format!("{count} node(s) carry this card"),
        )
    };
    let unambiguous = if problems.is_empty() {
        condition(
            ProfileCondition::Unambiguous,
            "True",
            "OneKind",
            "no matched node has another card or profile".into(),
        )
    } else {
        let message = format!("{}: engines check their card at start", problems.join("; "));
        condition(ProfileCondition::Unambiguous, "False", "Ambiguous", message)
    };
    let labels = label_problems(profile, nodes);
    let labels_consistent = if labels.is_empty() {
        condition(
            ProfileCondition::LabelsConsistent,
            "True",
            "Consistent",
            "labels and counts of the matched nodes agree".into(),
        )
    } else {
        condition(ProfileCondition::LabelsConsistent, "False", "Inconsistent", labels.join("; "))
    };
    let (state, reason, message) = describe_drivers(&judge_drivers(profile, nodes));
    let driver_validated = condition(ProfileCondition::DriverValidated, state, reason, message);
    GpuProfileStatus {
        observed_generation: profile.metadata.generation,
        matched_nodes: i32::try_from(matched.len()).unwrap_or(i32::MAX),
        capacity: matched.iter().map(|node| node.allocatable).sum(),
        nodes: matched,
        in_use,
        conditions: vec![nodes_matched, unambiguous, labels_consistent, driver_validated],
    }
}

/// Status, reason and message of `DriverValidated`.
fn describe_drivers(verdict: &DriverVerdict) -> (&'static str, &'static str, String) {
    match verdict {
        DriverVerdict::NotListed => {
            ("Unknown", "NotListed", "spec.validatedDrivers names no driver to compare with".to_owned())
        }
        DriverVerdict::Untold => (
            "Unknown",
            "Untold",
            "no matched node tells its driver: switch the label driver-version of the node labeller on; the kernel's own driver has no version"
                .to_owned(),
        ),
        DriverVerdict::Validated => {
            ("True", "Validated", "every matched node that tells its driver runs a validated one".to_owned())
        }
        DriverVerdict::Other(nodes) => {
            let nodes: Vec<String> =
                nodes.iter().map(|(node, version)| format!("node {node} runs {version}")).collect();
            let message = format!(
                "{}: install a driver of spec.validatedDrivers, or add this one once you have tried it",
                nodes.join(", ")
            );
            ("False", "NotValidated", message)
        }
    }
}

/// Creates the missing default profiles, again and again until it succeeds: what exists is reconciled meanwhile, and
/// a mended ConfigMap reaches the file without a restart.
pub async fn create_defaults_until_done(client: &Client, path: &Path) {
    let mut tries = 0;
    while let Err(error) = create_defaults(client, path).await {
        tries += 1;
        if tries == 1 {
            tracing::error!(
                error = &error as &dyn std::error::Error,
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
