//! The cluster's network: a control-plane namespace with a bridge, a namespace per node, a namespace per pod.
//!
//! ```text
//!   control plane  br0 10.76.0.1/24 ──veth── node i eth0 10.76.0.(10+i) ──veth── pod eth0 10.77.i.k/32
//! ```
//! The control plane routes 10.77.i.0/24 to node i; a node sends everything else to the control plane, and a pod
//! everything to its node, as the CNI plugin `ptp` does it. Every cluster has namespaces of its own, so the same
//! addresses repeat in each and none of them is known on the host. A cut is a real one: the link goes down.
//! It deliberately knows nothing of Kubernetes, and there is no way out to the host's network.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Mutex;

pub use super::netns::{NetError, Netns};

/// The control plane's address: API server, DNS and model files.
pub const CONTROL_PLANE_IP: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 1);
/// The range all pods lie in.
pub const POD_CIDR: &str = "10.77.0.0/16";
/// The range ClusterIPs lie in.
pub const SERVICE_CIDR: &str = "10.78.0.0/16";

/// Node addresses start above this one.
const FIRST_NODE: u8 = 10;
const MAX_NODES: u8 = 200;
/// .1 is the node's own end, .255 stays free.
const POD_NUMBERS: std::ops::RangeInclusive<u8> = 2..=254;

/// The control plane's namespace and the numbering of its nodes.
#[derive(Debug)]
pub struct ClusterNet {
    prefix: String,
    control_plane: Arc<Netns>,
    nodes: AtomicU8,
}

impl ClusterNet {
    /// Makes the control plane's namespace, named after `prefix` (short and unique on this machine).
    ///
    /// # Errors
    /// Without root or `ip`, or where the prefix is taken.
    pub async fn create(prefix: &str) -> Result<Self, NetError> {
        let netns = Netns::create(&format!("{prefix}-cp")).await?;
        forward(&netns).await?;
        netns
            .ip(&[
                "link add br0 type bridge".into(),
                format!("addr add {CONTROL_PLANE_IP}/24 dev br0"),
                "link set br0 up".into(),
                // The first packet to a ClusterIP must have some way to go before kube-proxy's rules turn it round.
                format!("route add {SERVICE_CIDR} dev br0"),
            ])
            .await?;
        Ok(Self { prefix: prefix.to_owned(), control_plane: Arc::new(netns), nodes: AtomicU8::new(0) })
    }

    /// The control plane's namespace.
    pub fn control_plane(&self) -> &Arc<Netns> {
        &self.control_plane
    }

    /// The prefix of every namespace of this cluster.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Joins one more node.
    ///
    /// # Errors
    /// When the cluster is full or `ip` refuses.
    pub async fn add_node(&self) -> Result<NodeNet, NetError> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        if number > MAX_NODES {
            self.nodes.fetch_sub(1, Ordering::Relaxed);
            return Err(NetError::TooManyNodes(MAX_NODES));
        }
        let netns = Netns::create(&format!("{}-n{number}", self.prefix)).await?;
        forward(&netns).await?;
        let ip = Ipv4Addr::new(10, 76, 0, FIRST_NODE + number);
        let link = format!("node{number}");
        self.control_plane
            .ip(&[
                format!("link add {link} type veth peer name eth0 netns {}", netns.name()),
                format!("link set {link} master br0 up"),
            ])
            .await?;
        netns
            .ip(&[
                format!("addr add {ip}/24 dev eth0"),
                "link set eth0 up".into(),
                format!("route add default via {CONTROL_PLANE_IP}"),
            ])
            .await?;
        self.control_plane.ip(&[format!("route add 10.77.{number}.0/24 via {ip}")]).await?;
        Ok(NodeNet {
            number,
            ip,
            link,
            netns: Arc::new(netns),
            control_plane: self.control_plane.clone(),
            pods: Mutex::new(Pods { last: *POD_NUMBERS.start() - 1, by_key: BTreeMap::new() }),
        })
    }
}

/// One node's namespace, its link to the control plane and its pods' namespaces.
#[derive(Debug)]
pub struct NodeNet {
    number: u8,
    ip: Ipv4Addr,
    link: String,
    // Before `netns`: the pods' links end in the node's namespace.
    pods: Mutex<Pods>,
    netns: Arc<Netns>,
    control_plane: Arc<Netns>,
}

