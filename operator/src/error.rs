//! What a reconcile can fail with, what the API server refuses for good, and when it is tried again.

use std::{error::Error, time::Duration};

use atlas_operator_core::refusal;
use kube::runtime::watcher;

/// Characters of a refusal that are told, at most.
const MAX_SAID: usize = 1024;

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused or did not answer a read.
    #[error("{kind} {name} could not be read")]
    Read {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// The API server refused or did not answer a write.
    #[error("{kind} {name} could not be applied")]
    Write {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// A leftover could not be deleted.
    #[error("{kind} {name} could not be deleted")]
    Delete {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

impl ApplyError {
    fn parts(&self) -> (&'static str, &str, &kube::Error) {
        match self {
            Self::Read { kind, name, source }
            | Self::Write { kind, name, source }
            | Self::Delete { kind, name, source } => (kind, name, source),
        }
    }

    /// Whether the namespace is being deleted: nothing new is let into it, and all of it goes.
    #[must_use]
    pub fn is_of_ending_namespace(&self) -> bool {
        is_of_ending_namespace(self.parts().2)
    }

    /// What is refused, where asking again changes nothing until somebody changes a policy, a quota or a right.
    #[must_use]
    pub fn refusal(&self) -> Option<RefusedWrite> {
        let (kind, name, source) = self.parts();
        let kube::Error::Api(status) = source else { return None };
        let by_webhook = ["failed calling webhook", "denied the request"];
        let refused = matches!(status.code, 400 | 403 | 405 | 413 | 422)
            || by_webhook.iter().any(|words| status.message.contains(words));
        let leftover = matches!(self, Self::Delete { .. });
        let deletion = if leftover { "the deletion of " } else { "" };
        (refused && !self.is_of_ending_namespace()).then(|| RefusedWrite {
            object: format!("{deletion}{kind}/{name}"),
            leftover,
            said: status.message.chars().take(MAX_SAID).collect(),
        })
    }
}

/// Whether the API server takes nothing more into a namespace that is being deleted.
#[must_use]
pub fn is_of_ending_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// An object that the API server does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedWrite {
    /// The object, as `Kind/name`.
    pub object: String,
    /// The API server's reason.
    pub said: String,
    /// Whether it is one that should go, and keeps nothing from working.
    pub leftover: bool,
}

/// When a failed reconcile is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Only a change can help.
    Never,
    /// Soon, and later each time.
    Backoff,
    /// Never, and nobody has to look: the object is gone, or its namespace goes with everything in it.
    Gone,
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
    /// The API server refuses an object, which the status tells.
    #[error("the API server refuses {}: {}", .0.object, .0.said)]
    Refused(RefusedWrite),
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
            Self::Refused(_) => "refused",
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
            Self::Status(kube::Error::Api(status)) if status.code == 404 => Retry::Gone,
            Self::Apply(error) if error.is_of_ending_namespace() => Retry::Gone,
            Self::Apply(_) | Self::Refused(_) | Self::Status(_) | Self::DeletePod { .. } => Retry::Backoff,
        }
    }
}

/// An error with its causes as log lines tell it: of the API server's answers the words, not the whole status.
#[must_use]
pub fn tell(error: &(dyn Error + 'static)) -> String {
    refusal::tell(error, |error| match (error.downcast_ref(), error.downcast_ref()) {
        (Some(kube::Error::Api(status)), _) => Some(status.message.clone()),
        (_, Some(watcher::Error::InitialListFailed(source))) => Some(format!("no list: {}", tell(source))),
        (_, Some(watcher::Error::WatchStartFailed(source) | watcher::Error::WatchFailed(source))) => {
            Some(format!("no watch: {}", tell(source)))
        }
        _ => None,
    })
}

/// The wait before try number `tries` (from 1): 200 ms doubling to 30 s.
#[must_use]
pub fn backoff(tries: u32) -> Duration {
    Duration::from_millis(200u64.saturating_mul(1 << tries.saturating_sub(1).min(12)))
        .min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn an_answer_of_the_api_server_is_told_in_its_words_alone() {
        let forbidden = || {
            kube::Error::Api(
                Status::failure("pods is forbidden: User \"a\"", "Forbidden").with_code(403).boxed(),
            )
        };
        let error = ReconcileError::Apply(ApplyError::Write {
            kind: "Deployment",
            name: "a".into(),
            source: forbidden(),
        });
        assert_eq!(
            tell(&error),
            "apply failed: Deployment a could not be applied: pods is forbidden: User \"a\""
        );
        assert_eq!(
            tell(&watcher::Error::InitialListFailed(forbidden())),
            "no list: pods is forbidden: User \"a\""
        );
    }
}
