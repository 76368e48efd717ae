//! Finds the programs of the control plane on this machine.
//!
//! In this order: the folder `KUBEBUILDER_ASSETS`, the cache folder that `make setup` fills, then PATH where the
//! version will do. It deliberately builds and fetches nothing: `make setup` does, and says what and why.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// The oldest Kubernetes minor version whose programs are taken from PATH.
const OLDEST_MINOR: u32 = 33;

/// The programs, each by its path.
#[derive(Debug, Clone)]
pub struct Assets {
    /// The store behind the API server.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// Deployments, EndpointSlices, node lifecycle, garbage collection.
    pub kube_controller_manager: PathBuf,
    /// The scheduler.
    pub kube_scheduler: PathBuf,
    /// ClusterIPs, by nftables.
    pub kube_proxy: PathBuf,
    /// The command line.
    pub kubectl: PathBuf,
    /// The chart's installer.
    pub helm: PathBuf,
    /// Logs and port-forward of a simulated node; the project's own, so it is only in the cache.
    pub kubelet_port: PathBuf,
}

/// What could not be found.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// Programs are missing.
    #[error(
        "{} not found in KUBEBUILDER_ASSETS, in {} or (Kubernetes 1.{OLDEST_MINOR} or later) on PATH; run `make setup`",
        programs.join(", "),
        cache.display()
    )]
    Missing {
        /// Their names.
        programs: Vec<&'static str>,
        /// The folder of the cache that would hold them.
        cache: PathBuf,
    },
    /// The Go module that names the cache folder cannot be read.
    #[error("cannot read the control plane's Go module {}", path.display())]
    Module {
        /// Its folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Assets {
    /// Finds all programs.
    ///
    /// # Errors
    /// Names every program that is missing, with the command that mends it.
    pub fn find() -> Result<Self, AssetsError> {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("controlplane");
        let key = module_key(&module).map_err(|source| AssetsError::Module { path: module, source })?;
        let cache = cache_folder().join("kube").join(key);
        let ready_made = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut missing = Vec::new();
        let mut find = |name: &'static str| {
            let found = ready_made
                .iter()
                .chain([&cache])
                .map(|folder| folder.join(name))
                .find(|program| is_executable(program))
                .or_else(|| find_on_path(name, std::env::split_paths(&path)));
            found.unwrap_or_else(|| {
                missing.push(name);
                PathBuf::new()
            })
        };
        let assets = Self {
            etcd: find("etcd"),
            kube_apiserver: find("kube-apiserver"),
            kube_controller_manager: find("kube-controller-manager"),
            kube_scheduler: find("kube-scheduler"),
            kube_proxy: find("kube-proxy"),
            kubectl: find("kubectl"),
            helm: find("helm"),
            kubelet_port: find("kubelet-port"),
        };
        if missing.is_empty() { Ok(assets) } else { Err(AssetsError::Missing { programs: missing, cache }) }
    }
}

/// The project's cache folder: `$ATLAS_CACHE`, else `$XDG_CACHE_HOME/atlas-operator`, else `~/.cache/atlas-operator`.
pub fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("ATLAS_CACHE").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .unwrap_or_else(|| set("HOME").unwrap_or_else(|| "/root".into()).join(".cache"))
            .join("atlas-operator")
    })
}

/// The same as `cat go.mod go.sum *.go | sha256sum | cut -c1-16`, which is what the set-up script computes.
fn module_key(module: &Path) -> std::io::Result<String> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(module)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            sources.push(path);
        }
    }
    sources.sort();
    let mut hash = Sha256::new();
    for path in [module.join("go.mod"), module.join("go.sum")].iter().chain(&sources) {
        hash.update(std::fs::read(path)?);
    }
    let mut key = hex::encode(hash.finalize());
    key.truncate(16);
    Ok(key)
}

fn find_on_path(name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let arguments: &[&str] = match name {
        "kubectl" => &["version", "--client"],
        "helm" => &["version", "--short"],
        // The project's own program: whatever has its name on PATH is something else.
        "kubelet-port" => return None,
        _ => &["--version"],
    };
    folders.map(|folder| folder.join(name)).filter(|program| is_executable(program)).find(|program| {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
        output.is_ok_and(|output| {
            output.status.success() && is_recent(name, &String::from_utf8_lossy(&output.stdout))
        })
    })
}

/// Whether a program's own words about its version name a release that the cluster runs with.
fn is_recent(name: &str, version: &str) -> bool {
    match name {
        "etcd" => version.contains("etcd Version: 3."),
        "helm" => version.starts_with("v3.") || version.starts_with("v4."),
        _ => {
            let minor = version.split("v1.").nth(1).and_then(|rest| rest.split('.').next());
            minor.and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|minor| minor >= OLDEST_MINOR)
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recent_releases_are_taken_from_path() {
        for (name, version, expected) in [
            ("kubectl", "Client Version: v1.36.3\nKustomize Version: v5.8.1\n", true),
            ("kube-apiserver", "Kubernetes v1.33.0\n", true),
            ("kube-apiserver", "Kubernetes v1.32.9\n", false),
            ("kubectl", "usage: kubectl TOOL\n", false),
            ("etcd", "etcd Version: 3.6.8\nGit SHA: x\n", true),
            ("etcd", "etcd Version: 2.3.0\n", false),
            ("helm", "v4.0.1+g1\n", true),
        ] {
            assert_eq!(is_recent(name, version), expected, "{name}: {version}");
        }
    }
}
