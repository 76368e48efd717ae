//! The cluster of `KUBECONFIG`: nothing is assumed of it but the AMD labels, and nothing of it is broken on purpose
//! except the model's own first pod.

use std::{net::TcpListener, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{
    super::{MODEL, NAMESPACE},
    Tools,
};
use crate::assets::Assets;

/// The tour on an existing cluster.
pub struct CurrentStage {
    tools: Tools,
    simulated: bool,
    forward: Option<Child>,
    cordoned: Option<String>,
}

impl CurrentStage {
    /// Takes the cluster of `KUBECONFIG` and installs the chart where the CRDs are missing.
    ///
    /// # Errors
    ///
    /// No kubeconfig, an unreachable cluster, or a chart that does not install.
    pub async fn connect() -> anyhow::Result<Self> {
        let kubeconfig = std::env::var_os("KUBECONFIG")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")))
            .filter(|path| path.is_file())
            .context("CLUSTER=current needs a kubeconfig: set KUBECONFIG to its path")?;
        let assets = Assets::find()?;
        let tools = Tools { kubectl: assets.kubectl.clone(), helm: assets.helm.clone(), kubeconfig };
        let labels = tools
            .kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}", "--request-timeout=10s"])
            .await?;
        if !labels.contains("amd.com/gpu") {
            bail!(
                "no node of this cluster has a label of the AMD node labeller (amd.com/gpu.vram): install the AMD GPU operator or device plugin and node labeller first"
            );
        }
        let installed =
            tools.kubectl(&["get", "crd", "atlasmodels.atlas.gillsystems.com", "-o", "name"]).await;
        if installed.is_err() {
            tools.install_chart(&[]).await?;
        }
        Ok(Self {
            tools,
            simulated: labels.contains("atlas.gillsystems.com/simulated"),
            forward: None,
            cordoned: None,
        })
    }

    pub(super) fn tools(&self) -> &Tools {
        &self.tools
    }

    pub(super) fn model_sample(&self) -> &'static str {
        if self.simulated { "atlasmodel-local.yaml" } else { "atlasmodel.yaml" }
    }

    /// Forwards a free local port to the Service.
    pub(super) async fn service_url(&mut self) -> anyhow::Result<String> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut child = Command::new(&self.tools.kubectl)
            .args(["port-forward", "-n", NAMESPACE, &format!("service/{MODEL}"), &format!("{port}:8080")])
            .env("KUBECONFIG", &self.tools.kubeconfig)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("port-forward has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        match first {
            Ok(Ok(Some(line))) if line.contains("Forwarding") => {}
            other => bail!("kubectl port-forward did not start: {other:?}"),
        }
        // Its further lines are read so that the pipe never fills.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.forward = Some(child);
        Ok(format!("http://127.0.0.1:{port}/v1"))
    }

    /// Cordons the node of the first tier's pod, so that it does not come back at once, and deletes the pod.
    pub(super) async fn lose_primary(&mut self) -> anyhow::Result<()> {
        let tier = self
            .tools
            .kubectl(&["get", "atlasmodel", "-n", NAMESPACE, MODEL, "-o", "jsonpath={.spec.tiers[0].name}"])
            .await?;
        let selector = format!("atlas.gillsystems.com/model={MODEL},atlas.gillsystems.com/tier={tier}");
        let found = self
            .tools
            .kubectl(&[
                "get",
                "pods",
                "-n",
                NAMESPACE,
                "-l",
                &selector,
                "-o",
                "jsonpath={.items[0].metadata.name} {.items[0].spec.nodeName}",
            ])
            .await?;
        let (pod, node) = found.split_once(' ').context("the first tier has no pod")?;
        self.tools.kubectl(&["cordon", node]).await?;
        self.cordoned = Some(node.to_owned());
        self.tools
            .kubectl(&["delete", "pod", "-n", NAMESPACE, pod, "--grace-period=0", "--force", "--wait=false"])
            .await?;
        Ok(())
    }

    pub(super) async fn return_primary(&mut self) -> anyhow::Result<()> {
        let node = self.cordoned.take().context("no node was cordoned")?;
        self.tools.kubectl(&["uncordon", &node]).await?;
        Ok(())
    }

    /// Ends the port-forward. The model stays: it is the user's cluster.
    pub(super) fn stop(self) {
        drop(self.forward);
        if let Some(node) = self.cordoned {
            eprintln!("the tour ended early: run `kubectl uncordon {node}`");
        }
    }
}
