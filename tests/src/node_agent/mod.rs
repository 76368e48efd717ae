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
mod error;
mod image_map;
mod inputs;
mod machine;
mod node;
mod options;
mod pod;
mod probe;
mod process;
mod sandbox;
mod spec;
mod status;
mod volumes;

use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

pub use error::NodeAgentError;
pub use image_map::{Image, ImageMap};
pub use options::{KubeletPort, NodeAgentOptions, Timing};
pub use spec::{Card, GPU_RESOURCE, NodeSpec};

use crate::cluster::net::NodeNet;
use error::REGISTRATION;
use machine::{Command, Wires, run_machine};
use process::ContainerKey;

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
        self.ask_of(namespace, pod, container, |key, done| Command::Crash { key, done }).await
    }

    /// The ids of one container's processes, parents first.
    ///
    /// # Errors
    /// When the node is off or frozen, or the container does not run here.
    pub async fn processes_of(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Vec<u32>, NodeAgentError> {
        self.ask_of(namespace, pod, container, |key, done| Command::Find { key, done }).await
    }

    async fn ask_of<T>(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: impl FnOnce(ContainerKey, oneshot::Sender<Option<T>>) -> Command,
    ) -> Result<T, NodeAgentError> {
        let power = self.power.lock().await;
        let power = power.as_ref().ok_or_else(|| self.state("off"))?;
        if power.resume.is_some() {
            return Err(self.state("frozen"));
        }
        let key = ContainerKey { namespace: namespace.into(), pod: pod.into(), container: container.into() };
        let (done, answered) = oneshot::channel();
        power.commands.send(command(key.clone(), done)).map_err(|_| self.state("off"))?;
        let ContainerKey { namespace, pod, container } = key;
        answered.await.map_err(|_| self.state("off"))?.ok_or_else(|| NodeAgentError::NoContainer {
            node: self.name().to_owned(),
            namespace,
            pod,
            container,
        })
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
