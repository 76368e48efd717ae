//! The running node: its way to the API server, its kubelet port, its pods and the commands it takes.
//!
//! One boot is one thread with a runtime of its own inside the node's network namespace. So the API server, the probes
//! and the kubelet port are reached through the node's link alone, a cut link cuts all of them, and a frozen machine is
//! a thread that stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::NodeAgentOptions;
use super::node::keep_node;
use super::pod::{Desired, run_pod};
use super::process::{ContainerKey, Processes};
use super::volumes::InputError;

/// How long one request may take; a lost answer is then asked for again.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts at the same request.
const RETRY: Duration = Duration::from_secs(1);

/// Why a request to the API server brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It refused, or could not be reached.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// It said nothing for ten seconds.
    #[error("the API server did not answer in time")]
    Late,
    /// The link went up or down meanwhile.
    #[error("the node's link changed")]
    LinkChanged,
}

impl ApiError {
    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The HTTP status, where there is one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// What the handle asks of a running machine.
pub enum Command {
    /// Stand still until the sender of `resume` is dropped.
    Freeze {
        /// Blocks the machine.
        resume: std::sync::mpsc::Receiver<()>,
        /// Answered when everything stands.
        done: oneshot::Sender<()>,
    },
    /// Kill one container.
    Crash {
        /// Which one.
        key: ContainerKey,
        /// Answered when the signal is sent; nothing where it does not run.
        done: oneshot::Sender<Option<()>>,
    },
    /// Name the processes of one container.
    Find {
        /// Which one.
        key: ContainerKey,
        /// Their ids; nothing where it does not run.
        done: oneshot::Sender<Option<Vec<u32>>>,
    },
    /// Kill everything and end.
    PowerOff,
}

/// What a machine is told from outside while it runs.
#[derive(Debug, Clone)]
pub struct Wires {
    /// Changes with every change of the link.
    pub link: watch::Receiver<u64>,
    /// How many cards work.
    pub gpus: watch::Receiver<usize>,
}

/// What all parts of a running node share.
pub struct Machine {
    /// What the node was started with.
    pub options: Arc<NodeAgentOptions>,
    /// Its containers.
    pub processes: Processes,
    /// The link and the cards.
    pub wires: Wires,
    /// Another one after each boot.
    pub boot_id: String,
    client: Client,
    recorder: Recorder,
    kubernetes: OnceCell<(String, i32)>,
}

impl Machine {
    /// An API of all namespaces or of none.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// An API in the pod's namespace.
    pub fn namespaced<K>(&self, pod: &Pod) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.in_namespace(&pod.namespace().unwrap_or_default())
    }

    /// An API in a namespace.
    pub fn in_namespace<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The node's address.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.options.net.node_ip()
    }

    /// Waits for an answer, but neither for ever nor across a change of the link: what was sent before may be lost.
    ///
    /// # Errors
    /// When there is no answer or it is a refusal.
    pub async fn call<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        let mut link = self.wires.link.clone();
        link.mark_unchanged();
        tokio::select! {
            answer = request => Ok(answer?),
            _ = link.changed() => Err(ApiError::LinkChanged),
            () = tokio::time::sleep(CALL_TIMEOUT) => Err(ApiError::Late),
        }
    }

    /// Waits before the next attempt, but not beyond a change of the link.
    pub async fn pause(&self) {
        let mut link = self.wires.link.clone();
        link.mark_unchanged();
        tokio::select! {
            _ = link.changed() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }

    /// Address and port of the Service `kubernetes`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn kubernetes_service(&self) -> Result<(String, i32), InputError> {
        let services: Api<Service> = self.in_namespace("default");
        let fetch = async {
            let service = self.call(services.get("kubernetes")).await?;
            let spec = service.spec.unwrap_or_default();
            let port = spec.ports.into_iter().flatten().next().map_or(443, |port| port.port);
            Ok((spec.cluster_ip.unwrap_or_default(), port))
        };
        let found = self.kubernetes.get_or_try_init(|| fetch).await;
        found.cloned().map_err(|source| InputError::Api {
            kind: "Service",
            name: "kubernetes".into(),
            source,
        })
    }

    /// Posts an event about a pod, without waiting for it: events are a help, not a duty.
    pub fn event(self: &Arc<Self>, pod: &Pod, type_: EventType, reason: &str, note: String) {
        let (machine, reference) = (self.clone(), pod.object_ref(&()));
        let event =
            Event { type_, reason: reason.into(), note: Some(note), action: reason.into(), secondary: None };
        tokio::spawn(async move {
            if let Err(error) = machine.call(machine.recorder.publish(&event, &reference)).await {
                tracing::debug!(node = machine.options.spec.name, %error, "an event was lost");
            }
        });
    }
}

