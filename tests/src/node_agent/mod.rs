//! A simulated Kubernetes node: it registers a Node with the cards' labels, runs the pods bound to it as local
//! processes and can be broken on purpose.
//!
//! It is a test tool, also used by `make run`, because many machines have neither a container engine nor a card.
//! What it deliberately is not: a kubelet. There are no cgroups, no image files, no exec, no persistent volumes and no
//! device plugin, and `image_map::engine_on_cpu` runs the card's engine on the CPU.
//!
//! A node is powered on by a thread that lives in the node's network namespace (`machine`); a fault either cuts its
//! link, stops that thread, or ends it.

mod backoff;
mod container;
mod environment;
mod image_map;
mod inputs;
mod machine;
mod node;
mod pod;
mod probe;
mod process;
mod sandbox;
mod spec;
mod status;
mod volumes;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sched::{CloneFlags, setns};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

pub use image_map::{Image, ImageMap};
pub use spec::{Card, GPU_RESOURCE, NodeSpec};

use crate::cluster::net::{CONTROL_PLANE_IP, NetError, NodeNet};
use crate::cluster::pki::Identity;
use crate::cluster::{Cluster, ClusterError};
use machine::{Command, Wires, run_machine};
use process::ContainerKey;

/// How long a node may take to register; machines under load are slow, so it is generous.
const REGISTRATION: Duration = Duration::from_secs(120);

/// The program behind the kubelet port and its certificates.
#[derive(Debug, Clone)]
pub struct KubeletPort {
    /// The control plane's multi-call binary under the name `kubelet-port`.
    pub program: PathBuf,
    /// Serving certificate.
    pub certificate: PathBuf,
    /// Serving key.
    pub key: PathBuf,
    /// The authority of the API server's client certificate.
    pub client_ca: PathBuf,
}

/// The node's rhythm; `Timing::kubelet` is a real kubelet's.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two heartbeats (status and lease).
    pub heartbeat: Duration,
    /// The first wait before a crashed container starts again; it doubles.
    pub restart_backoff: Duration,
}

impl Timing {
    /// A kubelet's own times.
    pub fn kubelet() -> Self {
        Self { heartbeat: Duration::from_secs(10), restart_backoff: Duration::from_secs(10) }
    }
}

/// Everything a node needs to start.
#[derive(Debug, Clone)]
pub struct NodeAgentOptions {
    /// What the node looks like.
    pub spec: NodeSpec,
    /// The API server as the node's namespace reaches it.
    pub api: kube::Config,
    /// The node's network.
    pub net: Arc<NodeNet>,
    /// What the images stand for.
    pub images: ImageMap,
    /// The kubelet port's program and certificates.
    pub kubelet_port: KubeletPort,
    /// Where nodes keep their pods' files; each uses a folder of its own name.
    pub folder: PathBuf,
    /// The cluster's name server.
    pub dns: Ipv4Addr,
    /// The cluster's domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// The node's rhythm.
    pub timing: Timing,
}

impl NodeAgentOptions {
    /// A new node of a local cluster, with a network, a user and certificates of its own and a kubelet's rhythm.
    ///
    /// # Errors
    /// When its network or its certificates cannot be made.
    pub async fn in_cluster(
        cluster: &Cluster,
        spec: NodeSpec,
        images: ImageMap,
    ) -> Result<Self, NodeAgentError> {
        let node = spec.name.clone();
        let certificates = |source| NodeAgentError::Cluster { node: node.clone(), source: Box::new(source) };
        let net = cluster
            .net()
            .add_node()
            .await
            .map_err(|source| NodeAgentError::Net { node: node.clone(), source })?;
        let serving = cluster
            .pki()
            .serving(&format!("kubelet-{node}"), &[net.node_ip().into()], &[&node])
            .map_err(certificates)?;
        let kubeconfig = cluster
            .kubeconfig_inside(&format!("node-{node}"), &Identity::node(&node))
            .map_err(certificates)?;
        let kubeconfig_error = |source| NodeAgentError::Kubeconfig { node: node.clone(), source };
        let parsed = Kubeconfig::read_from(&kubeconfig).map_err(kubeconfig_error)?;
        let api = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .map_err(kubeconfig_error)?;
        Ok(Self {
            spec,
            api,
            net: Arc::new(net),
            images,
            kubelet_port: KubeletPort {
                program: cluster.assets().kubelet_port.clone(),
                certificate: serving.cert,
                key: serving.key,
                client_ca: cluster.pki().ca_path(),
            },
            folder: cluster.folder().join("nodes"),
            dns: CONTROL_PLANE_IP,
            cluster_domain: "cluster.local".into(),
            timing: Timing::kubelet(),
        })
    }

