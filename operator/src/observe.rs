//! What became of a model: its Deployments, pods and engines, and what its gateways say.
//!
//! Pure views of objects that the stores hold; what has to be asked over HTTP comes from `probe`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use atlas_crds::{AtlasModel, names, status::HeaderStatus};
use atlas_operator_core::{engine_contract::EngineExit, tiers::TierRollout};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DeploymentStatus,
    core::v1::{ContainerState, ContainerStatus, Pod},
};
use kube::{ResourceExt, api::DynamicObject};
use serde::Deserialize;

use crate::desired::TEMPLATE_ANNOTATION;

/// Longest wait for an engine's word.
pub const ENGINE_PATIENCE: Duration = Duration::from_millis(300);
/// What the line of a termination message begins with that holds the model's header.
const HEADER_LINE: &str = "header: ";

/// Answer of an engine's `/internal/status`, as far as conditions need it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EngineStatus {
    /// What it does.
    pub phase: String,
    /// Progress of the download.
    pub download: Option<EngineDownload>,
    /// What went wrong.
    pub error: Option<String>,
    /// What its model's header says, once it has read that.
    pub header: Option<HeaderStatus>,
}

/// Progress of an engine's download.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EngineDownload {
    /// Bytes so far.
    pub bytes: i64,
    /// Bytes of the whole file.
    pub total_bytes: Option<i64>,
    /// Tries.
    pub attempts: i32,
}

/// One engine pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Its address.
    pub address: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Why the scheduler has no node for it.
    pub unschedulable: Option<String>,
    /// How its engine ended last, while it is not ready again.
    pub failure: Option<Failure>,
    /// Why its container does not start, for example `ImagePullBackOff: ...`.
    pub waiting: Option<String>,
    /// What its engine says, where it was asked.
    pub engine: Option<EngineStatus>,
    /// Hash of the template that it was made from.
    pub template: String,
    /// How often its engine was started again.
    pub restarts: i32,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the exit code means.
    pub exit: EngineExit,
    /// The code.
    pub code: i32,
    /// The last line of its error, from the termination log.
    pub message: String,
    /// When.
    pub at: Option<Timestamp>,
    /// What its model's header says, where memory was the reason.
    pub header: Option<HeaderStatus>,
    /// Whether the kernel ended it, since the container or the node had no memory left.
    pub oom_killed: bool,
}

impl Failure {
    /// The reason of the condition that it becomes.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        if self.oom_killed { "OomKilled" } else { self.exit.reason() }
    }

    /// What a person does about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        if self.oom_killed {
            "the kernel ended it for want of the node's memory, not of the card's: raise limits.memory in engine.resources of the tier, or the default that a LimitRange of the namespace gives, or free memory of the node"
        } else {
            self.exit.remedy()
        }
    }
}

/// The pods of one tier.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierPods {
    /// The tier's name.
    pub tier: String,
    /// Its pods, by name.
    pub pods: Vec<PodView>,
    /// The pods that keep a warm tier's weights, by name.
    pub weights: Vec<PodView>,
    /// The last pod of it that its node ended for good, such as one that was evicted; Kubernetes makes another.
    pub ended: Option<EndedPod>,
    /// Why Kubernetes makes no pod of it, where pods are missing.
    pub refused: Option<PodsRefused>,
}

/// A pod that is over, and stays to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedPod {
    /// Its name.
    pub name: String,
    /// Why it ended, in a word of Kubernetes', such as `Evicted`.
    pub reason: String,
    /// The same in a sentence.
    pub said: String,
    created: Option<Timestamp>,
}

/// The API server does not take the pods that a Deployment makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodsRefused {
    /// Why, in the API server's words.
    pub said: String,
    /// Since when.
    pub since: Option<Timestamp>,
}

impl TierPods {
    /// Whether a pod holds a card: bound to a node, not ended, not being deleted.
    #[must_use]
    pub fn holds_card(pod: &Pod) -> bool {
        Self::occupies_card(pod) && pod.metadata.deletion_timestamp.is_none()
    }

    /// Whether the scheduler counts a pod's card as taken: bound to a node and not ended.
    #[must_use]
    pub fn occupies_card(pod: &Pod) -> bool {
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        bound && !is_over(pod)
    }

    /// Number of ready pods.
    #[must_use]
    pub fn ready(&self) -> i32 {
        let ready = self.pods.iter().filter(|pod| pod.ready && !pod.terminating).count();
        i32::try_from(ready).unwrap_or(i32::MAX)
    }

