//! Lets a fault happen on the cluster, sees when traffic has moved, and puts right what was broken.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use rand::{RngExt, rngs::StdRng};
use serde_json::json;

use super::{
    Fault, PATIENCE, manifests,
    site::{Behind, CONTROLLERS, OPERATOR_NAMESPACE, Site, System},
};
use crate::{
    chaos::{engine::WORKER, stall::Stalled},
    lab::{FALLBACK_NODE, PRIMARY_NODE},
    support::wait_until,
    tour::{MODEL, NAMESPACE},
};
use atlas_crds::names;

/// A pod that the fault is done to.
#[derive(Debug, Clone)]
pub struct Victim {
    namespace: &'static str,
    pod: String,
    node: String,
    container: &'static str,
}

impl Site {
    /// Brings a gateway to the preferred engine's node, or every one away from there, by deleting one in the usual way.
    pub async fn place_gateway(&mut self, beside_the_engine: bool) -> anyhow::Result<()> {
        if self.system == System::Plain {
            return Ok(());
        }
        self.settled().await?;
        let behind = self.behind().await?;
        let on = |node: &str| behind.iter().find(|gateway| gateway.node == node);
        let leaves = match (beside_the_engine, on(PRIMARY_NODE)) {
            (true, Some(_)) | (false, None) => return Ok(()),
            (false, Some(gateway)) => gateway,
            (true, None) => on(FALLBACK_NODE).context("no gateway is where one can be spared")?,
        };
        // Two gateways never share a node and there are three, so the one that is closed decides.
        let closed = if beside_the_engine { FALLBACK_NODE } else { PRIMARY_NODE };
        self.set_cordon(closed, true).await?;
        let moved = self.replace_gateway(&leaves.pod, beside_the_engine).await;
        self.set_cordon(closed, false).await?;
        moved
    }

