//! One pod on the node, from its binding to its deletion.
//!
//! Three things run side by side: the containers, the report of their state to the API server, and the renewal of
//! tokens. There are no sidecar init containers and no ephemeral ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStateWaiting, Pod, PodStatus,
};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::EventType;
use serde_json::json;
use tokio::sync::watch;

use super::container::{ContainerRun, Finish};
use super::machine::Machine;
use super::node::now;
use super::status::{ContainerView, PodView, compute_status};
use super::volumes::{prepare_volumes, renew};
use crate::cluster::net::PodNet;

/// What the API server wants of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The object as it was last seen.
    pub pod: Pod,
    /// The object is gone: end at once, there is nobody to report to.
    pub gone: bool,
}

impl Desired {
    /// Whether the pod has to end.
    pub fn is_ending(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take to end.
    pub fn grace(&self) -> Duration {
        let of_pod = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let seconds = self.pod.metadata.deletion_grace_period_seconds.or(of_pod).unwrap_or(30);
        if self.gone { Duration::ZERO } else { Duration::from_secs(u64::try_from(seconds).unwrap_or(0)) }
    }
}

/// Waits until the pod has to end; also when nobody can say so any more.
pub async fn ending(desired: &watch::Receiver<Desired>) {
    // An error means that the sender is gone, which ends the pod too.
    let _ = desired.clone().wait_for(Desired::is_ending).await;
}

/// Waits until the pod's object is gone.
pub async fn gone(desired: &watch::Receiver<Desired>) {
    // As above.
    let _ = desired.clone().wait_for(|desired| desired.gone).await;
}

/// Runs a pod until its object is deleted.
pub async fn run_pod(machine: Arc<Machine>, desired: watch::Receiver<Desired>) {
    let pod = desired.borrow().pod.clone();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        // It has ended on an earlier boot: nothing but its deletion is left.
        ending(&desired).await;
        delete(&machine, &desired).await;
        return;
    }
    let folder = machine.options.pods_folder().join(format!(
        "{}_{}",
        pod.namespace().unwrap_or_default(),
        pod.name_any()
    ));
    let (view, watched) = watch::channel(first_view(&pod));
    let work = async {
        let Some(net) = make_sandbox(&machine, &desired, &folder).await else { return };
        view.send_modify(|view| view.ip = Some(net.ip.to_string()));
        run_containers(&machine, &desired, &folder, &net, &view).await;
    };
    let mark_ending = async {
        ending(&desired).await;
        view.send_modify(|view| view.stopping = true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = work => {}
        () = mark_ending => {}
        () = publish(&machine, &desired, &watched) => {}
    }
    // The last state of the containers, for whoever looks before the object goes.
    view.send_modify(|view| view.stopping = true);
    if !desired.borrow().gone {
        let status =
            compute_status(&desired.borrow().pod, &watched.borrow(), &machine.node_ip().to_string(), &now());
        // The deletion below says the same, more strongly.
        let _ = patch_status(&machine, &pod, &status).await;
    }
    delete(&machine, &desired).await;
    if let Err(error) = machine.options.net.remove_pod(&pod.uid().unwrap_or_default()).await {
        tracing::warn!(pod = pod.name_any(), %error, "a pod's network was not removed");
    }
    // Logs of a deleted pod cannot be asked for; what cannot be removed goes with the cluster's folder.
    let _ = std::fs::remove_dir_all(&folder);
}

fn first_view(pod: &Pod) -> PodView {
    let spec = pod.spec.clone().unwrap_or_default();
    let init = spec.init_containers.unwrap_or_default();
    let reason = if init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let status = pod.status.clone().unwrap_or_default();
    let container = |container: &Container| {
        let held = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        // A status from an earlier boot: the container was lost with it, and the next one is a restart.
        let earlier =
            held.into_iter().find(|held| held.name == container.name && held.container_id.is_some());
        ContainerView {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: ContainerState {
                waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message: None }),
                ..ContainerState::default()
            },
            last_state: earlier.map(|earlier| ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: 255,
                    reason: Some("Unknown".into()),
                    container_id: earlier.container_id.clone(),
                    started_at: earlier.state.clone().and_then(|state| state.running?.started_at),
                    finished_at: Some(now()),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            }),
            ready: false,
            started: false,
            restart_count: earlier.map_or(0, |earlier| earlier.restart_count + 1),
            container_id: None,
        }
    };
    PodView {
        init: init.iter().map(container).collect(),
        main: spec.containers.iter().map(container).collect(),
        ip: None,
        start_time: status.start_time.or_else(|| Some(now())),
        stopping: pod.metadata.deletion_timestamp.is_some(),
    }
}

/// Makes the pod's network and folder; `None` when the pod has to end first.
async fn make_sandbox(
    machine: &Arc<Machine>,
    desired: &watch::Receiver<Desired>,
    folder: &Path,
) -> Option<PodNet> {
    let pod = desired.borrow().pod.clone();
    let uid = pod.uid().unwrap_or_default();
    loop {
        if desired.borrow().is_ending() {
            return None;
        }
        // A network that is still there is from before a power cut; a pod that starts again gets another one.
        let fresh = async {
            machine.options.net.remove_pod(&uid).await?;
            machine.options.net.add_pod(&uid).await
        };
        let failure = match fresh.await {
            Ok(net) => match lay_folder(folder, &uid, &net) {
                Ok(()) => return Some(net),
                Err(error) => format!("cannot write {}: {error}", folder.display()),
            },
            Err(error) => error.to_string(),
        };
        let note = format!("Failed to create pod sandbox: {failure}");
        machine.event(&pod, EventType::Warning, "FailedCreatePodSandBox", note);
        pause_unless_ending(machine, desired).await;
    }
}