#[derive(Debug)]
struct Pods {
    last: u8,
    by_key: BTreeMap<String, PodNet>,
}

/// One pod's namespace and address; the namespace goes with the last clone.
#[derive(Debug, Clone)]
pub struct PodNet {
    /// The pod's address, reachable from every node and from the control plane.
    pub ip: Ipv4Addr,
    /// The file that stands for the pod's namespace, as `nsenter --net=FILE` takes it.
    pub netns_path: PathBuf,
    /// The pod's namespace.
    pub netns: Arc<Netns>,
}

impl NodeNet {
    /// The node's address on the control plane's bridge.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The range of the node's pods.
    pub fn pod_cidr(&self) -> String {
        format!("10.77.{}.0/24", self.number)
    }

    /// The node's namespace.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Makes the namespace of one pod; a key that is already there gives the same network again.
    ///
    /// # Errors
    /// When all addresses are taken or `ip` refuses.
    pub async fn add_pod(&self, pod_key: &str) -> Result<PodNet, NetError> {
        let mut pods = self.pods.lock().await;
        if let Some(pod) = pods.by_key.get(pod_key) {
            return Ok(pod.clone());
        }
        let number = pods.next_number(self.number)?;
        let (gateway, ip) = (self.pod_address(1), self.pod_address(number));
        let netns = Netns::create(&format!("{}-p{number}", self.netns.name())).await?;
        let link = pod_link(number);
        self.netns
            .ip(&[
                format!("link add {link} type veth peer name eth0 netns {}", netns.name()),
                format!("addr add {gateway}/32 dev {link}"),
                format!("link set {link} up"),
                format!("route add {ip}/32 dev {link} src {gateway}"),
            ])
            .await?;
        netns
            .ip(&[
                format!("addr add {ip}/32 dev eth0"),
                "link set eth0 up".into(),
                format!("route add {gateway}/32 dev eth0 scope link"),
                format!("route add default via {gateway}"),
            ])
            .await?;
        let pod = PodNet { ip, netns_path: netns.path(), netns: Arc::new(netns) };
        pods.last = number;
        pods.by_key.insert(pod_key.to_owned(), pod.clone());
        Ok(pod)
    }

    /// Takes a pod's link and address away; its namespace goes with the last clone of its `PodNet`.
    ///
    /// # Errors
    /// When `ip` refuses. A key that is not there is no error.
    pub async fn remove_pod(&self, pod_key: &str) -> Result<(), NetError> {
        let mut pods = self.pods.lock().await;
        let Some(pod) = pods.by_key.remove(pod_key) else { return Ok(()) };
        // The address leaves at once, even while something still holds the namespace.
        self.netns.ip(&[format!("link del {}", pod_link(pod.ip.octets()[3]))]).await
    }

    /// Cuts the node off: the link goes down at the control plane's end, so the node keeps its routes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub async fn link_down(&self) -> Result<(), NetError> {
        self.control_plane.ip(&[format!("link set {} down", self.link)]).await
    }

    /// Joins the node again after `link_down`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub async fn link_up(&self) -> Result<(), NetError> {
        self.control_plane.ip(&[format!("link set {} up", self.link)]).await
    }

    fn pod_address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, number)
    }
}

impl Pods {
    /// The next free number after the last one given: an address comes back as late as possible, since clients
    /// remember the pod that had it.
    fn next_number(&self, node: u8) -> Result<u8, NetError> {
        let (first, end) = (*POD_NUMBERS.start(), *POD_NUMBERS.end());
        let taken = |number: &u8| self.by_key.values().any(|pod| pod.ip.octets()[3] == *number);
        (self.last.saturating_add(1)..=end)
            .chain(first..=self.last)
            .find(|number| POD_NUMBERS.contains(number) && !taken(number))
            .ok_or(NetError::NoPodAddress { node, pods: self.by_key.len() })
    }
}

fn pod_link(number: u8) -> String {
    format!("pod{number}")
}

/// Lets a namespace pass packets on, quietly: everything goes through the control plane on purpose, so hints
/// about shorter ways (ICMP redirects) would only confuse.
async fn forward(netns: &Netns) -> Result<(), NetError> {
    netns.sysctl("ipv4/ip_forward", "1").await?;
    netns.sysctl("ipv4/conf/all/send_redirects", "0").await?;
    netns.sysctl("ipv4/conf/default/send_redirects", "0").await
}
