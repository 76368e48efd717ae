//! A pod's volumes as folders of this machine.
//!
//! ConfigMaps are read when the pod starts and not again; Secrets are followed and service-account tokens renewed.
//! Persistent volume claims are refused by name: there is no storage here to bind them to.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, SecretVolumeSource, ServiceAccount,
    ServiceAccountTokenProjection, Volume,
};
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

use super::environment::field_value;
use super::machine::{ApiError, Machine};

/// Why a volume or a variable cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The API server refused, or does not have it.
    #[error("{kind} {name:?}: {source}")]
    Api {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The answer.
        source: ApiError,
    },
    /// The object lacks a key.
    #[error("{kind} {name:?} has no key {key:?}")]
    NoKey {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A host path that has to exist does not.
    #[error("hostPath {0} is not there")]
    NoHostPath(PathBuf),
    /// Something that the simulated node lacks.
    #[error("{what} is not supported on a simulated node; use {instead}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What works.
        instead: &'static str,
    },
}

/// How often Secrets are read again; a kubelet takes up to a minute and a half.
const SECRETS_EVERY: Duration = Duration::from_secs(1);

/// A pod's volumes by name, and what of them must be renewed.
#[derive(Debug, Default)]
pub struct Volumes {
    /// Folder of each volume.
    pub folders: BTreeMap<String, PathBuf>,
    renewed: Renewed,
}

#[derive(Debug, Default)]
struct Renewed {
    tokens: Vec<(PathBuf, ServiceAccountTokenProjection)>,
    secrets: Vec<(PathBuf, SecretVolumeSource)>,
}

/// Makes all volumes of a pod below `folder`.
///
/// # Errors
/// When something that a volume names is missing or not supported.
pub async fn prepare_volumes(
    machine: &Machine,
    pod: &Pod,
    folder: &Path,
    pod_ip: Ipv4Addr,
) -> Result<Volumes, InputError> {
    let mut volumes = Volumes::default();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let path = folder.join(&volume.name);
        let path = prepare(machine, pod, volume, path, pod_ip, &mut volumes.renewed).await?;
        volumes.folders.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

async fn prepare(
    machine: &Machine,
    pod: &Pod,
    volume: &Volume,
    path: PathBuf,
    pod_ip: Ipv4Addr,
    renewed: &mut Renewed,
) -> Result<PathBuf, InputError> {
    if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        // What is there keeps its mode and owner.
        if host.type_.as_deref() == Some("DirectoryOrCreate") && !path.exists() {
            make_folder(&path, 0o755)?;
        }
        return if path.exists() { Ok(path) } else { Err(InputError::NoHostPath(path)) };
    }
    // Anyone may write into an emptyDir: this is what the kubelet does.
    make_folder(&path, if volume.empty_dir.is_some() { 0o777 } else { 0o755 })?;
    let writer = Writer { machine, pod, folder: &path, pod_ip };
    if volume.empty_dir.is_some() {
    } else if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        writer.config_map(&source.name, source.items.as_deref(), optional, mode(source.default_mode)).await?;
    } else if let Some(source) = &volume.secret {
        writer.secret_volume(source).await?;
        renewed.secrets.push((path.clone(), source.clone()));
    } else if let Some(source) = &volume.downward_api {
        writer.downward_api(source.items.as_deref(), mode(source.default_mode))?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                writer.config_map(&source.name, source.items.as_deref(), optional, mode).await?;
            } else if let Some(source) = &source.secret {
                let optional = source.optional == Some(true);
                writer.secret(&source.name, source.items.as_deref(), optional, mode).await?;
            } else if let Some(source) = &source.downward_api {
                writer.downward_api(source.items.as_deref(), mode)?;
            } else if let Some(source) = &source.service_account_token {
                write_token(machine, pod, &path, source).await?;
                renewed.tokens.push((path.clone(), source.clone()));
            } else {
                return Err(unsupported_volume(volume));
            }
        }
    } else {
        return Err(unsupported_volume(volume));
    }
    Ok(path)
}

fn unsupported_volume(volume: &Volume) -> InputError {
    let kind = if volume.persistent_volume_claim.is_some() { "a persistentVolumeClaim" } else { "its kind" };
    InputError::Unsupported {
        what: format!("volume {:?}: {kind}", volume.name),
        instead: "emptyDir, hostPath, configMap, secret, downwardAPI or projected",
    }
}

/// Renews the pod's tokens and follows its Secrets for as long as it is polled.
pub async fn renew(machine: &Machine, pod: &Pod, volumes: &Volumes, pod_ip: Ipv4Addr) {
    tokio::join!(
        renew_tokens(machine, pod, &volumes.renewed.tokens),
        follow_secrets(machine, pod, &volumes.renewed.secrets, pod_ip),
    );
}

async fn renew_tokens(machine: &Machine, pod: &Pod, tokens: &[(PathBuf, ServiceAccountTokenProjection)]) {
    let shortest = tokens.iter().map(|(_, token)| lifetime(token)).min();
    let Some(shortest) = shortest else { return std::future::pending().await };
    loop {
        tokio::time::sleep(shortest * 4 / 5).await;
        for (folder, token) in tokens {
            if let Err(error) = write_token(machine, pod, folder, token).await {
                tracing::warn!(pod = pod.name_any(), %error, "a service account token could not be renewed");
            }
        }
    }
}