    async fn replace_gateway(&self, pod: &str, beside_the_engine: bool) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(self.kube.clone(), NAMESPACE);
        pods.delete(pod, &DeleteParams::default()).await?;
        let wanted = if beside_the_engine { "on" } else { "off" };
        wait_until(&format!("the gateways {wanted} {PRIMARY_NODE}"), PATIENCE, || async {
            let behind = self.behind().await.map_err(|error| format!("{error:#}"))?;
            let is_there = behind.iter().any(|gateway| gateway.node == PRIMARY_NODE);
            let moved = behind.len() == 2 && !behind.iter().any(|gateway| gateway.pod == pod);
            if moved && is_there == beside_the_engine { Ok(()) } else { Err(format!("{behind:?}")) }
        })
        .await?;
        Ok(())
    }

    async fn set_cordon(&self, node: &str, cordoned: bool) -> anyhow::Result<()> {
        let patch = json!({"spec": {"unschedulable": cordoned}});
        Api::<Node>::all(self.kube.clone())
            .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Whom the fault will be done to.
    pub async fn choose(&self, fault: Fault, random: &mut StdRng) -> anyhow::Result<Vec<Victim>> {
        match fault {
            Fault::GatewayKill => {
                let mut behind = self.behind().await?;
                ensure!(!behind.is_empty(), "the Service leads nowhere");
                let Behind { pod, node, .. } = behind.swap_remove(random.random_range(0..behind.len()));
                Ok(vec![Victim { namespace: NAMESPACE, pod, node, container: "gateway" }])
            }
            Fault::ControllerKill => self.running(OPERATOR_NAMESPACE, CONTROLLERS, "controller").await,
            _ => {
                let (namespace, selector) = match self.system {
                    System::Atlas => {
                        (NAMESPACE, format!("{}={MODEL},{}=primary", names::LABEL_MODEL, names::LABEL_TIER))
                    }
                    System::Plain => {
                        (manifests::PLAIN_NAME, format!("app={},card=primary", manifests::PLAIN_NAME))
                    }
                };
                self.running(namespace, &selector, "engine").await
            }
        }
    }

    async fn running(
        &self,
        namespace: &'static str,
        selector: &str,
        container: &'static str,
    ) -> anyhow::Result<Vec<Victim>> {
        let pods = Api::<Pod>::namespaced(self.kube.clone(), namespace);
        let pods = pods.list(&ListParams::default().labels(selector)).await?;
        let live = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let victims: Vec<Victim> = live
            .map(|pod| Victim {
                namespace,
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
                pod: pod.name_any(),
                container,
            })
            .collect();
        ensure!(!victims.is_empty(), "no pod in {namespace} has {selector}");
        Ok(victims)
    }

    /// Lets it happen.
    pub async fn inject(&mut self, fault: Fault, victims: &[Victim]) -> anyhow::Result<()> {
        let lab = self.stage.lab();
        match fault {
            Fault::NodeKill => lab.kill_node(PRIMARY_NODE).await?,
            Fault::NodeFreeze => lab.node(PRIMARY_NODE)?.freeze().await?,
            Fault::NetCut => lab.node(PRIMARY_NODE)?.partition().await?,
            Fault::EngineKill | Fault::GatewayKill | Fault::ControllerKill => {
                for victim in victims {
                    let node = lab.node(&victim.node)?;
                    node.crash_engine(victim.namespace, &victim.pod, victim.container).await?;
                }
            }
            Fault::GpuHang => {
                let victim = victims.first().context("no engine to hold")?;
                let node = lab.node(&victim.node)?;
                let processes = node.processes_of(victim.namespace, &victim.pod, victim.container).await?;
                self.stalled = Some(Stalled::stall(&processes, WORKER)?);
            }
            Fault::EngineCrash => bail!("{} is not played on the cluster", fault.id()),
        }
        Ok(())
    }

    /// Waits until new connections are served without meeting what was broken, and says since when they are.
    ///
    /// Where only an engine is lost, that is when the last gateway moved by its own record: a look at all of them takes up to
    /// 90 ms on the busy machine, and requests of that time met no fault. A lost gateway is met until the Service leaves it.
    pub async fn moved(&mut self, fault: Fault, victims: &[Victim]) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut moved = None;
            let seen = match self.system {
                System::Atlas => {
                    let views = self.views().await?;
                    if matches!(fault, Fault::EngineKill | Fault::GpuHang) {
                        moved = views.iter().map(|(_, view)| moved_at(view)).max().flatten();
                    }
                    // A lost engine's traffic goes to the fallback; a lost gateway is one that does not answer.
                    let fine = |view: &serde_json::Value| {
                        if fault == Fault::GatewayKill {
                            !view.is_null()
                        } else {
                            view["activeTier"] == "fallback"
                        }
                    };
                    let all_fine = !views.is_empty() && views.iter().all(|(_, view)| fine(view));
                    (!all_fine).then(|| format!("{views:?}"))
                }
                System::Plain => {
                    let behind = self.behind().await?;
                    let left = victims.iter().any(|victim| behind.iter().any(|b| b.pod == victim.pod));
                    left.then(|| format!("{behind:?}"))
                }
            };
            let Some(seen) = seen else { return Ok(moved.unwrap_or_else(Instant::now)) };
            ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for traffic to move: {seen}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts right what was broken. What was killed gets a fresh pod: the waits between restarts grow with each one.
    pub async fn repair(&mut self, fault: Fault, victims: &[Victim]) -> anyhow::Result<()> {
        self.stalled = None;
        let lab = self.stage.lab();
        match fault {
            Fault::NodeKill => lab.restore_node(PRIMARY_NODE).await?,
            Fault::NodeFreeze => lab.node(PRIMARY_NODE)?.thaw().await?,
            Fault::NetCut => lab.node(PRIMARY_NODE)?.heal().await?,
            // A card that hung is of no use any more: its engine is started anew, as its watchdog has it.
            Fault::EngineKill | Fault::GpuHang | Fault::GatewayKill | Fault::ControllerKill => {
                for victim in victims {
                    let pods = Api::<Pod>::namespaced(self.kube.clone(), victim.namespace);
                    pods.delete(&victim.pod, &DeleteParams::default())
                        .await
                        .with_context(|| format!("delete pod {}", victim.pod))?;
                }
            }
            Fault::EngineCrash => bail!("{} is not played on the cluster", fault.id()),
        }
        if fault == Fault::ControllerKill {
            let arguments = [
                "rollout",
                "status",
                "deployment/atlas-operator",
                "-n",
                OPERATOR_NAMESPACE,
                "--timeout=120s",
            ];
            let status = self.stage.lab().cluster().kubectl(&arguments).await?;
            ensure!(status.success, "the controllers do not come back: {}{}", status.stdout, status.stderr);
        }
        Ok(())
    }
}

/// When a gateway's traffic moved last, as its status tells.
fn moved_at(view: &serde_json::Value) -> Option<Instant> {
    let at: jiff::Timestamp = view["switches"].as_array()?.last()?["at"].as_str()?.parse().ok()?;
    let ago = jiff::Timestamp::now().duration_since(at);
    Instant::now().checked_sub(ago.try_into().ok()?)
}