    /// Number of pods that have its weights and keep them.
    #[must_use]
    pub fn keeping(&self) -> i32 {
        let keeping = self.weights.iter().filter(|pod| pod.ready && !pod.terminating).count();
        i32::try_from(keeping).unwrap_or(i32::MAX)
    }

    /// Pods that are not being deleted.
    pub fn current(&self) -> impl Iterator<Item = &PodView> {
        self.pods.iter().filter(|pod| !pod.terminating)
    }
}

/// Groups a model's pods by tier, in the order of the specification.
#[must_use]
pub fn view_tiers(model: &AtlasModel, pods: &[Arc<Pod>]) -> Vec<TierPods> {
    let mut by_tier: BTreeMap<&str, Vec<PodView>> = BTreeMap::new();
    let mut weights = by_tier.clone();
    let mut ended: BTreeMap<&str, EndedPod> = BTreeMap::new();
    for pod in pods {
        if is_over(pod) {
            let Some(tier) = pod.labels().get(names::LABEL_TIER) else { continue };
            let pod = view_ended(pod);
            if ended.get(tier.as_str()).is_none_or(|last| last.created < pod.created) {
                ended.insert(tier, pod);
            }
        } else if let Some(tier) = pod.labels().get(names::LABEL_TIER) {
            by_tier.entry(tier).or_default().push(view_pod(pod));
        } else if let Some(tier) = pod.labels().get(names::LABEL_WEIGHTS) {
            weights.entry(tier).or_default().push(view_pod(pod));
        }
    }
    model
        .spec
        .tiers
        .iter()
        .map(|tier| {
            let of_tier = |all: &mut BTreeMap<&str, Vec<PodView>>| {
                let mut pods = all.remove(tier.name.as_str()).unwrap_or_default();
                pods.sort_by(|a, b| a.name.cmp(&b.name));
                pods
            };
            let (pods, weights) = (of_tier(&mut by_tier), of_tier(&mut weights));
            let ended = ended.remove(tier.name.as_str());
            TierPods { tier: tier.name.clone(), pods, weights, ended, refused: None }
        })
        .collect()
}

/// Whether a pod has ended for good: its node evicted it, was shut down, or had no card for it after all.
#[must_use]
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn view_ended(pod: &Pod) -> EndedPod {
    let status = pod.status.as_ref();
    let reason = status.and_then(|status| status.reason.clone()).unwrap_or_else(|| "Ended".to_owned());
    let said = status.and_then(|status| status.message.as_deref()).unwrap_or("its node left no message");
    EndedPod {
        name: pod.name_any(),
        reason,
        said: said.trim().trim_end_matches('.').chars().take(512).collect(),
        created: pod.creation_timestamp().map(|time| time.0),
    }
}

/// Why the API server does not take the pods of a Deployment, as its condition `ReplicaFailure` tells.
#[must_use]
pub fn find_refusal(live: &DynamicObject) -> Option<PodsRefused> {
    let status = DeploymentStatus::deserialize(live.data.get("status")?).ok()?;
    let failure =
        status.conditions?.into_iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    Some(PodsRefused {
        // Without one, the remedy is to look at the Events.
        said: failure.message.unwrap_or_default(),
        since: failure.last_transition_time.map(|time| time.0),
    })
}

/// What matters of a pod.
#[must_use]
pub fn view_pod(pod: &Pod) -> PodView {
    let status = pod.status.as_ref();
    let condition = |type_: &str| {
        status.and_then(|s| s.conditions.as_ref()).and_then(|list| list.iter().find(|c| c.type_ == type_))
    };
    let ready = condition("Ready").is_some_and(|c| c.status == "True");
    let container = container_at_work(pod);
    let state = container.and_then(|c| c.state.as_ref());
    let failure = last_end(pod).filter(|_| !ready);
    PodView {
        name: pod.name_any(),
        uid: pod.uid(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        address: status.and_then(|s| s.pod_ip.clone()),
        ready,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        unschedulable: condition("PodScheduled")
            .filter(|c| c.status == "False")
            .map(|c| c.message.clone().unwrap_or_else(|| "no reason given".to_owned())),
        failure,
        waiting: state
            .and_then(|s| s.waiting.as_ref())
            .filter(|w| {
                !matches!(
                    w.reason.as_deref(),
                    None | Some("ContainerCreating" | "PodInitializing" | "CrashLoopBackOff")
                )
            })
            .map(|w| {
                format!(
                    "{}: {}",
                    w.reason.as_deref().unwrap_or_default(),
                    w.message.as_deref().unwrap_or_default()
                )
            }),
        engine: None,
        template: pod.annotations().get(TEMPLATE_ANNOTATION).cloned().unwrap_or_default(),
        restarts: container.map_or(0, |c| c.restart_count),
        created: pod.creation_timestamp().map(|time| time.0),
    }
}

/// The container that a pod is at: what initialises it until that has ended well, then its own.
fn container_at_work(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    let ended_well = |container: &ContainerStatus| {
        let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| ended.exit_code == 0)
    };
    let before = status.init_container_statuses.iter().flatten().find(|container| !ended_well(container));
    before.or_else(|| status.container_statuses.as_ref()?.first())
}

