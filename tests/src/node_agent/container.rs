//! One container of a pod: started, probed, restarted with back-off, ended with grace.
//!
//! It only reports into the pod's view; `pod` tells the API server. It knows no exec, lifecycle hooks other than
//! `preStop.sleep`, or resource limits.

mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, Pod,
    Probe,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::runtime::events::EventType;
use tokio::sync::watch;

use super::backoff::RestartBackoff;
use super::machine::Machine;
use super::node::now;
use super::pod::{Desired, ending, gone};
use super::probe::{ProbeCounter, ProbeKind, ProbeTiming, send_probe};
use super::process::{ContainerKey, Process};
use super::status::{ContainerView, PodView};
use super::volumes::Volumes;
use crate::cluster::net::PodNet;

/// As much of a termination message as Kubernetes keeps.
const LONGEST_MESSAGE: usize = 4096;

/// How a container's life on this node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Exit code 0, and its policy does not start it again.
    Succeeded,
    /// Another exit code, and its policy does not start it again.
    Failed,
    /// The pod has to end.
    Stopped,
}

/// A container and all it needs of its pod.
pub struct ContainerRun<'a> {
    /// The node.
    pub machine: &'a Arc<Machine>,
    /// What the API server wants.
    pub desired: &'a watch::Receiver<Desired>,
    /// The pod as it was bound.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Whether it is an init container.
    pub init: bool,
    /// Its place among its kind.
    pub index: usize,
    /// The pod's folder.
    pub folder: &'a Path,
    /// The pod's network.
    pub net: &'a PodNet,
    /// The pod's volumes.
    pub volumes: &'a Volumes,
    /// Where to report.
    pub view: &'a watch::Sender<PodView>,
}

/// Why a container is not running yet, in a kubelet's words.
struct NotStarted {
    reason: &'static str,
    message: String,
}

/// What ended a running container.
enum End {
    Exited(i32),
    Unhealthy(ProbeKind),
    Stop,
}

