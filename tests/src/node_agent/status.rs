//! From what the containers do to the pod's status, as a kubelet computes it.
//!
//! Pure: the clock is an argument, and conditions that others wrote are kept.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the node agent knows about one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerView {
    /// The container's name.
    pub name: String,
    /// Its image as the manifest names it.
    pub image: String,
    /// Its state now.
    pub state: ContainerState,
    /// How it ended last time.
    pub last_state: Option<ContainerState>,
    /// The readiness probe's verdict.
    pub ready: bool,
    /// Whether the startup probe is done.
    pub started: bool,
    /// How often it was started again.
    pub restart_count: i32,
    /// A name for this run of it.
    pub container_id: Option<String>,
}

impl ContainerView {
    fn ended_well(&self) -> bool {
        self.state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0)
    }

    /// Whether it runs no more, be it ended or waiting for a restart.
    fn stopped(&self) -> bool {
        self.state.terminated.is_some()
            || self.state.waiting.is_some()
                && self.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
    }

    fn status(&self, may_be_ready: bool) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: if self.container_id.is_some() {
                format!("local://{}", self.image)
            } else {
                String::new()
            },
            state: Some(self.state.clone()),
            last_state: self.last_state.clone(),
            ready: self.ready && may_be_ready,
            started: Some(self.started),
            restart_count: self.restart_count,
            container_id: self.container_id.clone(),
            ..ContainerStatus::default()
        }
    }
}

/// What the node agent knows about one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodView {
    /// Init containers in order.
    pub init: Vec<ContainerView>,
    /// Containers in order.
    pub main: Vec<ContainerView>,
    /// The pod's address once it has one.
    pub ip: Option<String>,
    /// When the agent took the pod on.
    pub start_time: Option<Time>,
    /// Whether it is being deleted: then it is not ready, whatever its probes say.
    pub stopping: bool,
}

/// Computes the status to report.
pub fn compute_status(pod: &Pod, view: &PodView, node_ip: &str, now: &Time) -> PodStatus {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let phase = compute_phase(policy, view);
    let ended = matches!(phase, "Succeeded" | "Failed");
    let initialized = view.init.iter().all(ContainerView::ended_well);
    let containers_ready = !ended && !view.stopping && view.main.iter().all(|container| container.ready);
    let gates_hold = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten()).all(|gate| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|held| held.type_ == gate.condition_type && held.status == "True")
    });

    let unready = if ended {
        ("PodCompleted", String::new())
    } else {
        let names = |held: fn(&ContainerView) -> bool, views: &[ContainerView]| {
            views
                .iter()
                .filter(|view| !held(view))
                .map(|view| view.name.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        (
            "ContainersNotReady",
            format!("containers with unready status: [{}]", names(|c| c.ready, &view.main)),
        )
    };
    let own = [
        condition("PodReadyToStartContainers", view.ip.is_some() && !ended, ("", String::new())),
        condition("Initialized", initialized, ("ContainersNotInitialized", String::new())),
        condition("ContainersReady", containers_ready, unready.clone()),
        condition("Ready", containers_ready && gates_hold, unready),
        condition("PodScheduled", true, ("", String::new())),
    ];
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(merge_conditions(pod, own, now)),
        init_container_statuses: some(
            view.init
                .iter()
                .map(|init| ContainerStatus { ready: init.ended_well(), ..init.status(true) })
                .collect::<Vec<_>>(),
        ),
        container_statuses: some(
            view.main.iter().map(|main| main.status(!view.stopping)).collect::<Vec<_>>(),
        ),
        host_ip: Some(node_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: node_ip.to_owned() }]),
        pod_ip: view.ip.clone(),
        pod_ips: view.ip.clone().map(|ip| vec![PodIP { ip }]),
        start_time: view.start_time.clone(),
        ..PodStatus::default()
    }
}

fn compute_phase(policy: &str, view: &PodView) -> &'static str {
    let init_failed = view.init.iter().any(|init| init.state.terminated.is_some() && !init.ended_well());
    if policy == "Never" && init_failed {
        return "Failed";
    }
    if !view.init.iter().all(ContainerView::ended_well) {
        return "Pending";
    }
    if view.main.iter().any(|main| main.state.running.is_none() && !main.stopped()) {
        return "Pending";
    }
    if view.main.iter().any(|main| main.state.running.is_some()) {
        return "Running";
    }
    // Everything has ended; a pod that is being deleted is not started again whatever its policy.
    let all_well = view.main.iter().all(ContainerView::ended_well);
    match policy {
        "Always" if !view.stopping => "Running",
        "OnFailure" if !all_well && !view.stopping => "Running",
        _ if all_well => "Succeeded",
        _ => "Failed",
    }
}

