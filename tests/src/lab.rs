//! The whole local cluster as the tour, the end-to-end suite and the benchmarks use it: the real control plane and
//! three simulated nodes, one like the Radeon RX 7900 XTX's, one like the RX 7600's, one without a card.
//!
//! It wires `cluster` and `node_agent` together and adds nothing to either. The operator is not part of it: it is
//! installed from the chart, as anywhere else.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::{
    assets::cache_folder,
    cluster::{Cluster, ClusterOptions, Daemon, net::CONTROL_PLANE_IP, pki::Identity},
    node_agent::{ImageMap, KubeletPort, NodeAgent, NodeAgentOptions, NodeSpec, Timing},
    support,
};

/// The real model of the demonstration, as `make setup` leaves it in the cache folder.
pub const MODEL_FILE: &str = "smollm2-135m-instruct-q4_1.gguf";
/// The node like the Radeon RX 7900 XTX's.
pub const PRIMARY_NODE: &str = "node-7900xtx";
/// The node like the Radeon RX 7600's.
pub const FALLBACK_NODE: &str = "node-7600";
/// The node without a card.
pub const PLAIN_NODE: &str = "node-cpu";
/// Label of every simulated node, so that nobody takes one for real.
pub const SIMULATED: &str = "atlas.gillsystems.com/simulated";

/// How long a crashed engine waits before it starts again; a kubelet's 10 s would only make the suites wait.
const RESTART_BACKOFF: Duration = Duration::from_secs(2);

/// A simulated node with the kube-proxy that belongs to it.
struct LabNode {
    agent: NodeAgent,
    kube_proxy: Option<Daemon>,
}

/// The local cluster with its nodes.
pub struct Lab {
    // Before the cluster, whose namespaces they stand in.
    nodes: Vec<LabNode>,
    cluster: Cluster,
}

impl Lab {
    /// Starts the control plane; nodes are added by [`Self::add_nodes`].
    ///
    /// # Errors
    ///
    /// Without root, or when a program is missing or does not become ready.
    pub async fn start(extra_models: BTreeMap<String, PathBuf>) -> anyhow::Result<Self> {
        let mut models = extra_models;
        let model = cache_folder().join("models").join(MODEL_FILE);
        anyhow::ensure!(model.is_file(), "{} is missing: run `make setup`", model.display());
        // One small model stands for both tiers, under a name for each.
        models.insert("smollm2-135m-primary.gguf".into(), model.clone());
        models.insert("smollm2-135m-fallback.gguf".into(), model);
        let cluster = Cluster::start(ClusterOptions { models, ..ClusterOptions::default() }).await?;
        Ok(Self { nodes: Vec::new(), cluster })
    }

    /// Boots the three nodes, at once.
    ///
    /// # Errors
    ///
    /// A node that does not register, or a binary that is not built.
    pub async fn add_nodes(&mut self) -> anyhow::Result<()> {
        let images = ImageMap::atlas(support::binary("atlas-operator")?, support::binary("atlas-engine")?);
        let specs = [
            NodeSpec::rx_7900_xtx(PRIMARY_NODE),
            NodeSpec::rx_7600(FALLBACK_NODE),
            NodeSpec::without_gpu(PLAIN_NODE),
        ];
        let nodes =
            futures::future::join_all(specs.into_iter().map(|spec| self.boot(spec, images.clone()))).await;
        for node in nodes {
            self.nodes.push(node?);
        }
        Ok(())
    }

    async fn boot(&self, mut spec: NodeSpec, images: ImageMap) -> anyhow::Result<LabNode> {
        let name = spec.name.clone();
        spec.labels.insert(SIMULATED.into(), "true".into());
        let net = Arc::new(self.cluster.net().add_node().await?);
        let pki = self.cluster.pki();
        let identity = Identity::node(&name);
        let kubeconfig =
            Kubeconfig::read_from(self.cluster.kubeconfig_inside(&format!("node-{name}"), &identity)?)?;
        let api = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let serving = pki.serving(&format!("kubelet-{name}"), &[net.node_ip().into()], &[&name])?;
        let agent = NodeAgent::start(NodeAgentOptions {
            spec,
            api,
            net: net.clone(),
            images,
            kubelet_port: KubeletPort {
                program: self.cluster.assets().kubelet_port.clone(),
                certificate: serving.cert,
                key: serving.key,
                client_ca: pki.ca_path(),
            },
            folder: self.cluster.folder().join("nodes"),
            dns: CONTROL_PLANE_IP,
            cluster_domain: "cluster.local".into(),
            timing: Timing { restart_backoff: RESTART_BACKOFF, ..Timing::kubelet() },
        })
        .await?;
        let kube_proxy = self.cluster.start_kube_proxy(&net, &name).await?;
        Ok(LabNode { agent, kube_proxy: Some(kube_proxy) })
    }

    /// The control plane.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A node's agent, for faults that are not of the whole node.
    ///
    /// # Errors
    ///
    /// No node has that name.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeAgent> {
        let node = self.nodes.iter().find(|node| node.agent.name() == name);
        Ok(&node.with_context(|| format!("there is no node {name}"))?.agent)
    }

    /// Kills a node: its link goes down first, then everything on it ends. Nobody is told.
    ///
    /// # Errors
    ///
    /// The link cannot be changed.
    pub async fn kill_node(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.node_mut(name)?;
        node.agent.kill().await?;
        node.kube_proxy = None;
        Ok(())
    }

    /// Boots a killed node again.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub async fn restore_node(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.node_mut(name)?;
        node.agent.restore().await?;
        let net = node.agent.net().clone();
        let kube_proxy = self.cluster.start_kube_proxy(&net, name).await?;
        self.node_mut(name)?.kube_proxy = Some(kube_proxy);
        Ok(())
    }

    fn node_mut(&mut self, name: &str) -> anyhow::Result<&mut LabNode> {
        let node = self.nodes.iter_mut().find(|node| node.agent.name() == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Ends everything it started.
    pub async fn stop(self) {
        let Self { nodes, cluster } = self;
        futures::future::join_all(nodes.into_iter().map(|node| async move {
            drop(node.kube_proxy);
            node.agent.stop().await;
        }))
        .await;
        cluster.stop().await;
    }
}
