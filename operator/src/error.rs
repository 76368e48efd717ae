//! What a reconcile can fail with, and when it is tried again.

use std::time::Duration;

use crate::apply::ApplyError;

/// When a failed reconcile is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Only a change can help.
    Never,
    /// Soon, and later each time.
    Backoff,
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The object has no namespace or uid, which the API server gives every stored one.
    #[error("AtlasModel {name} has no {field}: it was never stored")]
    NotStored {
        /// Its name.
        name: String,
        /// What is missing.
        field: &'static str,
    },
    /// An object could not be applied.
    #[error("apply failed")]
    Apply(#[source] ApplyError),
    /// The status could not be written.
    #[error("the status could not be written")]
    Status(#[source] kube::Error),
    /// An object could not be rendered.
    #[error("an object could not be rendered")]
    Render(#[source] crate::desired::RenderError),
    /// A pod on a lost node, or with another card, could not be deleted.
    #[error("pod {pod} could not be deleted")]
    DeletePod {
        /// Its name.
        pod: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

impl ReconcileError {
    /// The name of the error in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotStored { .. } => "not_stored",
            Self::Apply(_) => "apply",
            Self::Status(_) => "status",
            Self::Render(_) => "render",
            Self::DeletePod { .. } => "delete_pod",
        }
    }

    /// When to try again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotStored { .. } | Self::Render(_) => Retry::Never,
            // The object went away meanwhile; its deletion is its own event.
            Self::Status(kube::Error::Api(status)) if status.code == 404 => Retry::Never,
            Self::Apply(_) | Self::Status(_) | Self::DeletePod { .. } => Retry::Backoff,
        }
    }
}

/// The wait before try number `tries` (from 1): 200 ms doubling to 30 s.
#[must_use]
pub fn backoff(tries: u32) -> Duration {
    Duration::from_millis(200u64.saturating_mul(1 << tries.saturating_sub(1).min(12)))
        .min(Duration::from_secs(30))
}
