//! The whole control plane in its network namespace: etcd, API server, controllers, scheduler, kube-proxy.
//!
//! Only how they are started is here; what they do is upstream's. Nothing is restarted: a control plane that loses
//! a program is a broken test run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, PostParams};

use super::ClusterOptions;
use super::admin::Admin;
use super::apiserver::{KUBERNETES_SERVICE_IP, Store, StorePlan};
use super::error::ClusterError;
use super::net::{CONTROL_PLANE_IP, POD_CIDR, SERVICE_CIDR};
use super::netns::Netns;
use super::pki::{Identity, Pki};
use super::process::Daemon;
use crate::assets::Assets;

/// The API server's port on the control plane's address.
pub(super) const API_PORT: u16 = 6443;

/// The Node that the control plane's kube-proxy sees while it starts.
const STARTING_NODE: &str = "control-plane-starting";

/// How long one try to reach a ClusterIP may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// What every program of the control plane needs to start.
pub(super) struct Site<'a> {
    pub assets: &'a Assets,
    pub pki: &'a Pki,
    pub folder: &'a Path,
    pub netns: &'a Netns,
}

/// The control plane's programs, killed in this order when dropped.
#[derive(Debug)]
pub(super) struct ControlPlane {
    kube_proxy: Daemon,
    scheduler: Daemon,
    controller_manager: Daemon,
    store: Store,
}

impl ControlPlane {
    /// etcd and the API server: all others wait for them.
    pub(super) async fn start_store(site: &Site<'_>, admin: &Admin) -> Result<Store, ClusterError> {
        let plan = StorePlan {
            address: CONTROL_PLANE_IP,
            port: API_PORT,
            etcd_port: 2379,
            etcd_peer_port: 2380,
            extra: Vec::new(),
        };
        let mut store = Store::spawn(site.netns.worker(), site.assets, site.pki, site.folder, &plan).await?;
        store.wait_ready(admin).await?;
        Ok(store)
    }

    /// The others, all at once; ready when the controllers work, the scheduler serves and ClusterIPs lead somewhere.
    pub(super) async fn start(
        site: &Site<'_>,
        admin: &Admin,
        store: Store,
        options: &ClusterOptions,
    ) -> Result<Self, ClusterError> {
        let flags = controller_manager_flags(site.pki, options)?;
        let program = &site.assets.kube_controller_manager;
        let mut controller_manager = site.spawn("kube-controller-manager", program, flags).await?;
        let flags = scheduler_flags(site.pki)?;
        let mut scheduler = site.spawn("kube-scheduler", &site.assets.kube_scheduler, flags).await?;
        let nodes = Api::<Node>::all(admin.client());
        nodes
            .create(&PostParams::default(), &starting_node())
            .await
            .map_err(ClusterError::api("create the control plane's Node"))?;
        let mut kube_proxy = start_kube_proxy(site, site.netns, STARTING_NODE).await?;
        wait_for_services(&mut kube_proxy, site.netns).await?;
        nodes
            .delete(STARTING_NODE, &DeleteParams::default())
            .await
            .map_err(ClusterError::api("delete the control plane's Node"))?;
        controller_manager.wait_ready(|| admin.has_default_account()).await?;
        let scheduler_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 10259));
        scheduler.wait_ready(|| reach(site.netns, scheduler_port)).await?;
        Ok(Self { kube_proxy, scheduler, controller_manager, store })
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        let mut pids = self.store.pids();
        pids.extend([&self.controller_manager, &self.scheduler, &self.kube_proxy].map(Daemon::pid));
        pids
    }
}

impl Site<'_> {
    async fn spawn(&self, name: &str, program: &Path, flags: Vec<String>) -> Result<Daemon, ClusterError> {
        Daemon::spawn(self.netns.worker(), name, program, flags, self.folder).await
    }
}

