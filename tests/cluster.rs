//! The local cluster itself: networks, the API server alone, the whole control plane.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atlas_tests::cluster::net::{CONTROL_PLANE_IP, ClusterNet, Netns};
use atlas_tests::cluster::{ApiServer, Cluster, ClusterOptions, models};
use atlas_tests::support::{init_logging, wait_until};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Generous: a loaded machine takes ten times as long as a quiet one.
const LONG: Duration = Duration::from_secs(60);

/// Greets everyone who connects with an HTTP answer.
async fn greet(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
                .await;
        });
    }
}

/// The whole answer to a GET of `path`.
async fn get(mut stream: TcpStream, path: &str, headers: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn get_from(netns: Arc<Netns>, address: SocketAddr) -> std::io::Result<String> {
    get(netns.connect(address).await?, "/", "").await
}

fn is_running(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_cut_link_is_real_and_heals() {
    init_logging();
    let prefix = format!("attest{:x}", std::process::id());
    let net = ClusterNet::create(&prefix).await.unwrap();
    let (one, two) = (net.add_node().await.unwrap(), net.add_node().await.unwrap());
    let pod = one.add_pod("default/web").await.unwrap();
    let client = two.add_pod("default/client").await.unwrap();
    let address = SocketAddr::from((pod.ip, 8000));
    let server = tokio::spawn(greet(pod.netns.listen(address).await.unwrap()));
    for from in [&client.netns, net.control_plane(), one.netns()] {
        assert!(get_from(from.clone(), address).await.unwrap().ends_with("hello"), "from {}", from.name());
    }
    one.link_down().await.unwrap();
    let cut = tokio::time::timeout(Duration::from_millis(500), get_from(client.netns.clone(), address)).await;
    assert!(!matches!(cut, Ok(Ok(_))), "the link is down, yet the pod answered");
    assert!(get_from(one.netns().clone(), address).await.is_ok(), "the node must still reach its own pod");
    one.link_up().await.unwrap();
    assert!(get_from(client.netns.clone(), address).await.unwrap().ends_with("hello"));
    server.abort();
    let _ = server.await;
    one.remove_pod("default/web").await.unwrap();
    let names = [net.control_plane().path(), one.netns().path(), pod.netns_path.clone()];
    drop((pod, client, one, two, net));
    for name in names {
        assert!(!name.exists(), "{} is left behind", name.display());
    }
}

#[tokio::test]
async fn two_api_servers_run_at_a_time_and_leave_no_process() {
    init_logging();
    let (one, two) = tokio::join!(ApiServer::start(), ApiServer::start());
    let (one, two) = (one.unwrap(), two.unwrap());
    one.apply_crds().await.unwrap();
    let seen = one.kubectl(&["get", "crds", "-o", "name"]).await.unwrap();
    assert!(seen.stdout.contains("atlasmodels.atlas.gillsystems.com"), "{seen:?}");
    let other = two.kubectl(&["get", "crds", "-o", "name"]).await.unwrap();
    assert!(
        other.success && !other.stdout.contains("atlasmodels"),
        "the two must not share a store: {other:?}"
    );
    let refused = one.kubectl(&["get", "nonsense"]).await.unwrap();
    assert!(!refused.success && refused.stderr.contains("nonsense"), "{refused:?}");
    let pids = [one.pids(), two.pids()].concat();
    let folder = one.kubeconfig_path().to_owned();
    assert_eq!(pids.len(), 4);
    assert!(pids.iter().all(|pid| is_running(*pid)));
    one.stop().await;
    drop(two);
    assert!(!pids.iter().any(|pid| is_running(*pid)), "one of {pids:?} still runs");
    assert!(!folder.exists(), "{} is left behind", folder.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_relays_a_service_and_leaves_nothing_behind() {
    init_logging();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, "0123456789").unwrap();
    let models = BTreeMap::from([("tiny.gguf".to_owned(), file)]);
    let cluster = Cluster::start(ClusterOptions { models, ..ClusterOptions::default() }).await.unwrap();
    let ready = cluster.kubectl(&["get", "--raw", "/readyz"]).await.unwrap();
    assert_eq!(ready.stdout.trim(), "ok", "{ready:?}");
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"]).await.unwrap();
    assert_eq!(nodes.stdout, "", "a cluster starts without nodes");

    let node = cluster.net().add_node().await.unwrap();
    register_node(&cluster, "one", &node.node_ip().to_string()).await;
    let proxy = cluster.start_kube_proxy(&node, "one").await.unwrap();
    let (web, client) =
        (node.add_pod("default/web").await.unwrap(), node.add_pod("default/client").await.unwrap());
    let server = tokio::spawn(greet(web.netns.listen(SocketAddr::from((web.ip, 8000))).await.unwrap()));
    let service_ip = create_service(&cluster, &web.ip.to_string()).await;

    let relayed = cluster.relay_service("default", "web", 80).await.unwrap();
    assert!(relayed.ip().is_loopback());
    wait_until("an answer through the relay", LONG, async || {
        match get(TcpStream::connect(relayed).await?, "/", "").await? {
            answer if answer.ends_with("hello") => Ok(()),
            answer => Err(std::io::Error::other(format!("answered {answer:?}"))),
        }
    })
    .await
    .unwrap();
    // From a pod, and from the very pod that serves it (kube-proxy turns that one round).
    for pod in [&client, &web] {
        let service = SocketAddr::from((service_ip, 80));
        let answer =
            wait_until("an answer through the ClusterIP", LONG, || get_from(pod.netns.clone(), service));
        assert!(answer.await.unwrap().ends_with("hello"));
    }

    let found =
        wait_until("the Service's name", LONG, || resolve(&client.netns, "web.default.svc.cluster.local."));
    assert_eq!(found.await.unwrap(), service_ip.to_string());
    assert_eq!(resolve(&client.netns, "models.atlas.test.").await.unwrap(), CONTROL_PLANE_IP.to_string());
    let stranger = resolve(&client.netns, "example.com.").await.unwrap_err();
    assert!(stranger.to_string().contains("Non-Existent"), "{stranger}");

    let models = SocketAddr::from((CONTROL_PLANE_IP, models::MODELS_PORT));
    let connect = || client.netns.connect(models);
    let whole = get(connect().await.unwrap(), "/tiny.gguf", "").await.unwrap();
    assert!(whole.contains("content-length: 10") && whole.ends_with("\r\n\r\n0123456789"), "{whole}");
    let part = get(connect().await.unwrap(), "/tiny.gguf", "Range: bytes=4-\r\n").await.unwrap();
    assert!(part.contains("content-range: bytes 4-9/10") && part.ends_with("\r\n\r\n456789"), "{part}");
    let missing = get(connect().await.unwrap(), "/other.gguf", "").await.unwrap();
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");

    let pids = [cluster.pids(), vec![proxy.pid()]].concat();
    let left = [cluster.folder().to_owned(), cluster.net().control_plane().path(), node.netns().path()];
    assert!(pids.iter().all(|pid| is_running(*pid)));
    server.abort();
    let _ = server.await;
    drop((proxy, web, client, node));
    cluster.stop().await;
    assert!(!pids.iter().any(|pid| is_running(*pid)), "one of {pids:?} still runs");
    for path in left {
        assert!(!path.exists(), "{} is left behind", path.display());
    }
}

async fn register_node(cluster: &Cluster, name: &str, ip: &str) {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    }))
    .unwrap();
    Api::<Node>::all(cluster.client()).create(&PostParams::default(), &node).await.unwrap();
}