impl ContainerRun<'_> {
    /// Keeps the container running as its pod's restart policy says.
    pub async fn run(&self) -> Finish {
        let mut backoff = RestartBackoff::new(self.machine.options.timing.restart_backoff);
        let mut pulls = RestartBackoff::new(self.machine.options.timing.restart_backoff);
        loop {
            if self.desired.borrow().is_ending() {
                return Finish::Stopped;
            }
            let mut process = match self.start().await {
                Ok(process) => process,
                Err(not_started) => {
                    if !self.wait_before_retry(not_started, &mut pulls).await {
                        return Finish::Stopped;
                    }
                    continue;
                }
            };
            let started_at = now();
            let registered = self.machine.processes.register(self.key(), process.outer());
            self.update(|view| {
                view.state = ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(started_at.clone()) }),
                    ..ContainerState::default()
                };
                view.started = self.container.startup_probe.is_none();
                view.ready = !self.init && view.started && self.container.readiness_probe.is_none();
            });
            self.event(EventType::Normal, "Started", "Container started".into());
            let end = tokio::select! {
                code = process.wait() => End::Exited(code),
                () = ending(self.desired) => End::Stop,
                kind = self.run_probes() => End::Unhealthy(kind),
            };
            let code = match &end {
                End::Exited(code) => *code,
                End::Unhealthy(kind) => {
                    let note = format!(
                        "Container {} failed {} probe, will be restarted",
                        self.container.name,
                        kind.name().to_lowercase()
                    );
                    self.event(EventType::Normal, "Killing", note);
                    self.end_gently(&mut process, self.probe_grace(*kind)).await
                }
                End::Stop => {
                    self.event(
                        EventType::Normal,
                        "Killing",
                        format!("Stopping container {}", self.container.name),
                    );
                    let grace = self.desired.borrow().grace();
                    self.end_gently(&mut process, grace).await
                }
            };
            registered.ended();
            self.report_end(code, started_at);
            if matches!(end, End::Stop) || self.desired.borrow().is_ending() {
                return Finish::Stopped;
            }
            if !self.restarts(code) {
                return if code == 0 { Finish::Succeeded } else { Finish::Failed };
            }
            let wait = backoff.next_wait(Instant::now());
            if !wait.is_zero() && !self.wait_in_backoff(wait).await {
                return Finish::Stopped;
            }
            self.update(|view| {
                view.last_state = Some(std::mem::take(&mut view.state))
                    .filter(|state| state.terminated.is_some())
                    .or(view.last_state.take());
                view.state = waiting("ContainerCreating", None);
                view.restart_count += 1;
            });
        }
    }

    fn restarts(&self, code: i32) -> bool {
        let policy =
            self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        match policy {
            "Never" => false,
            "OnFailure" => code != 0,
            // An init container that has done its work is done.
            _ => !self.init || code != 0,
        }
    }

    /// Probes until one of them wants the container restarted.
    async fn run_probes(&self) -> ProbeKind {
        if let Some(probe) = &self.container.startup_probe {
            let mut verdict = None;
            self.probe_until(ProbeKind::Startup, probe, |success| {
                verdict = Some(success);
                true
            })
            .await;
            if verdict == Some(false) {
                return ProbeKind::Startup;
            }
            self.update(|view| {
                view.started = true;
                view.ready = !self.init && self.container.readiness_probe.is_none();
            });
        }
        let readiness = async {
            let Some(probe) = &self.container.readiness_probe else { return std::future::pending().await };
            self.probe_until(ProbeKind::Readiness, probe, |success| {
                self.update(|view| view.ready = success);
                false
            })
            .await;
        };
        let liveness = async {
            let Some(probe) = &self.container.liveness_probe else { return std::future::pending().await };
            self.probe_until(ProbeKind::Liveness, probe, |success| !success).await;
        };
        tokio::select! {
            () = readiness => ProbeKind::Readiness,
            () = liveness => ProbeKind::Liveness,
        }
    }

    /// Probes in its rhythm and hands every verdict over, until told that it was the last.
    async fn probe_until(&self, kind: ProbeKind, probe: &Probe, mut verdict: impl FnMut(bool) -> bool) {
        let timing = ProbeTiming::of(probe);
        let mut counter = ProbeCounter::new(probe);
        tokio::time::sleep(timing.initial_delay).await;
        let mut ticks = tokio::time::interval(timing.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = send_probe(probe, self.container, self.net.ip.into()).await;
            if let Err(error) = &result {
                self.event(EventType::Warning, "Unhealthy", format!("{} probe failed: {error}", kind.name()));
            }
            if counter.record(result.is_ok()).is_some_and(&mut verdict) {
                return;
            }
        }
    }

    fn probe_grace(&self, kind: ProbeKind) -> Duration {
        let probe = match kind {
            ProbeKind::Startup => &self.container.startup_probe,
            ProbeKind::Liveness | ProbeKind::Readiness => &self.container.liveness_probe,
        };
        let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        let own = own.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        own.unwrap_or_else(|| self.desired.borrow().grace())
    }

    /// SIGTERM, then SIGKILL after the grace period or when the pod's object is gone.
    async fn end_gently(&self, process: &mut Process, grace: Duration) -> i32 {
        self.update(|view| view.ready = false);
        let hook = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.sleep.as_ref());
        let hook = hook.and_then(|sleep| u64::try_from(sleep.seconds).ok()).map(Duration::from_secs);
        let gentle = async {
            if let Some(hook) = hook {
                tokio::time::sleep(hook).await;
            }
            process.terminate();
            process.wait().await
        };
        tokio::select! {
            code = gentle => return code,
            () = tokio::time::sleep(grace) => {}
            () = gone(self.desired) => {}
        }
        process.kill_now();
        process.wait().await
    }

    fn report_end(&self, code: i32, started_at: Time) {
        // The follower of the log ends when it is gone; an error leaves it following, which harms nobody.
        let _ = std::fs::remove_file(self.running_file());
        let message = self.termination_message(code);
        self.update(|view| {
            view.state = ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    reason: Some(if code == 0 { "Completed" } else { "Error" }.into()),
                    message,
                    container_id: view.container_id.clone(),
                    started_at: Some(started_at),
                    finished_at: Some(now()),
                    signal: None,
                }),
                ..ContainerState::default()
            };
            view.ready = false;
            view.started = false;
        });
    }

    fn termination_message(&self, code: i32) -> Option<String> {
        let from_log = self.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let mut bytes = std::fs::read(self.message_file()).unwrap_or_default();
        bytes.truncate(LONGEST_MESSAGE);
        if bytes.is_empty() && from_log && code != 0 {
            let log = std::fs::read(self.log("log")).unwrap_or_default();
            bytes = log[log.len().saturating_sub(LONGEST_MESSAGE / 2)..].to_vec();
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Shows why the container does not start and waits; false when the pod has to end.
    async fn wait_before_retry(&self, failure: NotStarted, pulls: &mut RestartBackoff) -> bool {
        let NotStarted { reason, message } = failure;
        self.update(|view| view.state = waiting(reason, Some(message.clone())));
        self.event(EventType::Warning, "Failed", format!("Error: {reason}: {message}"));
        let mut wait = Duration::from_secs(1);
        if reason == "ErrImagePull" {
            let longer = pulls.next_wait(Instant::now());
            if !longer.is_zero() {
                let image = self.container.image.clone().unwrap_or_default();
                let note = format!("Back-off pulling image {image:?}: {message}");
                self.update(|view| view.state = waiting("ImagePullBackOff", Some(note.clone())));
                self.event(EventType::Normal, "BackOff", note);
                wait = longer;
            }
        }
        self.sleep_unless_ending(wait).await
    }

    /// Shows CrashLoopBackOff and waits; false when the pod has to end.
    async fn wait_in_backoff(&self, wait: Duration) -> bool {
        let (container, pod) = (&self.container.name, self.pod.name_any());
        let note = format!(
            "back-off {}s restarting failed container={container} pod={pod}_{}",
            wait.as_secs(),
            self.pod.namespace().unwrap_or_default()
        );
        self.update(|view| {
            view.last_state = Some(std::mem::take(&mut view.state));
            view.state = waiting("CrashLoopBackOff", Some(note));
        });
        let note = format!("Back-off restarting failed container {container} in pod {pod}");
        self.event(EventType::Warning, "BackOff", note);
        self.sleep_unless_ending(wait).await
    }

    async fn sleep_unless_ending(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = ending(self.desired) => false,
        }
    }

    fn update(&self, change: impl FnOnce(&mut ContainerView)) {
        self.view.send_modify(|view| {
            let views = if self.init { &mut view.init } else { &mut view.main };
            if let Some(container) = views.get_mut(self.index) {
                change(container);
            }
        });
    }

    fn event(&self, type_: EventType, reason: &str, note: String) {
        self.machine.event(self.pod, type_, reason, note);
    }

    fn key(&self) -> ContainerKey {
        ContainerKey {
            namespace: self.pod.namespace().unwrap_or_default(),
            pod: self.pod.name_any(),
            container: self.container.name.clone(),
        }
    }

    fn own_folder(&self) -> PathBuf {
        self.folder.join("containers").join(&self.container.name)
    }

    fn log(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.container.name))
    }

    fn running_file(&self) -> PathBuf {
        self.folder.join(format!("{}.running", self.container.name))
    }

    fn message_file(&self) -> PathBuf {
        self.own_folder().join("termination-log")
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}
