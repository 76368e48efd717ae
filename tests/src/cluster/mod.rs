//! The local cluster: the real control plane in network namespaces of its own, or the API server alone on loopback.
//!
//! Everything it starts ends with it, also when this process is killed. It deliberately has no nodes: those are
//! simulated by `node_agent`. Relays, DNS and model files are served by the async runtime that started the cluster.

mod admin;
pub mod apiserver;
mod control_plane;
pub mod dns;
mod error;
pub mod models;
pub mod net;
mod netns;
pub mod pki;
mod process;
mod relay;
mod run_folder;
mod worker;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::assets::Assets;
pub use admin::KubectlOutput;
pub use apiserver::ApiServer;
pub use error::ClusterError;
pub use process::Daemon;

use admin::Admin;
use control_plane::{API_PORT, ControlPlane, Site};
use net::{CONTROL_PLANE_IP, ClusterNet, NodeNet};
use pki::{Identity, Pki};
use relay::Relay;
use run_folder::RunFolder;

/// What a cluster may be started with; everything left out is upstream's default.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// How often the node lifecycle controller looks at Nodes.
    pub node_monitor_period: Option<Duration>,
    /// How long a Node may stay silent before it is NotReady.
    pub node_monitor_grace_period: Option<Duration>,
    /// Files that the model server serves, by name.
    pub models: BTreeMap<String, PathBuf>,
}

/// A whole control plane, ready when `start` returns; dropping it ends it.
///
/// Stop or drop the nodes first: they hold the control plane's namespace.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: what serves, the programs, the network, the files.
    relays: Mutex<Vec<Relay>>,
    servers: Vec<AbortOnDropHandle<()>>,
    control_plane: ControlPlane,
    admin: Admin,
    net: ClusterNet,
    pki: Pki,
    assets: Assets,
    folder: RunFolder,
}