    fn node_folder(&self) -> PathBuf {
        self.folder.join(&self.spec.name)
    }

    fn pods_folder(&self) -> PathBuf {
        self.node_folder().join("pods")
    }
}

/// Why a node could not be started or broken.
#[derive(Debug, thiserror::Error)]
pub enum NodeAgentError {
    /// A folder or thread could not be made.
    #[error("node {node}: cannot {action}: {source}")]
    Io {
        /// The node.
        node: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The link could not be changed.
    #[error("node {node}: {source}")]
    Net {
        /// The node.
        node: String,
        /// Why.
        source: NetError,
    },
    /// The cluster could not give the node its certificates.
    #[error("node {node}: {source}")]
    Cluster {
        /// The node.
        node: String,
        /// Why.
        source: Box<ClusterError>,
    },
    /// The node's kubeconfig cannot be read back.
    #[error("node {node}: its kubeconfig is not usable: {source}")]
    Kubeconfig {
        /// The node.
        node: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// The API server's address or certificates are not usable.
    #[error("node {node}: the API server's settings are not usable: {source}")]
    Client {
        /// The node.
        node: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The Node object did not come about.
    #[error("node {node}: not registered within {REGISTRATION:?}; see the log of the API server")]
    NotRegistered {
        /// The node.
        node: String,
    },
    /// The node is off or frozen, so it cannot do this.
    #[error("node {node} is {state}")]
    State {
        /// The node.
        node: String,
        /// What it is instead.
        state: &'static str,
    },
    /// The container does not run on this node.
    #[error("node {node}: container {container} of pod {namespace}/{pod} does not run here")]
    NoContainer {
        /// The node.
        node: String,
        /// The pod's namespace.
        namespace: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
}

/// A simulated node. Dropping it is a power cut.
#[derive(Debug)]
pub struct NodeAgent {
    options: Arc<NodeAgentOptions>,
    link: watch::Sender<u64>,
    gpus: watch::Sender<usize>,
    power: Mutex<Option<Power>>,
}

/// A running machine.
#[derive(Debug)]
struct Power {
    commands: mpsc::UnboundedSender<Command>,
    /// There while the machine is frozen.
    resume: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Power {
    fn drop(&mut self) {
        drop(self.resume.take());
        // The machine may have ended by itself.
        let _ = self.commands.send(Command::PowerOff);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl NodeAgent {
    /// Starts the node and waits until it is registered and Ready.
    ///
    /// # Errors
    /// When its folder, thread or namespace cannot be had, or the API server does not take it.
    pub async fn start(options: NodeAgentOptions) -> Result<Self, NodeAgentError> {
        let agent = Self {
            link: watch::Sender::new(0),
            gpus: watch::Sender::new(options.spec.cards.len()),
            power: Mutex::new(None),
            options: Arc::new(options),
        };
        agent.power_on().await?;
        Ok(agent)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.options.spec.name
    }

    /// The node's network.
    pub fn net(&self) -> &Arc<NodeNet> {
        &self.options.net
    }

    /// Kills the node: first its link goes down, then all its processes end and its heartbeats with them.
    ///
    /// # Errors
    /// When the link cannot be changed.
    pub async fn kill(&self) -> Result<(), NodeAgentError> {
        self.set_link(false).await?;
        self.power_off().await;
        Ok(())
    }

    /// Boots the node again after `kill`: its pods that are still bound run again, with new containers and addresses.
    ///
    /// # Errors
    /// When the node is on, or does not come up.
    pub async fn restore(&self) -> Result<(), NodeAgentError> {
        if self.power.lock().await.is_some() {
            return Err(self.state("on"));
        }
        self.set_link(true).await?;
        self.power_on().await
    }

    /// Cuts the node off; its processes live on.
    ///
    /// # Errors
    /// When the link cannot be changed.
    pub async fn partition(&self) -> Result<(), NodeAgentError> {
        self.set_link(false).await
    }

    /// Joins the node again after `partition`.
    ///
    /// # Errors
    /// When the link cannot be changed.
    pub async fn heal(&self) -> Result<(), NodeAgentError> {
        self.set_link(true).await
    }

    /// Stops everything on the node where it stands: pods, probes, heartbeats and the kubelet port.
    ///
    /// # Errors
    /// When the node is off or frozen.
    pub async fn freeze(&self) -> Result<(), NodeAgentError> {
        let mut power = self.power.lock().await;
        let power = power.as_mut().ok_or_else(|| self.state("off"))?;
        if power.resume.is_some() {
            return Err(self.state("frozen"));
        }
        let (resume_tx, resume) = std::sync::mpsc::channel();
        let (done, stands) = oneshot::channel();
        power.commands.send(Command::Freeze { resume, done }).map_err(|_| self.state("off"))?;
        stands.await.map_err(|_| self.state("off"))?;
        power.resume = Some(resume_tx);
        Ok(())
    }

    /// Lets everything go on after `freeze`.
    ///
    /// # Errors
    /// When the node is off or not frozen.
    pub async fn thaw(&self) -> Result<(), NodeAgentError> {
        let mut power = self.power.lock().await;
        let resume = power.as_mut().ok_or_else(|| self.state("off"))?.resume.take();
        resume.map(drop).ok_or_else(|| self.state("not frozen"))
    }

    /// Breaks the cards: allocatable falls to 0, capacity stays, running pods are left alone.
    pub fn gpu_lost(&self) {
        self.gpus.send_replace(0);
    }

    /// Mends the cards.
    pub fn gpu_back(&self) {
        self.gpus.send_replace(self.options.spec.cards.len());
    }

    /// Kills one container's processes with SIGKILL.
    ///
    /// # Errors
    /// When the node is off or frozen, or the container does not run here.
    pub async fn crash_engine(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(), NodeAgentError> {
        let power = self.power.lock().await;
        let power = power.as_ref().ok_or_else(|| self.state("off"))?;
        if power.resume.is_some() {
            return Err(self.state("frozen"));
        }
        let (namespace, pod, container) = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let key =
            ContainerKey { namespace: namespace.clone(), pod: pod.clone(), container: container.clone() };
        let (done, crashed) = oneshot::channel();
        power.commands.send(Command::Crash { key, done }).map_err(|_| self.state("off"))?;
        match crashed.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(NodeAgentError::NoContainer { node: self.name().to_owned(), namespace, pod, container })
            }
            Err(_) => Err(self.state("off")),
        }
    }

    /// Ends the node and everything on it; its objects stay in the API.
    pub async fn stop(self) {
        self.power_off().await;
    }

    async fn set_link(&self, up: bool) -> Result<(), NodeAgentError> {
        let net = &self.options.net;
        let changed = if up { net.link_up().await } else { net.link_down().await };
        changed.map_err(|source| NodeAgentError::Net { node: self.name().to_owned(), source })?;
        self.link.send_modify(|changes| *changes += 1);
        Ok(())
    }

    async fn power_on(&self) -> Result<(), NodeAgentError> {
        let node = self.name().to_owned();
        let io = |action| {
            let node = node.clone();
            move |source| NodeAgentError::Io { node, action, source }
        };
        std::fs::create_dir_all(self.options.pods_folder()).map_err(io("make its folder"))?;
        let netns = std::fs::File::open(self.options.net.netns().path()).map_err(io("open its namespace"))?;
        let (commands, received) = mpsc::unbounded_channel();
        let (registered_tx, registered) = oneshot::channel();
        let wires = Wires { link: self.link.subscribe(), gpus: self.gpus.subscribe() };
        let options = self.options.clone();
        let thread = std::thread::Builder::new().name(format!("node-{node}")).spawn(move || {
            let started = setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            match started {
                Ok(runtime) => runtime.block_on(run_machine(options, wires, received, registered_tx)),
                Err(error) => {
                    tracing::error!(node = options.spec.name, %error, "a node's thread could not start")
                }
            }
        });
        let thread = thread.map_err(io("start its thread"))?;
        let power = Power { commands, resume: None, thread: Some(thread) };
        match tokio::time::timeout(REGISTRATION, registered).await {
            Ok(Ok(Ok(()))) => {
                *self.power.lock().await = Some(power);
                Ok(())
            }
            Ok(Ok(Err(source))) => Err(NodeAgentError::Client { node, source: Box::new(source) }),
            Ok(Err(_)) | Err(_) => Err(NodeAgentError::NotRegistered { node }),
        }
    }

    async fn power_off(&self) {
        let power = self.power.lock().await.take();
        // Waits for the thread, so not on one of the caller's.
        let _ = tokio::task::spawn_blocking(move || drop(power)).await;
    }

    fn state(&self, state: &'static str) -> NodeAgentError {
        NodeAgentError::State { node: self.name().to_owned(), state }
    }
}