/// Volumes stay over a reboot as long as the pod is the same one.
fn lay_folder(folder: &Path, uid: &str, net: &PodNet) -> std::io::Result<()> {
    let uid_file = folder.join("uid");
    if std::fs::read_to_string(&uid_file).ok().as_deref() != Some(uid) && folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder.join("volumes"))?;
    std::fs::write(uid_file, uid)?;
    std::fs::write(folder.join("ip"), net.ip.to_string())
}

async fn run_containers(
    machine: &Arc<Machine>,
    desired: &watch::Receiver<Desired>,
    folder: &Path,
    net: &PodNet,
    view: &watch::Sender<PodView>,
) {
    let pod = desired.borrow().pod.clone();
    let volumes_folder: PathBuf = folder.join("volumes");
    let volumes = loop {
        if desired.borrow().is_ending() {
            return;
        }
        match prepare_volumes(machine, &pod, &volumes_folder, net.ip).await {
            Ok(volumes) => break volumes,
            Err(error) => {
                machine.event(
                    &pod,
                    EventType::Warning,
                    "FailedMount",
                    format!("MountVolume.SetUp failed: {error}"),
                );
                pause_unless_ending(machine, desired).await;
            }
        }
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let run = |container, init, index| ContainerRun {
        machine,
        desired,
        pod: &pod,
        container,
        init,
        index,
        folder,
        net,
        volumes: &volumes,
        view,
    };
    let containers = async {
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            if run(container, true, index).run().await != Finish::Succeeded {
                // The pod ends here, or has failed for good.
                ending(desired).await;
                return;
            }
        }
        let runs: Vec<_> =
            spec.containers.iter().enumerate().map(|(index, main)| run(main, false, index)).collect();
        join_all(runs.iter().map(ContainerRun::run)).await;
        ending(desired).await;
    };
    tokio::select! {
        () = containers => {}
        () = renew(machine, &pod, &volumes, net.ip) => {}
    }
}

async fn pause_unless_ending(machine: &Machine, desired: &watch::Receiver<Desired>) {
    tokio::select! {
        () = machine.pause() => {}
        () = ending(desired) => {}
    }
}

/// Reports every change of the view, and again when somebody else has written over it.
async fn publish(machine: &Machine, desired: &watch::Receiver<Desired>, view: &watch::Receiver<PodView>) {
    let (mut desired, mut view) = (desired.clone(), view.clone());
    let mut last: Option<PodStatus> = None;
    loop {
        let mut pod = desired.borrow_and_update().pod.clone();
        let overwritten = last.as_ref().is_some_and(|last| !agrees(&pod, last));
        if let Some(last) = &last
            && !overwritten
        {
            // The watch may not have brought our own last report yet.
            let held = pod.status.take().unwrap_or_default();
            pod.status = Some(PodStatus { conditions: last.conditions.clone().or(held.conditions), ..held });
        }
        let status = compute_status(&pod, &view.borrow_and_update(), &machine.node_ip().to_string(), &now());
        if last.as_ref() != Some(&status) || overwritten {
            match patch_status(machine, &pod, &status).await {
                Ok(()) => last = Some(status),
                // Gone, or replaced by another pod of that name: the watch will say so.
                Err(error) if matches!(error.code(), Some(404 | 409)) => {
                    tracing::debug!(pod = pod.name_any(), %error, "a status had no pod to go to");
                    last = Some(status);
                }
                Err(error) => {
                    tracing::debug!(pod = pod.name_any(), %error, "a status is sent again");
                    machine.pause().await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether what the API server holds still says what was reported; the node's controller marks pods unready.
fn agrees(pod: &Pod, reported: &PodStatus) -> bool {
    let ready = |status: &PodStatus| {
        status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.clone())
    };
    pod.status.as_ref().is_some_and(|held| held.phase == reported.phase && ready(held) == ready(reported))
}

async fn patch_status(
    machine: &Machine,
    pod: &Pod,
    status: &PodStatus,
) -> Result<(), super::machine::ApiError> {
    let pods: Api<Pod> = machine.namespaced(pod);
    let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid()}, "status": status}));
    machine.call(pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch)).await.map(drop)
}

/// Takes the object out of the API now that nothing of it runs.
async fn delete(machine: &Machine, desired: &watch::Receiver<Desired>) {
    let pod = desired.borrow().pod.clone();
    let pods: Api<Pod> = machine.namespaced(&pod);
    let now = DeleteParams {
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default().grace_period(0)
    };
    while !desired.borrow().gone {
        match machine.call(pods.delete(&pod.name_any(), &now)).await {
            Ok(_) => return,
            Err(error) if matches!(error.code(), Some(404 | 409)) => return,
            Err(error) => {
                tracing::debug!(pod = pod.name_any(), %error, "a deletion is sent again");
                tokio::select! {
                    () = machine.pause() => {}
                    () = gone(desired) => {}
                }
            }
        }
    }
}
