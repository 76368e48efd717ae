//! What can go wrong, in words that name the thing and the remedy.

use std::{error::Error, path::PathBuf};

use atlas_headers::HeaderError;
use atlas_operator_core::refusal;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// There is no way to the API server.
    #[error("no way to a cluster: set KUBECONFIG or --context; `plan -f FILE` needs none")]
    Connect(#[source] kube::config::KubeconfigError),
    /// The client could not be set up.
    #[error("the kubeconfig cannot be used")]
    Client(#[source] kube::Error),
    /// The API server refused.
    #[error("{what} cannot be read")]
    Read {
        /// What was asked for.
        what: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// The API server refused a change.
    #[error("{what} cannot be changed")]
    Write {
        /// What was to change.
        what: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// There is no such object.
    #[error("{what} does not exist{hint}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Those that exist.
        hint: String,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A manifest is none.
    #[error("{path}: document {number} is no valid {kind}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Which document, counted from 1.
        number: usize,
        /// What it says it is.
        kind: String,
        /// Why it is not.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// A manifest holds nothing to plan.
    #[error("{path} holds no {kind}")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        kind: &'static str,
    },
    /// A model has no such tier.
    #[error("there is no tier {tier:?}: use one of {}", known.join(", "))]
    UnknownTier {
        /// What was asked for.
        tier: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// A model source cannot be planned with.
    #[error("{uri}: {reason}")]
    Source {
        /// The source.
        uri: String,
        /// Why.
        reason: String,
    },
    /// No card holds a model.
    #[error("{uri} fits none of the cards that are left ({}): use a smaller model or quantization", tried.join(", "))]
    NoCard {
        /// The source.
        uri: String,
        /// The profiles that were tried.
        tried: Vec<String>,
    },
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up")]
    HttpClient(#[source] reqwest::Error),
    /// A server did not answer as it should.
    #[error("{url} does not answer as an OpenAI-compatible API does")]
    Http {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The reader of headers could not be set up.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The output cannot be written as JSON.
    #[error("the answer cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// The output cannot be written as YAML.
    #[error("the answer cannot be written as YAML")]
    Yaml(#[source] serde_yaml_ng::Error),
}

/// An error with its causes as one sentence: of the API server's answers the words, not the whole status.
#[must_use]
pub fn tell(error: &(dyn Error + 'static)) -> String {
    refusal::tell(error, |error| match error.downcast_ref() {
        Some(kube::Error::Api(status)) if status.code == 403 => {
            Some(format!("{}: ask whoever runs the cluster for this right", status.message))
        }
        Some(kube::Error::Api(status)) if status.code == 401 => {
            Some("the API server does not know who asks: renew the credentials of the kubeconfig".to_owned())
        }
        Some(kube::Error::Api(status)) => Some(status.message.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_missing_right_is_told_once_and_with_whom_to_ask() {
        let said = r#"gpuprofiles is forbidden: User "dev" cannot list resource "gpuprofiles""#;
        let source = kube::Error::Api(Status::failure(said, "Forbidden").with_code(403).boxed());
        let error = CliError::Read { what: "GpuProfiles".into(), source };
        assert_eq!(
            tell(&error),
            format!("GpuProfiles cannot be read: {said}: ask whoever runs the cluster for this right")
        );
    }
}
