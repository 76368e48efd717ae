//! What pods see, how probes decide about them, and how they end.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use atlas_tests::cluster::Cluster;
use atlas_tests::node_agent::{NodeAgent, NodeSpec};
use atlas_tests::support::wait_until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::{PATIENCE, ask, is_ready, pod, start_cluster, start_node, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_answer_and_end_as_on_a_kubelet() -> Result<()> {
    let cluster = start_cluster().await?;
    let node = start_node(&cluster, NodeSpec::rx_7900_xtx("xtx")).await?;
    let client = cluster.client();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());

    deployment_becomes_ready(&cluster, &node).await?;
    containers_see_what_their_manifest_says(&cluster, &node, &pods).await?;
    logs_and_port_forward_work(&cluster, &pods).await?;
    exits_are_reported_and_restarted(&pods).await?;
    images_that_are_unknown_say_so(&cluster, &pods).await?;
    probes_decide(&node, &pods).await?;
    deletion_is_graceful(&cluster, &pods).await?;

    node.stop().await;
    cluster.stop().await;
    Ok(())
}

async fn deployment_becomes_ready(cluster: &Cluster, node: &NodeAgent) -> Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "initContainers": [{"name": "first", "image": "test-server", "args": ["--exit=0"]}],
                    "containers": [{
                        "name": "main",
                        "image": "registry.example/atlas-engine-hip:1",
                        "args": ["serve", "--backend", "hip", "--expect-gfx-target", "gfx1100"],
                        "ports": [{"name": "api", "containerPort": 8080}],
                        "resources": {"limits": {"amd.com/gpu": 1}},
                        "startupProbe": {"httpGet": {"path": "/readyz", "port": "api"}, "periodSeconds": 1},
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "api"}, "periodSeconds": 1}
                    }]
                }
            }
        }
    }))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    wait_until("the Deployment to be available", PATIENCE, || async {
        let held = deployments.get("web").await.map_err(|error| error.to_string())?;
        let status = held.status.unwrap_or_default();
        if status.available_replicas == Some(1) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let pod = pods.list(&ListParams::default().labels("app=web")).await?.items.pop().context("a pod")?;
    let answer = ask(node, &pod, "/").await?;
    ensure!(answer.contains("arguments=serve --backend cpu\n"), "the card's flags are swapped: {answer}");
    Ok(())
}

async fn containers_see_what_their_manifest_says(
    cluster: &Cluster,
    node: &NodeAgent,
    pods: &Api<Pod>,
) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let secrets: Api<Secret> = Api::default_namespaced(cluster.client());
    let map = json!({"metadata": {"name": "greetings"}, "data": {"greeting": "hello"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    let secret = json!({"metadata": {"name": "keys"}, "stringData": {"key": "s3cret"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    let mut seen = pod(
        "seen",
        "Always",
        json!({
            "args": ["--ip=$(POD_IP)", "$$(POD)", "it's quoted"],
            "env": [
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}
            ],
            "volumeMounts": [{"name": "greetings", "mountPath": "/etc/test"}, {"name": "models", "mountPath": "/models"}],
            "securityContext": {"runAsUser": 4711, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false},
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
        }),
    )?;
    let spec = seen.spec.as_mut().context("a spec")?;
    spec.volumes = serde_json::from_value(json!([
        {"name": "greetings", "configMap": {"name": "greetings"}},
        {"name": "models", "emptyDir": {}}
    ]))?;
    spec.security_context =
        serde_json::from_value(json!({"runAsNonRoot": true, "supplementalGroups": [44, 109]}))?;
    pods.create(&PostParams::default(), &seen).await?;
    let (pod, _) = wait_for(pods, "seen", "ready", |pod, _| is_ready(pod)).await?;
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("a pod IP")?;
    let answer = ask(node, &pod, "/").await?;
    for fact in [
        "pid=1",
        "user=4711",
        "groups=[44, 109]",
        &format!("arguments=--ip={ip} $(POD) it's quoted"),
        "POD=seen",
        &format!("POD_IP={ip}"),
        "SECRET=s3cret",
        "KUBERNETES_SERVICE_HOST=10.78.0.1",
        "config=hello",
        "namespace=default",
        "token-parts=3",
        "ca=true",
        "resolv=nameserver 10.76.0.1|search default.svc.cluster.local svc.cluster.local cluster.local|options ndots:5",
        "root-is-read-only=true",
        "volume-is-writable=true",
    ] {
        ensure!(answer.lines().any(|line| line == fact), "{fact:?} is missing in:\n{answer}");
    }
    ensure!(!Path::new("/root-write").exists(), "a container wrote to the host");
    Ok(())
}

async fn logs_and_port_forward_work(cluster: &Cluster, pods: &Api<Pod>) -> Result<()> {
    let logs = cluster.kubectl(&["logs", "seen", "--tail=1"]).await?;
    ensure!(logs.stdout == "GET /\n", "{logs:?}");
    let mut follower = kubectl(cluster, &["logs", "-f", "seen"])?;
    let mut lines = BufReader::new(follower.stdout.take().context("stdout")?).lines();
    ensure!(
        lines.next_line().await?.is_some_and(|line| line.starts_with("test-server")),
        "the log's beginning"
    );

    let mut forward = kubectl(cluster, &["port-forward", "pod/seen", ":8080", "--address=127.0.0.1"])?;
    let mut said = BufReader::new(forward.stdout.take().context("stdout")?).lines();
    let line = said.next_line().await?.context("a line from port-forward")?;
    let port: u16 = line
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.split(' ').next())
        .with_context(|| line.clone())?
        .parse()?;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /through-the-forward HTTP/1.1\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
    ensure!(answer.contains("POD=seen"), "{answer}");
    // What came through the forward shows up in the followed log.
    let followed = async {
        while let Some(line) = lines.next_line().await? {
            if line == "GET /through-the-forward" {
                return Ok(());
            }
        }
        anyhow::bail!("the log ended without the request")
    };
    tokio::time::timeout(PATIENCE, followed).await??;
    // A followed log ends with its container.
    pods.delete("seen", &DeleteParams::default()).await?;
    let rest = async {
        while lines.next_line().await?.is_some() {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, rest).await??;
    forward.kill().await?;
    Ok(())
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<tokio::process::Child> {
    Ok(tokio::process::Command::new(&cluster.assets().kubectl)
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig_path())
        .env("HOME", cluster.folder())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?)
}

async fn exits_are_reported_and_restarted(pods: &Api<Pod>) -> Result<()> {
    pods.create(&PostParams::default(), &pod("once", "Never", json!({"args": ["--exit=13"]}))?).await?;
    let (once, container) = wait_for(pods, "once", "ended", |pod, _| {
        pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"))
    })
    .await?;
    let ended = container.state.and_then(|state| state.terminated).context("terminated")?;
    ensure!(ended.exit_code == 13 && ended.reason.as_deref() == Some("Error"), "{ended:?}");
    ensure!(ended.message.as_deref() == Some("ending with 13 as asked"), "{ended:?}");
    ensure!(once.status.is_some_and(|status| status.pod_ip.is_some()), "it had an address");

    pods.create(&PostParams::default(), &pod("loop", "Always", json!({"args": ["--exit=12"]}))?).await?;
    let (_, container) = wait_for(pods, "loop", "CrashLoopBackOff after a second restart", |_, container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        container.restart_count >= 2
            && waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"))
    })
    .await?;
    let last = container.last_state.and_then(|state| state.terminated).context("a last state")?;
    ensure!(last.exit_code == 12, "{last:?}");
    pods.delete("loop", &DeleteParams::default()).await?;
    pods.delete("once", &DeleteParams::default()).await?;
    Ok(())
}

async fn images_that_are_unknown_say_so(cluster: &Cluster, pods: &Api<Pod>) -> Result<()> {
    for (name, image, message) in [
        ("unknown", "docker.io/library/nginx:1", "knows only atlas-engine-hip, not-built, test-server"),
        ("unbuilt", "not-built", "/nowhere/not-built is not there; build it first"),
    ] {
        pods.create(&PostParams::default(), &pod(name, "Always", json!({"image": image}))?).await?;
        wait_for(pods, name, "waiting for its image", |_, container| {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            waiting.is_some_and(|waiting| {
                matches!(waiting.reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"))
                    && waiting.message.as_deref().is_some_and(|text| text.contains(message))
            })
        })
        .await?;
        pods.delete(name, &DeleteParams::default()).await?;
    }
    wait_until("the event", PATIENCE, || async {
        let events = cluster.kubectl(&["get", "events", "-A"]).await.map_err(|error| error.to_string())?;
        if events.stdout.contains("a simulated node pulls nothing") { Ok(()) } else { Err(events.stdout) }
    })
    .await?;
    Ok(())
}

async fn probes_decide(node: &NodeAgent, pods: &Api<Pod>) -> Result<()> {
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    let probed = pod(
        "probed",
        "Always",
        json!({"readinessProbe": probe("/readyz"), "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080},
            "periodSeconds": 1, "initialDelaySeconds": 1, "failureThreshold": 2}}),
    )?;
    pods.create(&PostParams::default(), &probed).await?;
    let (pod, _) = wait_for(pods, "probed", "ready", |pod, _| is_ready(pod)).await?;
    ask(node, &pod, "/unready").await?;
    let (pod, _) = wait_for(pods, "probed", "unready", |pod, _| !is_ready(pod)).await?;
    ask(node, &pod, "/unwell").await?;
    let (_, container) =
        wait_for(pods, "probed", "restarted and ready", |pod, c| c.restart_count == 1 && is_ready(pod))
            .await?;
    let last = container.last_state.and_then(|state| state.terminated).context("a last state")?;
    ensure!(last.exit_code == 0, "the server ends in peace when asked: {last:?}");
    Ok(())
}

async fn deletion_is_graceful(cluster: &Cluster, pods: &Api<Pod>) -> Result<()> {
    let logs = cluster.kubectl(&["logs", "probed", "--previous"]).await?;
    ensure!(logs.stdout.ends_with("asked to end\n"), "{logs:?}");
    let started = Instant::now();
    pods.delete("probed", &DeleteParams::default()).await?;
    wait_until("the pod to be gone", PATIENCE, || async {
        match pods.get_opt("probed").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    eprintln!("deleted in {:?}", started.elapsed());
    Ok(())
}
