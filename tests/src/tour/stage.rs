//! Where the tour plays: the local cluster, or the cluster that a kubeconfig names.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::process::Command;

use super::{MODEL, NAMESPACE};

mod current;
mod local;

pub use current::CurrentStage;
pub use local::LocalStage;

/// A place to play the tour.
pub enum Stage {
    /// The cluster that the tour made itself.
    Local(Box<LocalStage>),
    /// The cluster of `KUBECONFIG`.
    Current(Box<CurrentStage>),
}

impl Stage {
    fn tools(&self) -> &Tools {
        match self {
            Self::Local(stage) => stage.tools(),
            Self::Current(stage) => stage.tools(),
        }
    }

    /// The local cluster, where it is one.
    ///
    /// # Errors
    ///
    /// The tour plays on somebody's cluster.
    pub fn local(&mut self) -> anyhow::Result<&mut LocalStage> {
        match self {
            Self::Local(stage) => Ok(stage),
            Self::Current(_) => bail!("this needs the local cluster"),
        }
    }

    /// The kubeconfig to use by hand.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.tools().kubeconfig
    }

    /// The kubectl that the stage uses.
    #[must_use]
    pub fn kubectl_path(&self) -> &Path {
        &self.tools().kubectl
    }

    /// Runs the real kubectl and returns what it printed.
    ///
    /// # Errors
    ///
    /// It failed; the text is what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tools().kubectl(arguments).await
    }

    /// Applies an object with kubectl.
    ///
    /// # Errors
    ///
    /// kubectl could not be run or failed.
    pub async fn apply(&self, manifest: &serde_json::Value) -> anyhow::Result<()> {
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        serde_json::to_writer(file.as_file(), manifest)?;
        self.kubectl(&["apply", "-f", &file.path().display().to_string()]).await?;
        Ok(())
    }

    /// Path of a sample that applies everywhere.
    ///
    /// # Errors
    ///
    /// The file is missing.
    pub fn sample(&self, name: &str) -> anyhow::Result<String> {
        let path = samples().join(name);
        if !path.is_file() {
            bail!("{} is missing", path.display());
        }
        Ok(path.display().to_string())
    }

    /// Path of the AtlasModel sample: the real one, or the one whose model file the local cluster serves.
    ///
    /// # Errors
    ///
    /// The file is missing.
    pub fn model_sample(&self) -> anyhow::Result<String> {
        match self {
            Self::Local(_) => self.sample("atlasmodel-local.yaml"),
            Self::Current(stage) => self.sample(stage.model_sample()),
        }
    }

    /// Names of the sample's tiers in order of preference.
    ///
    /// # Errors
    ///
    /// kubectl failed.
    pub async fn tier_names(&self) -> anyhow::Result<Vec<String>> {
        let names = self
            .kubectl(&["get", "atlasmodel", "-n", NAMESPACE, MODEL, "-o", "jsonpath={.spec.tiers[*].name}"])
            .await?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// A URL on this machine that leads to the model's Service.
    ///
    /// # Errors
    ///
    /// The Service cannot be reached.
    pub async fn service_url(&mut self) -> anyhow::Result<String> {
        match self {
            Self::Local(stage) => stage.service_url().await,
            Self::Current(stage) => stage.service_url().await,
        }
    }

    /// What [`Self::lose_primary`] takes away, for people.
    #[must_use]
    pub fn fault_name(&self) -> &'static str {
        match self {
            Self::Local(_) => "The node of the Radeon RX 7900 XTX",
            Self::Current(_) => "The pod of the first tier",
        }
    }

    /// Takes the preferred tier away: the whole node on the local cluster, its pod on another's.
    ///
    /// # Errors
    ///
    /// The fault could not be injected.
    pub async fn lose_primary(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Local(stage) => stage.lose_primary().await,
            Self::Current(stage) => stage.lose_primary().await,
        }
    }

    /// Gives it back.
    ///
    /// # Errors
    ///
    /// It did not come back.
    pub async fn return_primary(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Local(stage) => stage.return_primary().await,
            Self::Current(stage) => stage.return_primary().await,
        }
    }

    /// Ends what the stage started.
    pub async fn stop(self) {
        match self {
            Self::Local(stage) => stage.stop().await,
            Self::Current(stage) => stage.stop(),
        }
    }
}

/// The command-line programs and the kubeconfig that a stage works with.
pub struct Tools {
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm.
    pub helm: PathBuf,
    /// What they authenticate with.
    pub kubeconfig: PathBuf,
}

impl Tools {
    async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(&self.kubectl, arguments).await
    }

    async fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(&self.helm, arguments).await
    }

    async fn run(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {}", program.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(stdout)
    }

    /// Installs the chart, which brings CRDs, rights and the controller; `more` are further arguments of helm.
    async fn install_chart(&self, more: &[&str]) -> anyhow::Result<()> {
        let chart = root().join("helm/atlas-operator").display().to_string();
        let mut arguments = vec![
            "upgrade",
            "--install",
            "atlas-operator",
            &chart,
            "--namespace",
            "atlas-system",
            "--create-namespace",
            "--wait",
            "--timeout",
            "180s",
        ];
        arguments.extend(more);
        self.helm(&arguments).await?;
        Ok(())
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn samples() -> PathBuf {
    root().join("deploy/samples")
}
