//! What sources ask for before they answer, from the Secret that a tier names: into its pods' environment, and to the
//! reader of headers where the operator may read Secrets.
//!
//! Values are never shown; names of Secrets and keys are.

use std::{fmt, time::Duration};

use atlas_crds::{ModelSource, model::ModelFile};
use atlas_headers::{Ask, Pass, place_of};
use atlas_s3::{ACCESS_KEY_ID, Credentials, SECRET_ACCESS_KEY, SESSION_TOKEN};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::{Value, json};

/// Longest wait for a Secret.
const PATIENCE: Duration = Duration::from_secs(5);
/// Key of a Secret with a token of the hub.
const HUB_TOKEN: &str = "HF_TOKEN";

/// A model file as somebody asks for it: two that differ in any of it may be different files, or one may be closed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The file.
    pub file: ModelFile,
    /// The namespace whose Secret is meant; empty where none is named.
    pub namespace: String,
}

impl Wanted {
    /// A tier's file in a namespace. What does not change the answer is left out, so that it is read once.
    #[must_use]
    pub fn of(namespace: &str, file: &ModelFile) -> Self {
        let namespace = file.credentials_secret.as_ref().map_or_else(String::new, |_| namespace.to_owned());
        Self { file: ModelFile { sha256: None, ..file.clone() }, namespace }
    }
}

/// Why a Secret does not help.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The operator may not read Secrets.
    #[error(
        "the operator reads no Secrets, so {secret} is the engine's alone: set headers.readSecrets of the chart to have its header read before"
    )]
    NotAllowed {
        /// Namespace and name.
        secret: SecretName,
    },
    /// There is none.
    #[error("Secret {secret} does not exist: create it with {keys}")]
    Missing {
        /// Namespace and name.
        secret: SecretName,
        /// What it has to hold.
        keys: &'static str,
    },
    /// It lacks a key.
    #[error("Secret {secret} has no key {key}, or an empty one: add it")]
    NoKey {
        /// Namespace and name.
        secret: SecretName,
        /// The key.
        key: &'static str,
    },
    /// The API server did not answer, or refused.
    #[error("Secret {secret} could not be read")]
    Read {
        /// Namespace and name.
        secret: SecretName,
        /// Its answer; none where it did not come in time.
        #[source]
        source: Option<kube::Error>,
    },
}

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(pub String, pub String);

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// The keys that a source wants of its Secret, for people.
#[must_use]
pub const fn wanted_keys(source: &ModelSource) -> &'static str {
    match source {
        ModelSource::S3 { .. } => "the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ModelSource::HuggingFace { .. } | ModelSource::Http(_) | ModelSource::File(_) => "the key HF_TOKEN",
    }
}

/// The environment of whoever fetches a file: the Secret's keys by name, and no others of it.
#[must_use]
pub fn build_environment(source: &ModelSource, secret: Option<&str>) -> Vec<Value> {
    let Some(secret) = secret else { return Vec::new() };
    let keys: &[(&str, bool)] = match source {
        ModelSource::S3 { .. } => {
            &[(ACCESS_KEY_ID, false), (SECRET_ACCESS_KEY, false), (SESSION_TOKEN, true)]
        }
        ModelSource::HuggingFace { .. } => &[(HUB_TOKEN, false)],
        ModelSource::Http(_) | ModelSource::File(_) => &[],
    };
    let variable = |(key, optional): &(&str, bool)| {
        let mut reference = json!({"name": secret, "key": key});
        if *optional {
            reference["optional"] = true.into();
        }
        json!({"name": key, "valueFrom": {"secretKeyRef": reference}})
    };
    keys.iter().map(variable).collect()
}

/// Reads what a file's source asks for.
///
/// # Errors
///
/// The Secret may not or cannot be read, or lacks something.
pub async fn read_ask(
    wanted: &Wanted,
    source: ModelSource,
    secrets: Option<&Client>,
) -> Result<Ask, SecretError> {
    let place = place_of(wanted.file.s3.as_ref());
    let Some(name) = &wanted.file.credentials_secret else {
        return Ok(Ask { source, place, pass: Pass::None });
    };
    let secret = || SecretName(wanted.namespace.clone(), name.clone());
    let Some(client) = secrets else { return Err(SecretError::NotAllowed { secret: secret() }) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &wanted.namespace);
    let found = match tokio::time::timeout(PATIENCE, api.get_opt(name)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(SecretError::Read { secret: secret(), source: Some(error) }),
        Err(_) => return Err(SecretError::Read { secret: secret(), source: None }),
    };
    let Some(found) = found else {
        return Err(SecretError::Missing { secret: secret(), keys: wanted_keys(&source) });
    };
    let data = found.data.unwrap_or_default();
    let lookup = |key: &str| {
        let text = std::str::from_utf8(&data.get(key)?.0).ok()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let no_key = |key| SecretError::NoKey { secret: secret(), key };
    let pass = match &source {
        ModelSource::S3 { .. } => {
            let read = Credentials::read(lookup).map_err(|missing| no_key(missing.0))?;
            Pass::S3(read.ok_or_else(|| no_key(ACCESS_KEY_ID))?)
        }
        _ => Pass::Token(lookup(HUB_TOKEN).ok_or_else(|| no_key(HUB_TOKEN))?),
    };
    Ok(Ask { source, place, pass })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_the_keys_of_their_source_and_no_others() {
        let names = |source: &str, secret: Option<&str>| {
            let environment = build_environment(&source.parse().unwrap(), secret);
            let name = |variable: &Value| {
                let reference = &variable["valueFrom"]["secretKeyRef"];
                assert_eq!((&reference["name"], &reference["key"]), (&json!("s"), &variable["name"]));
                let optional = if reference["optional"] == true { "?" } else { "" };
                format!("{}{optional}", variable["name"].as_str().unwrap())
            };
            environment.iter().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("hf://o/r/f", Some("s")), "HF_TOKEN");
        assert_eq!(
            names("s3://b/k", Some("s")),
            "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN?"
        );
        assert_eq!(names("https://h/f", Some("s")), "");
        assert_eq!(names("hf://o/r/f", None), "");
    }

    #[test]
    fn files_that_are_read_alike_are_read_once_and_secrets_belong_to_their_namespace() {
        let file = |secret: Option<&str>, sha256: Option<&str>| ModelFile {
            source: "hf://o/r/f".into(),
            sha256: sha256.map(str::to_owned),
            credentials_secret: secret.map(str::to_owned),
            s3: None,
        };
        assert_eq!(Wanted::of("a", &file(None, Some("1"))), Wanted::of("b", &file(None, None)));
        assert_ne!(Wanted::of("a", &file(Some("s"), None)), Wanted::of("b", &file(Some("s"), None)));
        assert_ne!(Wanted::of("a", &file(Some("s"), None)), Wanted::of("a", &file(None, None)));
    }
}