/// How a pod's engine ended last, whether or not it has been started again since.
#[must_use]
pub fn last_end(pod: &Pod) -> Option<Failure> {
    let container = container_at_work(pod)?;
    let of = |state: Option<&ContainerState>| state.and_then(|state| state.terminated.clone());
    let ended = of(container.state.as_ref()).or_else(|| of(container.last_state.as_ref()))?;
    // An engine that was killed left nothing, which the condition says.
    let said = ended.message.as_deref().unwrap_or_default();
    // A report that was cut, or that another release wrote, is none.
    let header = said.lines().find_map(|line| line.strip_prefix(HEADER_LINE));
    let reason: Vec<&str> = said.lines().filter(|line| !line.starts_with(HEADER_LINE)).collect();
    Some(Failure {
        exit: EngineExit::from_code(ended.exit_code)?.after_restarts(container.restart_count),
        code: ended.exit_code,
        at: ended.finished_at.as_ref().map(|at| at.0).or_else(|| pod.creation_timestamp().map(|at| at.0)),
        message: reason.join("\n").trim().chars().take(512).collect(),
        header: header.and_then(|header| serde_json::from_str(header).ok()),
        oom_killed: ended.reason.as_deref() == Some("OOMKilled"),
    })
}

/// Whether a pod outlived its grace: its node's kubelet does not answer, and a Recreate rollout waits for it for ever.
#[must_use]
pub fn is_past_grace(pod: &Pod, now: Timestamp) -> bool {
    pod.metadata.deletion_timestamp.as_ref().is_some_and(|at| at.0 < now)
}

/// How one tier's Deployment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeploymentView {
    /// Pods that it asks for.
    pub replicas: i64,
    /// Whether all of them are of its newest template and ready.
    pub complete: bool,
    /// Whether a change is still on its way.
    pub rolling: bool,
    /// Whether its pods were not ready in time.
    pub overdue: bool,
}

impl DeploymentView {
    /// Reads a Deployment.
    #[must_use]
    pub fn read(live: &DynamicObject) -> Self {
        let status: DeploymentStatus = live
            .data
            .get("status")
            .and_then(|status| DeploymentStatus::deserialize(status).ok())
            .unwrap_or_default();
        let replicas = live.data.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(1);
        let updated = i64::from(status.updated_replicas.unwrap_or(0));
        let total = i64::from(status.replicas.unwrap_or(0));
        let ready = i64::from(status.ready_replicas.unwrap_or(0));
        let seen = status.observed_generation >= live.metadata.generation;
        let progressing = status.conditions.iter().flatten().find(|c| c.type_ == "Progressing");
        // While the new pods start, the tier still rolls; a tier that lost its card after a finished rollout does not.
        let starting = progressing
            .is_some_and(|c| c.status == "True" && c.reason.as_deref() != Some("NewReplicaSetAvailable"));
        let settled = seen && updated >= replicas && total <= updated;
        Self {
            replicas,
            complete: settled && replicas > 0 && ready >= replicas,
            rolling: !settled || (starting && ready < replicas),
            overdue: seen
                && progressing.is_some_and(|c| {
                    c.status == "False" && c.reason.as_deref() == Some("ProgressDeadlineExceeded")
                }),
        }
    }
}

/// How one tier rolls, given the hash of the template that it should have.
#[must_use]
pub fn view_rollout(tier: &TierPods, live: Option<&DynamicObject>, hash: &str) -> TierRollout {
    let live_hash = live.map(|live| live.annotations().get(TEMPLATE_ANNOTATION).map_or("", String::as_str));
    TierRollout {
        name: tier.tier.clone(),
        changed: live_hash.is_some_and(|live| live != hash),
        rolling: live.is_some_and(|live| DeploymentView::read(live).rolling),
        ready: tier.ready() > 0,
    }
}