/// Starts a kube-proxy in `netns`, which may be a node's; it does not wait for it.
pub(super) async fn start_kube_proxy(
    site: &Site<'_>,
    netns: &Netns,
    node_name: &str,
) -> Result<Daemon, ClusterError> {
    let name = format!("kube-proxy-{node_name}");
    let kubeconfig = site.pki.kubeconfig(&name, &Identity::user("system:kube-proxy"), &api_server_url())?;
    let path = site.folder.join(format!("{name}.config"));
    let config = kube_proxy_config(&kubeconfig, node_name);
    std::fs::write(&path, format!("{config:#}\n"))
        .map_err(ClusterError::io(format!("write {}", path.display())))?;
    let flags = vec![format!("--config={}", path.display())];
    Daemon::spawn(netns.worker(), &name, &site.assets.kube_proxy, flags, site.folder).await
}

/// Waits until the ClusterIP of the API server's own Service leads to it.
pub(super) async fn wait_for_services(kube_proxy: &mut Daemon, netns: &Netns) -> Result<(), ClusterError> {
    kube_proxy.wait_ready(|| reach(netns, SocketAddr::from((KUBERNETES_SERVICE_IP, 443)))).await
}

/// The API server as programs inside the cluster see it.
pub(super) fn api_server_url() -> String {
    format!("https://{CONTROL_PLANE_IP}:{API_PORT}")
}

async fn reach(netns: &Netns, address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(CONNECT_TIMEOUT, netns.connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer")),
    }
}

/// kube-proxy waits half a minute for the Node it stands on. The control plane's namespace is none, so it gets one
/// until it has started: kube-proxy lets it go without a word, and nobody else sees it that long.
fn starting_node() -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(STARTING_NODE.into());
    node.spec =
        Some(k8s_openapi::api::core::v1::NodeSpec { unschedulable: Some(true), ..Default::default() });
    let address = k8s_openapi::api::core::v1::NodeAddress {
        type_: "InternalIP".into(),
        address: CONTROL_PLANE_IP.to_string(),
    };
    node.status =
        Some(k8s_openapi::api::core::v1::NodeStatus { addresses: Some(vec![address]), ..Default::default() });
    node
}

fn controller_manager_flags(pki: &Pki, options: &ClusterOptions) -> Result<Vec<String>, ClusterError> {
    let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let mut flags = component_flags(pki, "kube-controller-manager")?;
    flags.extend([
        "--use-service-account-credentials".into(),
        flag("service-account-private-key-file", pki.service_account_key_path()),
        flag("root-ca-file", pki.ca_path()),
        flag("cluster-signing-cert-file", pki.ca_path()),
        flag("cluster-signing-key-file", pki.ca_key_path()),
        format!("--cluster-cidr={POD_CIDR}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        // Each node knows its range from its network.
        "--allocate-node-cidrs=false".into(),
        // The default (20 a second) makes a burst of objects wait for nothing.
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
    ]);
    let periods = [
        ("node-monitor-period", options.node_monitor_period),
        ("node-monitor-grace-period", options.node_monitor_grace_period),
    ];
    for (name, period) in periods {
        flags.extend(period.map(|period| format!("--{name}={}ms", period.as_millis())));
    }
    Ok(flags)
}

fn scheduler_flags(pki: &Pki) -> Result<Vec<String>, ClusterError> {
    component_flags(pki, "kube-scheduler")
}

fn component_flags(pki: &Pki, name: &str) -> Result<Vec<String>, ClusterError> {
    let identity = Identity::user(format!("system:{name}"));
    let kubeconfig = pki.kubeconfig(name, &identity, &api_server_url())?;
    let kubeconfig = kubeconfig.display();
    Ok(vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
    ])
}

fn kube_proxy_config(kubeconfig: &Path, node_name: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": node_name,
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        // An endpoint that turned unready must lose its traffic at once (0 would mean the default, a second).
        "nftables": {"minSyncPeriod": "10ms", "syncPeriod": "30s"},
        // Kernel-wide settings that belong to the host and that its kernel may lack.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
                      "udpTimeout": "0s", "udpStreamTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    })
}
