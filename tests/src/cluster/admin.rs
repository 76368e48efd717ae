//! The administrator's ways into an API server: a client, kubectl, the project's CRDs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};

use super::error::ClusterError;

/// How long the API server may take to serve a CRD.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(60);

/// What a run of kubectl gave.
#[derive(Debug, Clone)]
pub struct KubectlOutput {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether it ended with 0.
    pub success: bool,
}

/// Someone who may do everything, with the means to do it.
#[derive(Clone)]
pub(super) struct Admin {
    client: kube::Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Admin {
    /// `home` is where kubectl keeps its caches: never the user's, since another cluster may have had our port.
    pub(super) async fn new(
        kubectl: PathBuf,
        kubeconfig: PathBuf,
        home: PathBuf,
    ) -> Result<Self, ClusterError> {
        let failed = |source| ClusterError::Kubeconfig { path: kubeconfig.clone(), source };
        let parsed = Kubeconfig::read_from(&kubeconfig).map_err(failed)?;
        let config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .map_err(failed)?;
        let client = kube::Client::try_from(config).map_err(ClusterError::api("build a client"))?;
        Ok(Self { client, kubectl, kubeconfig, home })
    }

    pub(super) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub(super) fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// Ready means that it says so and that the namespace `default` is there, which comes a moment later.
    pub(super) async fn is_ready(&self) -> Result<(), String> {
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
        self.client.request_text(request).await.map_err(|error| error.to_string())?;
        let namespaces = Api::<Namespace>::all(self.client());
        namespaces.get("default").await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Whether the controllers make what every namespace needs: bare pods are refused without this account.
    pub(super) async fn has_default_account(&self) -> Result<(), String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
        accounts.get("default").await.map(|_| ()).map_err(|error| error.to_string())
    }

    pub(super) async fn kubectl(&self, arguments: &[&str]) -> Result<KubectlOutput, ClusterError> {
        let output = tokio::process::Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(ClusterError::io(format!("run {}", self.kubectl.display())))?;
        Ok(KubectlOutput {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            success: output.status.success(),
        })
    }

    pub(super) async fn apply_crds(&self) -> Result<(), ClusterError> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
        let read = || format!("read {}", folder.display());
        let api = Api::<CustomResourceDefinition>::all(self.client());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(ClusterError::io(read()))? {
            let path = entry.map_err(ClusterError::io(read()))?.path();
            let text = std::fs::read_to_string(&path).map_err(ClusterError::io(read()))?;
            let crd: CustomResourceDefinition = serde_yaml_ng::from_str(&text)
                .map_err(|source| ClusterError::Manifest { path: path.clone(), source })?;
            let name = crd.metadata.name.clone().unwrap_or_default();
            api.patch(&name, &PatchParams::apply("atlas-tests").force(), &Patch::Apply(&crd))
                .await
                .map_err(ClusterError::api(format!("apply {}", path.display())))?;
            names.push(name);
        }
        for name in names {
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            let seconds = ESTABLISH_TIMEOUT.as_secs();
            let not_ready = |last: String| ClusterError::NotReady {
                program: format!("the CRD {name}"),
                seconds,
                last,
                log: String::new(),
            };
            match tokio::time::timeout(ESTABLISH_TIMEOUT, established).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(not_ready(error.to_string())),
                Err(_) => return Err(not_ready("not established".into())),
            }
        }
        Ok(())
    }
}