/// A Service without a selector and a slice made by hand; the ClusterIP.
async fn create_service(cluster: &Cluster, endpoint: &str) -> std::net::Ipv4Addr {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80, "targetPort": 8000, "protocol": "TCP"}]},
    }))
    .unwrap();
    let services = Api::<Service>::namespaced(cluster.client(), "default");
    let service = services.create(&PostParams::default(), &service).await.unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 8000, "protocol": "TCP"}],
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}, "nodeName": "one"}],
    }))
    .unwrap();
    let slices = Api::<EndpointSlice>::namespaced(cluster.client(), "default");
    slices.create(&PostParams::default(), &slice).await.unwrap();
    service.spec.unwrap().cluster_ip.unwrap().parse().unwrap()
}

/// The address of a name, asked from inside; the error is what the server said instead.
async fn resolve(netns: &Netns, name: &str) -> std::io::Result<String> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = netns.udp(SocketAddr::from(([0, 0, 0, 0], 0))).await?;
    socket.send_to(&query.to_vec().unwrap(), (CONTROL_PLANE_IP, 53)).await?;
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(LONG, socket.recv(&mut buffer)).await??;
    let response = Message::from_vec(&buffer[..length]).unwrap();
    match response.answers.first() {
        Some(record) => Ok(record.data.to_string()),
        None => Err(std::io::Error::other(response.metadata.response_code.to_string())),
    }
}
