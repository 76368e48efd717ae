//! What stands on the cluster: who is behind the Service, what the gateways say, and when all is well.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use super::{Fault, PATIENCE, manifests};
use crate::{
    chaos::{ask::Door, engine::request_over, stall::Stalled},
    support::wait_until,
    tour::{MODEL, NAMESPACE, stage::LocalStage},
};
use atlas_crds::names;

/// Where the chart is installed.
pub const OPERATOR_NAMESPACE: &str = "atlas-system";
/// Label that the chart gives its controllers.
pub const CONTROLLERS: &str = "app.kubernetes.io/component=controller";

/// How long a gateway may take to say what it sees.
const STATUS_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a controller may take; nothing is measured meanwhile.
const METRICS_TIMEOUT: Duration = Duration::from_secs(3);

/// What serves the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// The operator.
    Atlas,
    /// A Service over two Deployments.
    Plain,
}

impl System {
    /// Its Service's namespace and name.
    fn service(self) -> (&'static str, &'static str) {
        match self {
            Self::Atlas => (NAMESPACE, MODEL),
            Self::Plain => (manifests::PLAIN_NAME, manifests::PLAIN_NAME),
        }
    }

    /// Whether it has what the fault breaks.
    #[must_use]
    pub fn can_play(self, fault: Fault) -> bool {
        self == Self::Atlas || !matches!(fault, Fault::GatewayKill | Fault::ControllerKill)
    }
}

/// A pod that the Service leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Its name.
    pub pod: String,
    /// Its node.
    pub node: String,
    ip: IpAddr,
}

/// Sums over every gateway that was heard.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Attempts made again.
    pub retried: u64,
    /// Streams that went on elsewhere.
    pub resumed: u64,
    /// Gateways that a controller held to be lost and deleted.
    pub deleted: u64,
}

/// The cluster and what is deployed on it.
pub struct Site {
    pub(super) stage: LocalStage,
    pub(super) kube: kube::Client,
    pub(super) system: System,
    /// The thread that stands still because its card is said to hang.
    pub(super) stalled: Option<Stalled>,
    /// What each gateway and controller said last; one that was killed says nothing more.
    counts: Mutex<BTreeMap<String, Counts>>,
}

impl Site {
    /// A cluster on which nothing is deployed yet.
    pub fn new(mut stage: LocalStage) -> Self {
        let kube = stage.lab().cluster().client();
        Self { stage, kube, system: System::Atlas, stalled: None, counts: Mutex::default() }
    }

    /// Whether gateways stand before the engines.
    pub fn has_gateways(&self) -> bool {
        self.system == System::Atlas
    }

    /// Deploys one of the two, waits until all of it is well, and says where clients connect to.
    pub async fn deploy(&mut self, system: System) -> anyhow::Result<Door> {
        self.system = system;
        let manifest = match system {
            System::Atlas => manifests::atlas(),
            System::Plain => manifests::plain(),
        };
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        serde_json::to_writer(file.as_file(), &manifest)?;
        let applied =
            self.stage.lab().cluster().kubectl(&["apply", "-f", &file.path().display().to_string()]).await?;
        ensure!(applied.success, "kubectl apply: {}", applied.stderr);
        self.settled().await?;
        let (namespace, name) = system.service();
        let service = Api::<Service>::namespaced(self.kube.clone(), namespace).get(name).await?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no ClusterIP")?;
        let address = SocketAddr::from((ip.parse::<Ipv4Addr>()?, names::GATEWAY_PORT));
        Ok(Door::service(self.stage.lab().cluster().net().control_plane().clone(), address))
    }

