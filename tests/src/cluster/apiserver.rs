//! etcd and kube-apiserver: alone on loopback (`ApiServer`), or as the first two programs of a whole cluster.
//!
//! Alone there are no controllers: no Pods come from Deployments and no ServiceAccounts appear by themselves.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::admin::{Admin, KubectlOutput};
use super::error::ClusterError;
use super::net::SERVICE_CIDR;
use super::pki::{Identity, Pki};
use super::process::{Daemon, free_ports};
use super::run_folder::RunFolder;
use super::worker::Worker;
use crate::assets::Assets;

/// The first address of the Service range, which the `kubernetes` Service always has.
pub(super) const KUBERNETES_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

/// How often a start is tried anew when another program took a port in between.
const PORT_ATTEMPTS: usize = 3;

/// An API server of one's own on loopback, ready when `start` returns; dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    admin: Admin,
    // Dropped in this order: the server, its store, their folder.
    _server: Store,
    _folder: RunFolder,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver on free ports.
    ///
    /// # Errors
    /// When a program is missing or does not become ready; the error quotes the end of its log.
    pub async fn start() -> Result<Self, ClusterError> {
        let assets = Assets::find()?;
        let folder = RunFolder::create()?;
        let pki = Pki::create(&folder.path().join("pki"))?;
        let mut attempt = 1;
        loop {
            match Self::start_once(&assets, folder.path(), &pki).await {
                Ok((admin, server)) => return Ok(Self { admin, _server: server, _folder: folder }),
                // A port that was free a moment ago may be taken by now: the program then ends at once.
                Err(ClusterError::Exited { log, .. })
                    if attempt < PORT_ATTEMPTS && log.contains("address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn start_once(assets: &Assets, folder: &Path, pki: &Pki) -> Result<(Admin, Store), ClusterError> {
        let [port, etcd_port, etcd_peer_port] = free_ports()?;
        let plan = StorePlan {
            address: Ipv4Addr::LOCALHOST,
            port,
            etcd_port,
            etcd_peer_port,
            extra: ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]
                .map(str::to_owned)
                .to_vec(),
        };
        let kubeconfig = pki.kubeconfig("admin", &Identity::admin(), &format!("https://127.0.0.1:{port}"))?;
        let admin = Admin::new(assets.kubectl.clone(), kubeconfig, folder.to_owned()).await?;
        let mut store = Store::spawn(Worker::host(), assets, pki, folder, &plan).await?;
        store.wait_ready(&admin).await?;
        Ok((admin, store))
    }

    /// A client that may do everything.
    pub fn client(&self) -> kube::Client {
        self.admin.client()
    }

    /// The administrator's kubeconfig.
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

    /// The process ids of etcd and kube-apiserver.
    pub fn pids(&self) -> Vec<u32> {
        self._server.pids()
    }

    /// Ends it and removes its data; the same as dropping it, off the async threads.
    pub async fn stop(self) {
        // The task cannot fail: dropping does not panic.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// Where etcd and the API server listen and what differs between the two ways to run them.
pub(super) struct StorePlan {
    /// The API server's address; etcd is always on loopback.
    pub address: Ipv4Addr,
    /// The API server's port.
    pub port: u16,
    /// etcd's port for clients.
    pub etcd_port: u16,
    /// etcd's port for peers, which it wants although there are none.
    pub etcd_peer_port: u16,
    /// Further flags of the API server.
    pub extra: Vec<String>,
}

/// etcd and kube-apiserver, running.
#[derive(Debug)]
pub(super) struct Store {
    server: Daemon,
    etcd: Daemon,
}

impl Store {
    /// Starts both at once: the API server waits for etcd by itself.
    pub(super) async fn spawn(
        worker: &Worker,
        assets: &Assets,
        pki: &Pki,
        folder: &Path,
        plan: &StorePlan,
    ) -> Result<Self, ClusterError> {
        let data = folder.join("etcd");
        // A second attempt after a taken port starts from nothing too.
        let _ = std::fs::remove_dir_all(&data);
        let etcd = Daemon::spawn(worker, "etcd", &assets.etcd, etcd_flags(&data, plan), folder).await?;
        let flags = apiserver_flags(pki, plan)?;
        let server = Daemon::spawn(worker, "kube-apiserver", &assets.kube_apiserver, flags, folder).await?;
        Ok(Self { server, etcd })
    }

    pub(super) async fn wait_ready(&mut self, admin: &Admin) -> Result<(), ClusterError> {
        let result = self.server.wait_ready(|| admin.is_ready()).await;
        // Without its store the API server only says that it cannot reach it: etcd's own words are the better ones.
        if result.is_err() && self.etcd.exited().is_some() {
            self.etcd.wait_ready(|| async { Err("it ended".to_owned()) }).await?;
        }
        result
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        vec![self.etcd.pid(), self.server.pid()]
    }
}

fn etcd_flags(data: &Path, plan: &StorePlan) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", plan.etcd_port);
    let peer = format!("http://127.0.0.1:{}", plan.etcd_peer_port);
    vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".into(),
    ]
}

fn apiserver_flags(pki: &Pki, plan: &StorePlan) -> Result<Vec<String>, ClusterError> {
    let ips: [IpAddr; 3] = [Ipv4Addr::LOCALHOST.into(), plan.address.into(), KUBERNETES_SERVICE_IP.into()];
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let serving = pki.serving("kube-apiserver", &ips, &names)?;
    let kubelet_client = pki.client(
        "kube-apiserver-kubelet-client",
        &Identity { user: "kube-apiserver-kubelet-client".into(), group: Some("system:masters".into()) },
    )?;
    let front_proxy = pki.front_proxy_client()?;
    let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let mut flags = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", plan.etcd_port),
        format!("--bind-address={}", plan.address),
        format!("--advertise-address={}", plan.address),
        format!("--secure-port={}", plan.port),
        flag("tls-cert-file", serving.cert),
        flag("tls-private-key-file", serving.key),
        flag("client-ca-file", pki.ca_path()),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        flag("service-account-key-file", pki.service_account_public_key_path()),
        flag("service-account-signing-key-file", pki.service_account_key_path()),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        flag("kubelet-client-certificate", kubelet_client.cert),
        flag("kubelet-client-key", kubelet_client.key),
        flag("kubelet-certificate-authority", pki.ca_path()),
        "--kubelet-preferred-address-types=InternalIP".into(),
        flag("requestheader-client-ca-file", pki.front_proxy_ca_path()),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        flag("proxy-client-cert-file", front_proxy.cert),
        flag("proxy-client-key-file", front_proxy.key),
    ];
    flags.extend(plan.extra.iter().cloned());
    Ok(flags)
}