impl Cluster {
    /// Starts everything.
    ///
    /// # Errors
    /// Without root, when a program is missing or does not become ready; the error quotes the end of its log.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let assets = Assets::find()?;
        let folder = RunFolder::create()?;
        let pki = Pki::create(&folder.path().join("pki"))?;
        let net = ClusterNet::create(folder.prefix()).await?;
        let netns = net.control_plane().clone();
        let api = SocketAddr::from((CONTROL_PLANE_IP, API_PORT));
        let api_relay = Relay::start(netns.clone(), api).await?;
        let server = format!("https://{}", api_relay.address());
        let kubeconfig = pki.kubeconfig("admin", &Identity::admin(), &server)?;
        let admin = Admin::new(assets.kubectl.clone(), kubeconfig, folder.path().to_owned()).await?;
        let site = Site { assets: &assets, pki: &pki, folder: folder.path(), netns: &netns };
        let store = ControlPlane::start_store(&site, &admin).await?;
        let servers = vec![
            AbortOnDropHandle::new(tokio::spawn(dns::serve(&netns, admin.client()).await?)),
            AbortOnDropHandle::new(tokio::spawn(models::serve(&netns, options.models.clone()).await?)),
        ];
        let control_plane = ControlPlane::start(&site, &admin, store, &options).await?;
        write_resolv_conf(folder.path())?;
        Ok(Self {
            relays: Mutex::new(vec![api_relay]),
            servers,
            control_plane,
            admin,
            net,
            pki,
            assets,
            folder,
        })
    }

    /// A client that may do everything.
    pub fn client(&self) -> kube::Client {
        self.admin.client()
    }

    /// The administrator's kubeconfig, for programs on the host.
    pub fn kubeconfig_path(&self) -> &Path {
        self.admin.kubeconfig_path()
    }

    /// Runs the real kubectl as administrator.
    ///
    /// # Errors
    /// Only when it cannot be run; a refusal is in the output.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<KubectlOutput, ClusterError> {
        self.admin.kubectl(arguments).await
    }

    /// Applies `crds/manifests` and waits until the API server serves them.
    ///
    /// # Errors
    /// When a manifest is unreadable or refused.
    pub async fn apply_crds(&self) -> Result<(), ClusterError> {
        self.admin.apply_crds().await
    }

    /// The network, which nodes join.
    pub fn net(&self) -> &ClusterNet {
        &self.net
    }

    /// The certificate authority.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The programs it runs.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// The folder of this run: logs (`PROGRAM.log`), keys, data. It goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The API server as programs inside the cluster see it.
    pub fn api_server_url(&self) -> String {
        control_plane::api_server_url()
    }

    /// Writes a kubeconfig for a program inside the cluster.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn kubeconfig_inside(&self, name: &str, identity: &Identity) -> Result<PathBuf, ClusterError> {
        self.pki.kubeconfig(name, identity, &control_plane::api_server_url())
    }

    /// The `resolv.conf` of pods, which names the cluster's DNS server.
    pub fn resolv_conf_path(&self) -> PathBuf {
        resolv_conf_path(self.folder.path())
    }

    /// Starts a node's kube-proxy and waits until ClusterIPs work there. Register the Node first, with its address:
    /// kube-proxy waits half a minute for it.
    ///
    /// # Errors
    /// When it does not become ready; the error quotes the end of its log.
    pub async fn start_kube_proxy(&self, node: &NodeNet, node_name: &str) -> Result<Daemon, ClusterError> {
        let netns = node.netns();
        let site =
            Site { assets: &self.assets, pki: &self.pki, folder: self.folder.path(), netns: netns.as_ref() };
        let mut kube_proxy = control_plane::start_kube_proxy(&site, netns, node_name).await?;
        control_plane::wait_for_services(&mut kube_proxy, netns).await?;
        Ok(kube_proxy)
    }

    /// Opens a port of the host's loopback that leads to a Service's ClusterIP, until the cluster ends.
    ///
    /// # Errors
    /// When there is no such Service or it has no ClusterIP.
    pub async fn relay_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, ClusterError> {
        let services = Api::<Service>::namespaced(self.client(), namespace);
        let service =
            services.get(name).await.map_err(ClusterError::api(format!("get Service {namespace}/{name}")))?;
        let found = service.spec.and_then(|spec| spec.cluster_ip);
        let Some(ip) = found.as_ref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else {
            return Err(ClusterError::NoClusterIp { namespace: namespace.into(), name: name.into(), found });
        };
        let relay = Relay::start(self.net.control_plane().clone(), SocketAddr::from((ip, port))).await?;
        let address = relay.address();
        self.relays.lock().await.push(relay);
        Ok(address)
    }

    /// The process ids of the control plane's programs.
    pub fn pids(&self) -> Vec<u32> {
        self.control_plane.pids()
    }

    /// Ends it and removes everything it made; unlike a plain drop it waits for what is served.
    pub async fn stop(self) {
        let Self { relays, servers, control_plane, admin, net, pki: _, assets: _, folder } = self;
        for relay in relays.into_inner() {
            relay.stop().await;
        }
        for server in servers {
            server.abort();
            // Ending by the abort is what was asked for.
            let _ = server.await;
        }
        // The task cannot fail: dropping does not panic.
        let _ = tokio::task::spawn_blocking(move || drop((control_plane, admin, net, folder))).await;
    }
}

fn resolv_conf_path(folder: &Path) -> PathBuf {
    folder.join("resolv.conf")
}

fn write_resolv_conf(folder: &Path) -> Result<(), ClusterError> {
    let path = resolv_conf_path(folder);
    let text =
        format!("nameserver {CONTROL_PLANE_IP}\nsearch svc.cluster.local cluster.local\noptions timeout:1\n");
    std::fs::write(&path, text).map_err(ClusterError::io(format!("write {}", path.display())))
}

/// PATH with the folders of system programs (`nft`, `ip`), which not every user's shell has.
fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
