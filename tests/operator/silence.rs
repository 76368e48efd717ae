//! Gateways that stop and gateways that only seem to: real gateway processes on loopback stand for pods.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use atlas_crds::names::{GATEWAY_INTERNAL_PORT, GATEWAY_PORT};
use atlas_tests::{
    chaos::wire::Wire,
    support::{binary, wait_until},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::bench::{Bench, LONG};

const NAMESPACE: &str = "silence";
/// For a controller to make up its mind about what it does not hear.
const CUT_FOR: Duration = Duration::from_secs(2);
const DEPLOYMENT: &str = "atlas-gateway";
/// Far below the time that a last knock takes.
const WRITES_EVERY: Duration = Duration::from_millis(50);
const DELETED: &str = "atlas_silent_gateways_deleted_total ";
const STALLED: &str = "atlas_gateway_watch_stalled_seconds_total ";

/// A gateway process and the pod that it stands for.
pub struct Process {
    child: Child,
    pod: &'static str,
}

impl Process {
    async fn start(bench: &Bench, pod: &'static str) -> Result<Self> {
        Self::start_in(bench, (NAMESPACE, pod), &[], "readyz").await
    }

    /// Starts one, waits until this path of its internal port answers 200, and makes it a ready pod.
    pub async fn start_in(
        bench: &Bench,
        at: (&'static str, &'static str),
        flags: &[&str],
        path: &str,
    ) -> Result<Self> {
        let (namespace, pod) = at;
        // The contract names the ports, so the address is what is free: any of 127.0.0.0/8 will do.
        let free = |ip: Ipv4Addr| {
            [GATEWAY_PORT, GATEWAY_INTERNAL_PORT].iter().all(|port| TcpListener::bind((ip, *port)).is_ok())
        };
        let mut addresses = (0..64).map(|_| {
            let [a, b, c, _] = rand::random::<u32>().to_be_bytes();
            Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
        });
        let Some(ip) = addresses.find(|ip| free(*ip)) else { bail!("no free address in 127.0.0.0/8") };
        let child = Command::new(binary("atlas-operator")?)
            .args(["gateway", "--namespace", namespace])
            .args(["--listen", &format!("{ip}:{GATEWAY_PORT}")])
            .args(["--internal-listen", &format!("{ip}:{GATEWAY_INTERNAL_PORT}")])
            .args(flags)
            .env("KUBECONFIG", bench.kubeconfig())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        wait_until("the gateway to answer", LONG, async || {
            let url = format!("http://{ip}:{GATEWAY_INTERNAL_PORT}/{path}");
            let answer = reqwest::get(url).await.map_err(|error| error.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await?;
        let labels = json!({
            "app.kubernetes.io/name": "atlas-gateway", "app.kubernetes.io/component": "gateway",
            "app.kubernetes.io/managed-by": "atlas-operator",
        });
        let object = json!({
            "metadata": {"name": pod, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": pod, "containers": [{"name": "gateway", "image": "example/atlas-operator:t"}]},
        });
        bench.create("Pod", Some(namespace), object).await?;
        let status = json!({
            "phase": "Running", "podIP": ip.to_string(), "podIPs": [{"ip": ip.to_string()}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        bench.patch_status("Pod", (Some(namespace), pod), status).await?;
        Ok(Self { child, pod })
    }
}

/// A process's id, for a signal.
fn id(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id().context("the process is gone")?)?))
}

async fn is_gone(bench: &Bench, pod: &str) -> Result<()> {
    let api = bench.api("Pod", Some(NAMESPACE));
    wait_until(&format!("{pod} to be deleted"), LONG, async || {
        match api.get_opt(pod).await.map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(_) => Err("it is there".to_owned()),
        }
    })
    .await
    .with_context(|| bench.log("operator-a"))?;
    Ok(())
}

/// A cable to the API server that is cut holds what is sent, as a network does, and delivers it when it is mended.
pub async fn cut_off() -> Result<()> {
    let mut bench = Bench::without_operator().await?;
    // What the cluster writes is JSON, which is YAML too.
    let mut kubeconfig: Value = serde_json::from_slice(&std::fs::read(bench.kubeconfig())?)?;
    let server = &mut kubeconfig["clusters"][0]["cluster"]["server"];
    let address = server.as_str().and_then(|url| url.strip_prefix("https://")).context("no server")?;
    let wire = Wire::lay(address.parse()?).await?;
    *server = format!("https://{}", wire.address).into();
    bench.lead_through(&kubeconfig.to_string())?;
    bench.namespace(NAMESPACE).await?;
    let bench = &bench;
    let operator = bench.spawn_operator("operator-a").await?;
    bench.replace_operator(Some(operator));
    let near = Process::start(bench, "gateway-a").await?;
    let far = Process::start(bench, "gateway-b").await?;
    let lost = Process::start(bench, "gateway-c").await?;
    // One that is really lost shows that the controller knows all three.
    kill(id(&lost.child)?, Signal::SIGSTOP)?;
    is_gone(bench, lost.pod).await?;

    wire.set_cut(true);
    kill(id(&far.child)?, Signal::SIGSTOP)?;
    tokio::time::sleep(CUT_FOR).await;
    kill(id(&far.child)?, Signal::SIGCONT)?;
    wire.set_cut(false);
    // The controller acts again, and what it may have wanted meanwhile has arrived.
    kill(id(&near.child)?, Signal::SIGSTOP)?;
    is_gone(bench, near.pod).await?;
    ensure!(
        bench.api("Pod", Some(NAMESPACE)).get_opt(far.pod).await?.is_some(),
        "what a controller did while it was cut off took a living gateway\n{}",
        bench.log("operator-a")
    );
    Ok(())
}

/// The gateways' Deployment, which owns none of the pods here.
async fn create_deployment(bench: &Bench, annotations: Value) -> Result<()> {
    let labels = json!({"app": "gateways"});
    let deployment = json!({
        "metadata": {"name": DEPLOYMENT, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "example/c:t"}]}}},
    });
    bench.create("Deployment", Some(NAMESPACE), deployment).await.map(drop)
}