    /// Deletes the model and waits until its engines have left their cards.
    pub async fn remove_atlas(&mut self) -> anyhow::Result<()> {
        let delete = ["delete", "atlasmodel", "-n", NAMESPACE, MODEL, "--timeout=60s"];
        let deleted = self.stage.lab().cluster().kubectl(&delete).await?;
        ensure!(deleted.success, "kubectl delete: {}", deleted.stderr);
        let pods = Api::<Pod>::namespaced(self.kube.clone(), NAMESPACE);
        wait_until("the model's pods to be gone", PATIENCE, || async {
            match pods.list(&ListParams::default()).await {
                Ok(left) if left.items.is_empty() => Ok(()),
                Ok(left) => Err(left.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>().join(", ")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        Ok(())
    }

    /// The ready pods behind the Service, as its EndpointSlices have them now.
    pub async fn behind(&self) -> anyhow::Result<Vec<Behind>> {
        let (namespace, name) = self.system.service();
        let slices = Api::<EndpointSlice>::namespaced(self.kube.clone(), namespace);
        let selector = format!("kubernetes.io/service-name={name}");
        let slices = slices.list(&ListParams::default().labels(&selector)).await?;
        let endpoints = slices.items.into_iter().filter_map(|slice| slice.endpoints).flatten();
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        ready
            .map(|endpoint| {
                let pod = endpoint.target_ref.and_then(|target| target.name);
                let ip = endpoint.addresses.first().context("an endpoint without an address")?.parse()?;
                Ok(Behind {
                    pod: pod.context("an endpoint without a pod")?,
                    node: endpoint.node_name.unwrap_or_default(),
                    ip,
                })
            })
            .collect()
    }

    /// What every gateway behind the Service says of the model; `Null` of one that does not answer.
    pub async fn views(&mut self) -> anyhow::Result<Vec<(Behind, Value)>> {
        let behind = self.behind().await?;
        let views = behind.into_iter().map(|gateway| {
            let netns = self.stage.lab().cluster().net().control_plane().clone();
            async move {
                let ask = async {
                    let address = SocketAddr::from((gateway.ip, names::GATEWAY_INTERNAL_PORT));
                    let stream = netns.connect(address).await.ok()?;
                    let (_, body) = request_over(stream, "GET", "/internal/status", "").await?;
                    serde_json::from_slice::<Value>(&body).ok()
                };
                let answer = tokio::time::timeout(STATUS_TIMEOUT, ask).await.ok().flatten();
                (gateway, answer.map_or(Value::Null, |status| status["models"][0].clone()))
            }
        });
        let views = futures::future::join_all(views.collect::<Vec<_>>()).await;
        let counts = self.counts.get_mut().expect("no holder panics");
        for (gateway, view) in &views {
            let count = |name: &str| view["requests"][name].as_u64();
            if let (Some(retried), Some(resumed)) = (count("retried"), count("resumed")) {
                counts.insert(gateway.pod.clone(), Counts { retried, resumed, deleted: 0 });
            }
        }
        Ok(views)
    }

    /// Asks the controllers how many gateways they deleted because they were silent.
    pub async fn hear_controllers(&mut self) -> anyhow::Result<()> {
        const METRIC: &str = "atlas_silent_gateways_deleted_total ";
        let pods = Api::<Pod>::namespaced(self.kube.clone(), OPERATOR_NAMESPACE);
        let pods = pods.list(&ListParams::default().labels(CONTROLLERS)).await?;
        for pod in pods.items {
            let Some(ip) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else { continue };
            let netns = self.stage.lab().cluster().net().control_plane().clone();
            let ask = async {
                let stream =
                    netns.connect(SocketAddr::new(ip.parse().ok()?, names::CONTROLLER_PORT)).await.ok()?;
                let (_, body) = request_over(stream, "GET", "/metrics", "").await?;
                let text = String::from_utf8(body).ok()?;
                text.lines().find_map(|line| line.strip_prefix(METRIC))?.trim().parse::<u64>().ok()
            };
            // One that does not answer was heard the last time.
            if let Ok(Some(deleted)) = tokio::time::timeout(METRICS_TIMEOUT, ask).await {
                let counts = self.counts.get_mut().expect("no holder panics");
                counts.insert(pod.name_any(), Counts { deleted, ..Counts::default() });
            }
        }
        Ok(())
    }

    /// What the controllers wrote of silent gateways.
    pub async fn told_of_gateways(&mut self) -> anyhow::Result<String> {
        let logs = ["logs", "-n", OPERATOR_NAMESPACE, "-l", CONTROLLERS, "--prefix", "--tail=5000"];
        let logs = self.stage.lab().cluster().kubectl(&logs).await?;
        let lines = logs.stdout.lines().filter(|line| line.contains("silent gateway"));
        Ok(lines.map(|line| format!("    {line}\n")).collect())
    }

    /// What gateways and controllers counted, as far as it was heard.
    pub fn counts(&self) -> Counts {
        let counts = self.counts.lock().expect("no holder panics");
        counts.values().fold(Counts::default(), |sum, count| Counts {
            retried: sum.retried + count.retried,
            resumed: sum.resumed + count.resumed,
            deleted: sum.deleted + count.deleted,
        })
    }

    /// Waits until both engines are well and everybody knows: with gateways, that the preferred tier serves.
    pub async fn settled(&mut self) -> anyhow::Result<()> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let missing = match self.system {
                System::Atlas => unsettled(&self.views().await?),
                System::Plain => {
                    let behind = self.behind().await?;
                    (behind.len() != 2).then(|| format!("ready: {behind:?}"))
                }
            };
            let Some(missing) = missing else { return Ok(()) };
            ensure!(
                std::time::Instant::now() < deadline,
                "waited {PATIENCE:?} for everything to be well: {missing}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether the other engine can go on with a broken stream: its internal port then knows the API's paths.
    pub async fn resumes_streams(&mut self) -> anyhow::Result<bool> {
        if self.system == System::Plain {
            return Ok(false);
        }
        let selector = format!("{}={MODEL},{}=fallback", names::LABEL_MODEL, names::LABEL_TIER);
        let pods = Api::<Pod>::namespaced(self.kube.clone(), NAMESPACE);
        let pods = pods.list(&ListParams::default().labels(&selector)).await?;
        let ip = pods.items.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone());
        let ip: IpAddr = ip.context("the fallback has no address")?.parse()?;
        let netns = self.stage.lab().cluster().net().control_plane().clone();
        let stream = netns.connect(SocketAddr::from((ip, names::ENGINE_INTERNAL_PORT))).await?;
        let answer = request_over(stream, "POST", "/v1/completions", "{}").await;
        Ok(answer.context("the fallback does not answer")?.0 == 400)
    }

    /// What an operator on call would look at first.
    pub async fn describe(&mut self) -> String {
        let mut text = String::new();
        for arguments in [&["get", "atlasmodels,pods", "-A", "-o", "wide"][..], &["get", "events", "-A"][..]]
        {
            match self.stage.lab().cluster().kubectl(arguments).await {
                Ok(output) => text.push_str(&(output.stdout + &output.stderr)),
                Err(error) => text.push_str(&error.to_string()),
            }
        }
        text
    }

    /// Ends the cluster.
    pub async fn stop(self) {
        self.stage.stop().await;
    }
}

/// What is missing until two gateways serve from the preferred tier and see both engines healthy.
fn unsettled(views: &[(Behind, Value)]) -> Option<String> {
    let well = |view: &Value| {
        let endpoints = view["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        view["activeTier"] == "primary"
            && endpoints.len() == 2
            && endpoints.iter().all(|endpoint| endpoint["health"] == "Healthy")
    };
    let settled = views.len() == 2 && views.iter().all(|(_, view)| well(view));
    let seen = || views.iter().map(|(gateway, view)| format!("{} on {}: {view}", gateway.pod, gateway.node));
    (!settled).then(|| seen().collect::<Vec<_>>().join("; "))
}