/// Runs one boot of a node until it is powered off; `registered` is answered when the Node is in the API.
pub async fn run_machine(
    options: Arc<NodeAgentOptions>,
    wires: Wires,
    mut commands: mpsc::UnboundedReceiver<Command>,
    registered: oneshot::Sender<Result<(), kube::Error>>,
) {
    let client = match Client::try_from(options.api.clone()) {
        Ok(client) => client,
        Err(error) => {
            // Nobody listens only when the handle is gone, and then nobody needs the reason.
            let _ = registered.send(Err(error));
            return;
        }
    };
    let reporter = Reporter { controller: "kubelet".into(), instance: Some(options.spec.name.clone()) };
    let machine = Arc::new(Machine {
        recorder: Recorder::new(client.clone(), reporter),
        processes: Processes::default(),
        boot_id: format!("{:032x}", rand::random::<u128>()),
        kubernetes: OnceCell::new(),
        client,
        wires,
        options,
    });
    let work = async {
        tokio::join!(
            keep_node(&machine, registered),
            keep_pods(machine.clone()),
            keep_kubelet_port(&machine)
        );
    };
    let obey = async {
        loop {
            match commands.recv().await {
                None | Some(Command::PowerOff) => return,
                Some(Command::Crash { key, done }) => {
                    // An impatient caller does not change what happened.
                    let _ = done.send(machine.processes.crash(&key));
                }
                Some(Command::Find { key, done }) => {
                    let _ = done.send(machine.processes.find(&key));
                }
                Some(Command::Freeze { resume, done }) => {
                    machine.processes.stop_all();
                    let _ = done.send(());
                    // Blocks this thread on purpose: heartbeats, probes and status stand still with it. The sender
                    // is never used, it is dropped.
                    let _ = resume.recv();
                    machine.processes.continue_all();
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = obey => {}
    }
    machine.processes.kill_all();
}

/// Follows the pods that are bound to this node, for ever.
async fn keep_pods(machine: Arc<Machine>) {
    let mut pods = Pods { machine: machine.clone(), running: BTreeMap::new(), listed: BTreeSet::new() };
    let mut link = machine.wires.link.clone();
    loop {
        link.mark_unchanged();
        let selector = format!("spec.nodeName={}", machine.options.spec.name);
        let stream = watcher(machine.all::<Pod>(), watcher::Config::default().fields(&selector));
        let mut stream = pin!(stream.default_backoff());
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    Some(Ok(event)) => pods.apply(event),
                    Some(Err(error)) => {
                        tracing::debug!(node = machine.options.spec.name, %error, "the watch on pods broke");
                    }
                    None => break,
                },
                // The connection may hang on a lost packet for a long time; a new one does not.
                _ = link.changed() => break,
            }
        }
    }
}

/// The workers of this node's pods.
struct Pods {
    machine: Arc<Machine>,
    running: BTreeMap<(String, String), Worker>,
    listed: BTreeSet<(String, String)>,
}

struct Worker {
    uid: String,
    desired: watch::Sender<Desired>,
    task: JoinHandle<()>,
}

impl Pods {
    fn apply(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                self.listed.insert(key(&pod));
                self.update(pod);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let missing = self.running.iter().filter(|(key, _)| !listed.contains(*key));
                missing.for_each(|(_, worker)| worker.desired.send_modify(|desired| desired.gone = true));
            }
            watcher::Event::Apply(pod) => self.update(pod),
            watcher::Event::Delete(pod) => {
                let worker = self.running.get(&key(&pod)).filter(|worker| worker.uid == uid(&pod));
                if let Some(worker) = worker {
                    worker.desired.send_modify(|desired| desired.gone = true);
                }
            }
        }
        self.running.retain(|_, worker| !worker.task.is_finished());
    }

    fn update(&mut self, pod: Pod) {
        let (key, uid) = (key(&pod), uid(&pod));
        let earlier = match self.running.remove(&key) {
            Some(worker) if worker.uid == uid => {
                worker.desired.send_modify(|desired| desired.pod = pod);
                self.running.insert(key, worker);
                return;
            }
            Some(other) => {
                other.desired.send_modify(|desired| desired.gone = true);
                Some(other.task)
            }
            None => None,
        };
        let (desired, watched) = watch::channel(Desired { pod, gone: false });
        let machine = self.machine.clone();
        let task = tokio::spawn(async move {
            if let Some(earlier) = earlier {
                // Both use the same folder; a panic of the earlier one does not matter to the new one.
                let _ = earlier.await;
            }
            run_pod(machine, watched).await;
        });
        self.running.insert(key, Worker { uid, desired, task });
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// Keeps the program that serves logs and port-forward running.
async fn keep_kubelet_port(machine: &Arc<Machine>) {
    let options = &machine.options;
    let key = ContainerKey { namespace: String::new(), pod: String::new(), container: "kubelet-port".into() };
    loop {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log_path(options));
        let spawned = log.and_then(|log| {
            let port = &options.kubelet_port;
            tokio::process::Command::new("setpriv")
                .args(["--pdeathsig", "KILL"])
                .arg(&port.program)
                .arg("--listen=:10250")
                .arg(format!("--tls-cert={}", port.certificate.display()))
                .arg(format!("--tls-key={}", port.key.display()))
                .arg(format!("--client-ca={}", port.client_ca.display()))
                .arg(format!("--dir={}", options.pods_folder().display()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
        });
        match spawned {
            Ok(mut child) => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
                let registered = pid.map(|pid| machine.processes.register(key.clone(), pid));
                let status = child.wait().await;
                if let Some(registered) = registered {
                    registered.ended();
                }
                tracing::warn!(node = options.spec.name, ?status, log = %log_path(options).display(),
                    "the kubelet port ended and is started again");
            }
            Err(error) => tracing::warn!(node = options.spec.name, %error, "the kubelet port does not start"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn log_path(options: &NodeAgentOptions) -> PathBuf {
    options.node_folder().join("kubelet-port.log")
}