fn condition(kind: &str, holds: bool, (reason, message): (&str, String)) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: (!holds && !reason.is_empty()).then(|| reason.to_owned()),
        message: (!holds && !message.is_empty()).then_some(message),
        ..PodCondition::default()
    }
}

/// Keeps the time of the last change where the status stays, and conditions of other writers as they are.
fn merge_conditions(pod: &Pod, own: [PodCondition; 5], now: &Time) -> Vec<PodCondition> {
    let held: Vec<PodCondition> =
        pod.status.iter().flat_map(|status| status.conditions.clone().unwrap_or_default()).collect();
    let mut merged: Vec<PodCondition> =
        held.iter().filter(|held| own.iter().all(|own| own.type_ != held.type_)).cloned().collect();
    for mut condition in own {
        let before =
            held.iter().find(|held| held.type_ == condition.type_ && held.status == condition.status);
        condition.last_transition_time =
            before.and_then(|before| before.last_transition_time.clone()).or_else(|| Some(now.clone()));
        merged.push(condition);
    }
    merged
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    };

    use super::*;

    fn view(state: &str) -> ContainerView {
        let ended = |exit_code| ContainerState {
            terminated: Some(ContainerStateTerminated { exit_code, ..Default::default() }),
            ..Default::default()
        };
        let waiting =
            ContainerState { waiting: Some(ContainerStateWaiting::default()), ..Default::default() };
        let running =
            ContainerState { running: Some(ContainerStateRunning::default()), ..Default::default() };
        let (state, last_state, ready) = match state {
            "waiting" => (waiting, None, false),
            "backoff" => (waiting, Some(ended(1)), false),
            "running" => (running, None, false),
            "ready" => (running, None, true),
            "ok" => (ended(0), None, false),
            _ => (ended(1), None, false),
        };
        ContainerView {
            name: "c".into(),
            image: "i".into(),
            state,
            last_state,
            ready,
            started: ready,
            restart_count: 0,
            container_id: None,
        }
    }

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": policy, "containers": []},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "DisruptionTarget", "status": "True"}
            ]}
        }))
        .expect("a pod")
    }

    /// States of init and main containers give a phase and whether the pod is ready.
    fn check(policy: &str, init: &[&str], main: &[&str], expected: (&str, bool)) {
        let view = PodView {
            init: init.iter().map(|state| view(state)).collect(),
            main: main.iter().map(|state| view(state)).collect(),
            ..PodView::default()
        };
        let status = compute_status(&pod(policy), &view, "10.0.0.1", &Time(Default::default()));
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        assert_eq!(
            (status.phase.as_deref().unwrap_or_default(), ready),
            expected,
            "{policy} {init:?} {main:?}"
        );
    }

    #[test]
    fn phases_follow_the_kubelet() {
        check("Always", &[], &["waiting"], ("Pending", false));
        check("Always", &[], &["running"], ("Running", false));
        check("Always", &[], &["ready"], ("Running", true));
        check("Always", &[], &["ready", "running"], ("Running", false));
        check("Always", &[], &["ready", "waiting"], ("Pending", false));
        check("Always", &[], &["backoff"], ("Running", false));
        check("Always", &[], &["failed"], ("Running", false));
        check("OnFailure", &[], &["ok"], ("Succeeded", false));
        check("OnFailure", &[], &["failed"], ("Running", false));
        check("Never", &[], &["failed", "ok"], ("Failed", false));
        check("Never", &[], &["ok", "ok"], ("Succeeded", false));
        check("Always", &["running"], &["waiting"], ("Pending", false));
        check("Always", &["ok"], &["ready"], ("Running", true));
        check("Never", &["failed"], &["waiting"], ("Failed", false));
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_not_ready() {
        let view = PodView { main: vec![view("ready")], stopping: true, ..PodView::default() };
        let status = compute_status(&pod("Always"), &view, "10.0.0.1", &Time(Default::default()));
        assert!(status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "False"));
        assert!(status.container_statuses.iter().flatten().all(|c| !c.ready));
    }

    #[test]
    fn conditions_keep_their_times_and_other_writers_theirs() {
        let view = PodView { main: vec![view("ready")], ..PodView::default() };
        let now = Time(Default::default());
        let status = compute_status(&pod("Always"), &view, "10.0.0.1", &now);
        let of = |kind: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == kind)
                .cloned()
                .unwrap_or_else(|| panic!("{kind}"))
        };
        assert_ne!(of("Ready").last_transition_time, Some(now.clone()));
        assert_eq!(of("ContainersReady").last_transition_time, Some(now));
        assert_eq!(of("DisruptionTarget").status, "True");
    }
}
