//! Why a node could not be started or broken.

use std::time::Duration;

use crate::cluster::ClusterError;
use crate::cluster::net::NetError;

/// How long a node may take to register; machines under load are slow, so it is generous.
pub(super) const REGISTRATION: Duration = Duration::from_secs(120);

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
