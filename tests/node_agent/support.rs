//! Starting a cluster with one node, and waiting for what its pods become.

use std::time::Duration;

use anyhow::{Context as _, Result};
use atlas_tests::cluster::{Cluster, ClusterOptions};
use atlas_tests::node_agent::{GPU_RESOURCE, Image, ImageMap, NodeAgent, NodeAgentOptions, NodeSpec, Timing};
use atlas_tests::support::{init_logging, wait_until};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::api::Api;
use serde_json::json;

pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn images() -> ImageMap {
    let server = Image::of(env!("CARGO_BIN_EXE_test-server"));
    ImageMap::new()
        .with("test-server", server.clone())
        .with("atlas-engine-hip", Image { needs_card: true, ..server })
        .with("not-built", Image::of("/nowhere/not-built"))
}

pub async fn start_node(cluster: &Cluster, spec: NodeSpec) -> Result<NodeAgent> {
    let mut options = NodeAgentOptions::in_cluster(cluster, spec, images()).await?;
    options.timing = Timing { heartbeat: Duration::from_secs(1), restart_backoff: Duration::from_secs(1) };
    Ok(NodeAgent::start(options).await?)
}

pub async fn start_cluster() -> Result<Cluster> {
    init_logging();
    Ok(Cluster::start(ClusterOptions {
        node_monitor_period: Some(Duration::from_secs(1)),
        node_monitor_grace_period: Some(Duration::from_secs(5)),
        ..ClusterOptions::default()
    })
    .await?)
}

/// A pod with one container `main`; `changes` is merged into the container.
pub fn pod(name: &str, restart_policy: &str, changes: serde_json::Value) -> Result<Pod> {
    let mut container = json!({"name": "main", "image": "registry.example/test-server:1"});
    for (key, value) in changes.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": restart_policy, "containers": [container], "terminationGracePeriodSeconds": 5}
    }))?)
}

/// Waits until the pod's first container is as wanted, and gives its status and the pod back.
pub async fn wait_for(
    pods: &Api<Pod>,
    name: &str,
    what: &str,
    wanted: impl Fn(&Pod, &ContainerStatus) -> bool,
) -> Result<(Pod, ContainerStatus)> {
    Ok(wait_until(&format!("{name}: {what}"), PATIENCE, || async {
        let pod = pods.get(name).await.map_err(|error| error.to_string())?;
        let status = pod.status.clone().unwrap_or_default();
        match status.container_statuses.clone().unwrap_or_default().into_iter().next() {
            Some(container) if wanted(&pod, &container) => Ok((pod, container)),
            _ => Err(serde_json::to_string(&status).unwrap_or_default()),
        }
    })
    .await?)
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub async fn wait_for_node(
    nodes: &Api<Node>,
    name: &str,
    what: &str,
    wanted: impl Fn(&Node) -> bool,
) -> Result<()> {
    Ok(wait_until(&format!("node {name}: {what}"), PATIENCE, || async {
        let node = nodes.get(name).await.map_err(|error| error.to_string())?;
        if wanted(&node) { Ok(()) } else { Err(serde_json::to_string(&node.status).unwrap_or_default()) }
    })
    .await?)
}

pub fn node_ready(node: &Node) -> &str {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .map_or("none", |condition| condition.status.as_str())
}

pub fn allocatable_gpus(node: &Node) -> Option<String> {
    node.status.as_ref()?.allocatable.as_ref()?.get(GPU_RESOURCE).map(|gpus| gpus.0.clone())
}

/// Asks a pod's server from the node's own namespace.
pub async fn ask(node: &NodeAgent, pod: &Pod, path: &str) -> Result<String> {
    let ip: std::net::IpAddr =
        pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).context("a pod IP")?.parse()?;
    let mut stream = node.net().netns().connect((ip, 8080).into()).await?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
    Ok(answer)
}
