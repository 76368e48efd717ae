//! What a node is started with.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};

use super::error::NodeAgentError;
use super::image_map::ImageMap;
use super::spec::NodeSpec;
use crate::cluster::Cluster;
use crate::cluster::net::{CONTROL_PLANE_IP, NodeNet};
use crate::cluster::pki::Identity;

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

    pub(super) fn node_folder(&self) -> PathBuf {
        self.folder.join(&self.spec.name)
    }

    pub(super) fn pods_folder(&self) -> PathBuf {
        self.node_folder().join("pods")
    }
}