async fn follow_secrets(
    machine: &Machine,
    pod: &Pod,
    secrets: &[(PathBuf, SecretVolumeSource)],
    pod_ip: Ipv4Addr,
) {
    if secrets.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(SECRETS_EVERY).await;
        for (folder, source) in secrets {
            // What is gone or unreadable for a moment stays as it was.
            let written = Writer { machine, pod, folder, pod_ip }.secret_volume(source).await;
            if let Err(error) = written {
                tracing::debug!(pod = pod.name_any(), %error, "a Secret could not be read again");
            }
        }
    }
}

fn lifetime(token: &ServiceAccountTokenProjection) -> Duration {
    Duration::from_secs(token.expiration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(3600).max(600))
}

async fn write_token(
    machine: &Machine,
    pod: &Pod,
    folder: &Path,
    token: &ServiceAccountTokenProjection,
) -> Result<(), InputError> {
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".into());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(token.audience.iter().cloned().collect()),
            expiration_seconds: i64::try_from(lifetime(token).as_secs()).ok(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = machine.namespaced(pod);
    let answer = machine
        .call(accounts.create_token_request(&account, &PostParams::default(), &request))
        .await
        .map_err(|source| InputError::Api { kind: "ServiceAccount", name: account.clone(), source })?;
    let token_text = answer.status.and_then(|status| status.token).unwrap_or_default();
    write_file(folder, &token.path, token_text.as_bytes(), 0o644)
}

/// Writes files of one volume.
struct Writer<'a> {
    machine: &'a Machine,
    pod: &'a Pod,
    folder: &'a Path,
    pod_ip: Ipv4Addr,
}

impl Writer<'_> {
    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), InputError> {
        let data = fetch_config_map(self.machine, self.pod, name, optional).await?;
        self.write_keys("ConfigMap", name, &data, items, optional, mode)
    }

    async fn secret_volume(&self, source: &SecretVolumeSource) -> Result<(), InputError> {
        let name = source.secret_name.clone().unwrap_or_default();
        let optional = source.optional == Some(true);
        self.secret(&name, source.items.as_deref(), optional, mode(source.default_mode)).await
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), InputError> {
        let data = fetch_secret(self.machine, self.pod, name, optional).await?;
        self.write_keys("Secret", name, &data, items, optional, mode)
    }

    fn write_keys(
        &self,
        kind: &'static str,
        name: &str,
        data: &BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), InputError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return data.iter().try_for_each(|(key, value)| write_file(self.folder, key, value, mode));
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
                    write_file(self.folder, &item.path, value, mode)?;
                }
                None if optional => {}
                None => return Err(InputError::NoKey { kind, name: name.to_owned(), key: item.key.clone() }),
            }
        }
        Ok(())
    }

    fn downward_api(&self, items: Option<&[DownwardAPIVolumeFile]>, mode: u32) -> Result<(), InputError> {
        for item in items.unwrap_or_default() {
            let field = item.field_ref.as_ref().map(|field| field.field_path.as_str()).unwrap_or_default();
            let node_ip = self.machine.node_ip().to_string();
            let value =
                field_value(self.pod, field, &self.pod_ip.to_string(), &node_ip).ok_or_else(|| {
                    InputError::Unsupported {
                        what: format!("downwardAPI field {field:?}"),
                        instead: "a field of metadata, spec.nodeName or status.podIP",
                    }
                })?;
            write_file(self.folder, &item.path, value.as_bytes(), mode)?;
        }
        Ok(())
    }
}

/// The ConfigMap's data; nothing when it is optional and missing.
pub async fn fetch_config_map(
    machine: &Machine,
    pod: &Pod,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, Vec<u8>>, InputError> {
    let maps: Api<ConfigMap> = machine.namespaced(pod);
    match machine.call(maps.get(name)).await {
        Ok(map) => {
            let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
            let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
            Ok(text.chain(binary).collect())
        }
        Err(error) if optional && error.is_not_found() => Ok(BTreeMap::new()),
        Err(source) => Err(InputError::Api { kind: "ConfigMap", name: name.to_owned(), source }),
    }
}

/// The Secret's data; nothing when it is optional and missing.
pub async fn fetch_secret(
    machine: &Machine,
    pod: &Pod,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, Vec<u8>>, InputError> {
    let secrets: Api<Secret> = machine.namespaced(pod);
    match machine.call(secrets.get(name)).await {
        Ok(secret) => Ok(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()),
        Err(error) if optional && error.is_not_found() => Ok(BTreeMap::new()),
        Err(source) => Err(InputError::Api { kind: "Secret", name: name.to_owned(), source }),
    }
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}

fn make_folder(path: &Path, mode: u32) -> Result<(), InputError> {
    let file = |source| InputError::File { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(file)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(file)
}

/// Writes a file in one step, so that a reader never sees half of it.
fn write_file(folder: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), InputError> {
    let path = folder.join(name);
    let file = |source| InputError::File { path: path.clone(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(file)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, content).map_err(file)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).map_err(file)?;
    std::fs::rename(&new, &path).map_err(file)
}
