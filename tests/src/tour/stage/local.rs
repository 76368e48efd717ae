//! The cluster that the tour makes itself, with the operator installed from the chart.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    super::{
        MODEL, NAMESPACE,
        report::{Report, Screen, step},
    },
    Tools,
};
use crate::{
    cluster::net::CONTROL_PLANE_IP,
    lab::{Lab, PRIMARY_NODE},
};

/// The tour on a local cluster.
pub struct LocalStage {
    lab: Lab,
    tools: Tools,
    url: Option<String>,
}

impl LocalStage {
    /// Starts the control plane and the nodes and installs the chart; `models` are files that the model server has
    /// besides the sample's.
    ///
    /// # Errors
    ///
    /// The first of these that does not come up.
    pub async fn start(
        screen: &Screen,
        report: &mut Report,
        models: BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<Self> {
        screen.heading("A cluster on this machine");
        let mut lab = step(
            screen,
            report,
            "control plane up (etcd, API server, controllers, scheduler, proxy)",
            Lab::start(models),
        )
        .await?;
        step(screen, report, "three nodes registered", lab.add_nodes()).await?;
        let tools = Tools {
            kubectl: lab.cluster().assets().kubectl.clone(),
            helm: lab.cluster().assets().helm.clone(),
            kubeconfig: lab.cluster().kubeconfig_path().to_owned(),
        };
        let nodes = ["get", "nodes", "-L", "amd.com/gpu.product-name,amd.com/gpu.vram,amd.com/gpu.cu-count"];
        screen.detail(&tools.kubectl(&nodes).await?);
        let stage = Self { lab, tools, url: None };
        step(screen, report, "helm install: CRDs, rights, controller Ready", stage.install(&[])).await?;
        Ok(stage)
    }

    /// Installs the chart, or installs it anew with these values of it.
    ///
    /// # Errors
    ///
    /// What helm says.
    pub async fn install(&self, values: &[&str]) -> anyhow::Result<()> {
        // The models' address is private, so the controller may read headers from it only where that is allowed.
        let models = format!("headers.allowAddresses={{{CONTROL_PLANE_IP}/32}}");
        let more: Vec<&str> = [models.as_str()]
            .into_iter()
            .chain(values.iter().copied())
            .flat_map(|value| ["--set", value])
            .collect();
        self.tools.install_chart(&more).await
    }

    /// The cluster, for what the tour does not show.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    pub(super) fn tools(&self) -> &Tools {
        &self.tools
    }

    pub(super) async fn service_url(&mut self) -> anyhow::Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let address = self.lab.cluster().relay_service(NAMESPACE, MODEL, 8080).await?;
        Ok(self.url.insert(format!("http://{address}/v1")).clone())
    }

    pub(super) async fn lose_primary(&mut self) -> anyhow::Result<()> {
        self.lab.kill_node(PRIMARY_NODE).await
    }

    pub(super) async fn return_primary(&mut self) -> anyhow::Result<()> {
        self.lab.restore_node(PRIMARY_NODE).await
    }

    /// Ends the cluster.
    pub async fn stop(self) {
        self.lab.stop().await;
    }
}
