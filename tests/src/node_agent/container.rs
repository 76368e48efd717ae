//! One container of a pod: started, probed, restarted with back-off, ended with grace.
//!
//! It only reports into the pod's view; `pod` tells the API server. It knows no exec, lifecycle hooks other than
//! `preStop.sleep`, or resource limits.

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
use super::environment::expand;
use super::image_map::{Image, engine_on_cpu};
use super::inputs::collect_environment;
use super::machine::Machine;
use super::node::now;
use super::pod::{Desired, ending, gone};
use super::probe::{ProbeCounter, ProbeKind, ProbeTiming, send_probe};
use super::process::{ContainerKey, Process};
use super::sandbox::{Identity, Mount, Sandbox};
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

    /// Makes the sandbox and starts the program in it.
    async fn start(&self) -> Result<Process, NotStarted> {
        let reference = self.container.image.clone().unwrap_or_default();
        let image = self.resolve_image(&reference)?;
        self.event(
            EventType::Normal,
            "Pulled",
            format!("Container image {reference:?} already present on machine"),
        );
        let config_error = |message| NotStarted { reason: "CreateContainerConfigError", message };
        let variables = collect_environment(self.machine, self.pod, self.container, self.net.ip)
            .await
            .map_err(|error| config_error(error.to_string()))?;
        let identity = self.identity(image).map_err(config_error)?;
        let sandbox = Sandbox {
            folder: self.own_folder(),
            hostname: self.pod.name_any(),
            mounts: self.mounts(image, &variables).map_err(config_error)?,
            identity,
            read_only_root: self
                .container
                .security_context
                .as_ref()
                .is_some_and(|context| context.read_only_root_filesystem == Some(true)),
            working_dir: self.container.working_dir.clone().unwrap_or_else(|| "/".into()),
            command: self.command(image, &variables),
            environment: variables,
        };
        let failed = |error: std::io::Error| NotStarted {
            reason: "CreateContainerError",
            message: format!("cannot write below {}: {error}", self.folder.display()),
        };
        let script = self.lay_files(&sandbox).map_err(failed)?;
        let process = Process::start(&script, &self.net.netns_path, &self.log("log"))
            .await
            .map_err(|error| NotStarted { reason: "CreateContainerError", message: error.to_string() })?;
        std::fs::write(self.running_file(), "").map_err(failed)?;
        let id = format!("process://{:032x}", rand::random::<u128>());
        self.update(|view| view.container_id = Some(id));
        Ok(process)
    }

    fn resolve_image(&self, reference: &str) -> Result<&Image, NotStarted> {
        let images = &self.machine.options.images;
        let unknown = |message| NotStarted { reason: "ErrImagePull", message };
        let image = images.resolve(reference).ok_or_else(|| {
            unknown(format!(
                "failed to pull image {reference:?}: a simulated node pulls nothing and knows only {}",
                images.names()
            ))
        })?;
        if image.binary.is_file() {
            return Ok(image);
        }
        Err(unknown(format!(
            "failed to pull image {reference:?}: its program {} is not there; build it first",
            image.binary.display()
        )))
    }

    fn command(&self, image: &Image, variables: &[(String, String)]) -> Vec<String> {
        let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
            words.iter().flatten().map(|word| expand(word, variables)).collect()
        };
        let mut command = expanded(&self.container.command);
        if command.is_empty() {
            command.push(image.entrypoint.clone());
        }
        let arguments = expanded(&self.container.args);
        command.extend(if image.needs_card { engine_on_cpu(&arguments) } else { arguments });
        command
    }

    fn mounts(&self, image: &Image, variables: &[(String, String)]) -> Result<Vec<Mount>, String> {
        let mut mounts =
            vec![Mount { source: image.binary.clone(), target: image.entrypoint.clone(), read_only: true }];
        for mount in self.container.volume_mounts.iter().flatten() {
            let folder = self.volumes.folders.get(&mount.name);
            let folder = folder.ok_or_else(|| format!("volume {:?} is not one of the pod's", mount.name))?;
            let sub_path =
                mount.sub_path_expr.as_ref().map(|path| expand(path, variables)).or(mount.sub_path.clone());
            let source = sub_path.map_or_else(|| folder.clone(), |path| folder.join(path));
            mounts.push(Mount {
                source,
                target: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true),
            });
        }
        mounts.push(Mount {
            source: self.message_file(),
            target: self
                .container
                .termination_message_path
                .clone()
                .unwrap_or_else(|| "/dev/termination-log".into()),
            read_only: false,
        });
        Ok(mounts)
    }

    fn identity(&self, image: &Image) -> Result<Identity, String> {
        let pod = self.pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let own = self.container.security_context.clone().unwrap_or_default();
        let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
        let user = id(own.run_as_user.or(pod.run_as_user)).unwrap_or(image.user);
        if user == 0 && own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            return Err("container has runAsNonRoot and image will run as root".into());
        }
        let groups = pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group);
        Ok(Identity {
            user,
            group: id(own.run_as_group.or(pod.run_as_group)).unwrap_or(0),
            groups: groups.filter_map(|group| id(Some(group))).collect(),
            no_new_privileges: own.allow_privilege_escalation == Some(false),
        })
    }

    /// Writes the files of one run and gives back its script.
    fn lay_files(&self, sandbox: &Sandbox) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(sandbox.folder.join("layer"))?;
        let (log, previous) = (self.log("log"), self.log("previous.log"));
        if log.exists() {
            std::fs::rename(&log, previous)?;
        }
        std::fs::write(&log, "")?;
        std::fs::write(self.message_file(), "")?;
        std::fs::set_permissions(self.message_file(), std::fs::Permissions::from_mode(0o666))?;
        let options = &self.machine.options;
        let (namespace, domain) = (self.pod.namespace().unwrap_or_default(), &options.cluster_domain);
        std::fs::write(
            sandbox.folder.join("resolv.conf"),
            format!(
                "nameserver {}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n",
                options.dns
            ),
        )?;
        std::fs::write(
            sandbox.folder.join("hosts"),
            format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", self.net.ip, sandbox.hostname),
        )?;
        let script = sandbox.folder.join("run.sh");
        std::fs::write(&script, sandbox.script())?;
        Ok(script)
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
