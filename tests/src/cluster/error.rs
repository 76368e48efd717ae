//! Why a cluster did not start, in one place: every program fails in the same few ways.

use std::path::PathBuf;
use std::process::ExitStatus;

use super::net::NetError;
use crate::assets::AssetsError;

/// Why the API server or the cluster could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A program of the control plane is missing.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// The network could not be made.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A key or certificate could not be made.
    #[error("cannot make the certificate of {subject}")]
    Certificate {
        /// Whose it is.
        subject: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// A file, a folder or a socket.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with its path or address.
        action: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program ended while it was waited for.
    #[error("{program} ended ({status}) before it was ready; its last lines:\n{log}")]
    Exited {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// A program is not ready after a generous time.
    #[error("{program} was not ready after {seconds} s ({last}); its last lines:\n{log}")]
    NotReady {
        /// Its name.
        program: String,
        /// How long was waited.
        seconds: u64,
        /// The last answer.
        last: String,
        /// The end of its log.
        log: String,
    },
    /// The kubeconfig that was just written cannot be used.
    #[error("cannot use the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The API server refused.
    #[error("the API server refused to {action}")]
    Api {
        /// What was asked.
        action: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A manifest of the repository is not what it should be.
    #[error("{} is not a CustomResourceDefinition", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// A Service that cannot be relayed to.
    #[error("Service {namespace}/{name} has no ClusterIP (it is {found:?})")]
    NoClusterIp {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What `spec.clusterIP` holds.
        found: Option<String>,
    },
}

impl ClusterError {
    /// For `map_err` on an IO call.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// For `map_err` on a call to the API server.
    pub(super) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Api { action, source: Box::new(source) }
    }
}
