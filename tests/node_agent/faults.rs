//! What each fault of a simulated node does to its Node object and its pods.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atlas_tests::node_agent::{GPU_RESOURCE, NodeSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::support::{
    allocatable_gpus, ask, is_ready, node_ready, pod, start_cluster, start_node, wait_for, wait_for_node,
};

#[tokio::test(flavor = "multi_thread")]
async fn faults_look_as_they_do_on_real_nodes() -> Result<()> {
    let cluster = start_cluster().await?;
    let node = start_node(&cluster, NodeSpec::rx_7600("n7600")).await?;
    let nodes: Api<Node> = Api::all(cluster.client());
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let mut server = pod(
        "server",
        "Always",
        json!({"readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1}}),
    )?;
    server.spec.as_mut().context("a spec")?.tolerations =
        serde_json::from_value(json!([{"operator": "Exists"}]))?;
    pods.create(&PostParams::default(), &server).await?;
    let (first, _) = wait_for(&pods, "server", "ready", |pod, _| is_ready(pod)).await?;

    node.gpu_lost();
    wait_for_node(&nodes, "n7600", "no card", |node| allocatable_gpus(node).as_deref() == Some("0")).await?;
    let held = nodes.get("n7600").await?.status.and_then(|status| status.capacity).context("capacity")?;
    ensure!(held.get(GPU_RESOURCE).is_some_and(|gpus| gpus.0 == "1"), "capacity stays: {held:?}");
    node.gpu_back();
    wait_for_node(&nodes, "n7600", "its card", |node| allocatable_gpus(node).as_deref() == Some("1")).await?;

    node.crash_engine("default", "server", "main").await?;
    let (_, crashed) = wait_for(&pods, "server", "restarted after the crash", |pod, c| {
        c.restart_count == 1 && is_ready(pod)
    })
    .await?;
    let last = crashed.last_state.and_then(|state| state.terminated).context("a last state")?;
    ensure!(last.exit_code == 137, "{last:?}");
    ensure!(node.crash_engine("default", "server", "other").await.is_err(), "there is no such container");

    node.partition().await?;
    wait_for_node(&nodes, "n7600", "given up", |node| node_ready(node) == "Unknown").await?;
    wait_for(&pods, "server", "unready on a lost node", |pod, _| !is_ready(pod)).await?;
    ensure!(ask(&node, &first, "/").await?.contains("pid=1"), "processes live on in a cut-off node");
    node.heal().await?;
    wait_for_node(&nodes, "n7600", "back", |node| node_ready(node) == "True").await?;
    let (_, healed) = wait_for(&pods, "server", "ready again", |pod, _| is_ready(pod)).await?;
    ensure!(healed.restart_count == 1, "nothing was restarted: {healed:?}");

    node.freeze().await?;
    let late = tokio::time::timeout(Duration::from_secs(1), ask(&node, &first, "/")).await;
    ensure!(late.is_err(), "a frozen server answered: {late:?}");
    wait_for_node(&nodes, "n7600", "given up", |node| node_ready(node) == "Unknown").await?;
    node.thaw().await?;
    wait_for_node(&nodes, "n7600", "back", |node| node_ready(node) == "True").await?;
    let (_, thawed) = wait_for(&pods, "server", "ready again", |pod, _| is_ready(pod)).await?;
    ensure!(thawed.restart_count == 1, "nothing was restarted: {thawed:?}");

    node.kill().await?;
    ensure!(ask(&node, &first, "/").await.is_err(), "a killed node's process answered");
    ensure!(node.freeze().await.is_err(), "a node that is off cannot be frozen");
    wait_for_node(&nodes, "n7600", "given up", |node| node_ready(node) == "Unknown").await?;
    node.restore().await?;
    wait_for_node(&nodes, "n7600", "back", |node| node_ready(node) == "True").await?;
    let (_, booted) =
        wait_for(&pods, "server", "ready after the boot", |pod, c| c.restart_count == 2 && is_ready(pod))
            .await?;
    let last = booted.last_state.and_then(|state| state.terminated).context("a last state")?;
    ensure!(last.exit_code == 255, "{last:?}");

    node.stop().await;
    cluster.stop().await;
    Ok(())
}