/// Kubernetes writes to the gateways' Deployment whenever a pod comes or goes, which gives nobody up.
async fn deletes_while_others_write(bench: &Bench) -> Result<()> {
    let frozen = Process::start(bench, "gateway-e").await?;
    create_deployment(bench, json!({})).await?;
    let deployments = bench.api("Deployment", Some(NAMESPACE));
    let writes = async {
        for count in 0.. {
            let noted =
                Patch::Merge(json!({"metadata": {"annotations": {"example/count": count.to_string()}}}));
            deployments.patch(DEPLOYMENT, &PatchParams::default(), &noted).await?;
            tokio::time::sleep(WRITES_EVERY).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let deleted = async {
        kill(id(&frozen.child)?, Signal::SIGSTOP)?;
        is_gone(bench, frozen.pod).await
    };
    tokio::select! {
        written = writes => written?,
        deleted = deleted => deleted?,
    }
    deployments.delete(DEPLOYMENT, &DeleteParams::default()).await?;
    Ok(())
}

/// Who hears only a gateway that another controller has just given up deletes none, until that did not happen.
async fn waits_for_another_controller(bench: &Bench, lives: &str) -> Result<()> {
    const GAVE_UP: &str = "atlas.gillsystems.com/gave-up";
    let frozen = Process::start(bench, "gateway-d").await?;
    let pods = bench.api("Pod", Some(NAMESPACE));
    let uid = async |pod: &str| pods.get(pod).await?.uid().context("a pod without a uid");
    let (lives, frozen_uid) = (uid(lives).await?, uid(frozen.pod).await?);
    let began = jiff::Timestamp::now();
    create_deployment(bench, json!({GAVE_UP: format!("{lives} {began}")})).await?;
    kill(id(&frozen.child)?, Signal::SIGSTOP)?;
    is_gone(bench, frozen.pod).await?;
    let deployment = bench.api("Deployment", Some(NAMESPACE)).get(DEPLOYMENT).await?;
    let said = deployment.annotations().get(GAVE_UP).and_then(|said| said.split_once(' '));
    let (gave_up, at) = said.context("the controller gave nobody up")?;
    let waited = at.parse::<jiff::Timestamp>()?.duration_since(began);
    ensure!(gave_up == frozen_uid && waited.as_secs() >= 5, "{gave_up} after {waited:?}");
    bench.api("Deployment", Some(NAMESPACE)).delete(DEPLOYMENT, &DeleteParams::default()).await?;
    Ok(())
}

pub async fn silent_and_starved() -> Result<()> {
    /// Longer than two thirds of a question's old deadline, and far longer than the silence in the sum.
    const STOPPED: Duration = Duration::from_millis(300);
    const RUNS: Duration = Duration::from_millis(15);
    let bench = &Bench::start().await?;
    bench.namespace(NAMESPACE).await?;
    let gateways = [
        Process::start(bench, "gateway-a").await?,
        Process::start(bench, "gateway-b").await?,
        Process::start(bench, "gateway-c").await?,
    ];
    let operator = bench.operator_process()?;
    let before = (bench.metric(DELETED).await?, bench.metric(STALLED).await?);
    // The controller is starved: it runs for a moment now and then, and once not at all for long.
    for stopped in [&[STOPPED; 12][..], &[10 * STOPPED]].concat() {
        kill(operator, Signal::SIGSTOP)?;
        tokio::time::sleep(stopped).await;
        kill(operator, Signal::SIGCONT)?;
        tokio::time::sleep(RUNS).await;
    }
    wait_until("the controller to say how long it stood still", LONG, async || {
        let stalled = bench.metric(STALLED).await.map_err(|error| error.to_string())? - before.1;
        if stalled > 4.0 { Ok(()) } else { Err(format!("{stalled} s")) }
    })
    .await?;
    for gateway in &gateways {
        let pod = bench.api("Pod", Some(NAMESPACE)).get_opt(gateway.pod).await?;
        ensure!(pod.is_some(), "{} was deleted although it lives\n{}", gateway.pod, bench.log("operator-a"));
    }
    ensure!(bench.metric(DELETED).await? == before.0, "a living gateway was deleted");

    // A frozen one accepts connections and is silent on them; a dead one refuses them.
    let [frozen, mut dead, lives] = gateways;
    kill(id(&frozen.child)?, Signal::SIGSTOP)?;
    is_gone(bench, frozen.pod).await?;
    dead.child.kill().await?;
    is_gone(bench, dead.pod).await?;
    ensure!(
        bench.api("Pod", Some(NAMESPACE)).get_opt(lives.pod).await?.is_some(),
        "the last one was deleted"
    );
    deletes_while_others_write(bench).await?;
    waits_for_another_controller(bench, lives.pod).await?;
    bench.remove_pod((NAMESPACE, lives.pod)).await
}
