//! The figures of docs/benchmarks.md that need the whole local cluster: reaction times and the operator's memory.
//!
//! It prints what it ran on, each figure's median and spread, and leaves them in `target/bench/operator.json`.
//! These are benchmarks, never tests: nothing fails because a shared machine was slow.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::watcher,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    lab::PRIMARY_NODE,
    support::wait_until,
    tour::{
        self, MODEL, NAMESPACE,
        client::Client,
        report::{Report, Screen, step},
        stage::{LocalStage, Stage},
    },
};
use atlas_crds::{AtlasModel, names};

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What `atlas-local bench` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds of apply until pods exist.
    #[arg(long, default_value_t = 20)]
    apply_rounds: u32,
    /// Rounds of killing the primary's engine.
    #[arg(long, default_value_t = 10)]
    kill_rounds: u32,
    /// Rounds of losing the primary's node.
    #[arg(long, default_value_t = 5)]
    node_rounds: u32,
}

/// One figure over several rounds, in milliseconds.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    rounds: usize,
    min_ms: u64,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

impl Figure {
    fn of(name: &'static str, mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let at = |share: f64| {
            // Nearest rank: with few rounds the 99th percentile is the slowest one.
            let rank = (share * samples.len() as f64).ceil() as usize;
            samples.get(rank.saturating_sub(1)).map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        };
        Some(Self {
            name,
            rounds: samples.len(),
            min_ms: at(0.0)?,
            p50_ms: at(0.5)?,
            p99_ms: at(0.99)?,
            max_ms: at(1.0)?,
        })
    }
}

#[derive(Serialize)]
struct Figures {
    machine: String,
    figures: Vec<Figure>,
    controller_rss_kib: Option<u64>,
}

/// Runs the benchmarks on a cluster of their own.
///
/// # Errors
///
/// The cluster does not come up, or something under measurement never happens.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let screen = Screen::default();
    let mut stage =
        Stage::Local(Box::new(LocalStage::start(&screen, &mut Report::default(), BTreeMap::new()).await?));
    let figures = measure(&args, &screen, &mut stage).await;
    stage.stop().await;
    let figures = figures?;
    println!("\nmachine: {}\ncommand: atlas-local bench\n", figures.machine);
    println!("{:<52} {:>6} {:>8} {:>8} {:>8} {:>8}", "milliseconds", "rounds", "min", "p50", "p99", "max");
    for f in &figures.figures {
        println!(
            "{:<52} {:>6} {:>8} {:>8} {:>8} {:>8}",
            f.name, f.rounds, f.min_ms, f.p50_ms, f.p99_ms, f.max_ms
        );
    }
    if let Some(kib) = figures.controller_rss_kib {
        println!(
            "{:<52} {:>8.1} MiB",
            "memory of the controller (VmRSS, all of the above done)",
            kib as f64 / 1024.0
        );
    }
    let path = Path::new("target/bench/operator.json");
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")?;
    Ok(())
}

async fn measure(args: &Args, screen: &Screen, stage: &mut Stage) -> anyhow::Result<Figures> {
    let mut report = Report::default();
    let kube = stage.local()?.lab().cluster().client();
    let mut figures = Vec::new();
    stage.kubectl(&["apply", "-f", &stage.sample("gpuprofiles.yaml")?]).await?;
    let samples = step(
        screen,
        &mut report,
        "apply of an AtlasModel to its pods",
        apply_rounds(&kube, args.apply_rounds),
    )
    .await?;
    figures.extend(Figure::of("apply of an AtlasModel to its Deployments created", samples.deployments));
    figures.extend(Figure::of("apply of an AtlasModel to its pods created", samples.pods));

    let client = tour::deploy(stage, screen, &mut report).await?;
    // Between two rounds the better tier must be back; the patience for that is not what is measured.
    let patch = r#"{"spec":{"failover":{"failbackAfter":"1s"}}}"#;
    stage.kubectl(&["patch", "atlasmodel", "-n", NAMESPACE, MODEL, "--type=merge", "-p", patch]).await?;

    let mut samples = Vec::new();
    step(screen, &mut report, "engine killed to the next answer", async {
        for _ in 0..args.kill_rounds {
            preferred(&client).await?;
            let pod = primary_pod(&kube).await?;
            let lab = stage.local()?.lab();
            let fresh = Client::new(client.base(), MODEL)?;
            let killed = Instant::now();
            lab.node(PRIMARY_NODE)?.crash_engine(NAMESPACE, &pod, "engine").await?;
            fresh.chat("Say yes.", 4, |_| {}).await?;
            samples.push(killed.elapsed());
            // A fresh pod instead of the crashed one, whose restarts would take longer each time.
            Api::<Pod>::namespaced(kube.clone(), NAMESPACE)
                .delete(&pod, &DeleteParams::default().grace_period(0))
                .await?;
        }
        Ok(())
    })
    .await?;
    figures.extend(Figure::of("primary's engine killed to the next whole answer", samples));

    let mut samples = Vec::new();
    step(screen, &mut report, "node lost to the next answer", async {
        for _ in 0..args.node_rounds {
            preferred(&client).await?;
            let fresh = Client::new(client.base(), MODEL)?;
            let lost = Instant::now();
            stage.lose_primary().await?;
            fresh.chat("Say yes.", 4, |_| {}).await?;
            samples.push(lost.elapsed());
            stage.return_primary().await?;
        }
        Ok(())
    })
    .await?;
    figures.extend(Figure::of("primary's node lost to the next whole answer", samples));
    Ok(Figures { machine: machine(), figures, controller_rss_kib: controller_rss_kib() })
}

/// Waits until the preferred tier answers.
async fn preferred(client: &Client) -> anyhow::Result<()> {
    wait_until("the preferred tier to serve", PATIENCE, || async {
        match client.chat("Say yes.", 1, |_| {}).await {
            Ok(answer) if answer.tier == "primary" => Ok(()),
            Ok(answer) => Err(format!("served by {}", answer.tier)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    Ok(())
}

async fn primary_pod(kube: &kube::Client) -> anyhow::Result<String> {
    let selector = format!("{}={MODEL},{}=primary", names::LABEL_MODEL, names::LABEL_TIER);
    let pods = Api::<Pod>::namespaced(kube.clone(), NAMESPACE)
        .list(&kube::api::ListParams::default().labels(&selector))
        .await?;
    let live = pods.items.iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(live.context("the first tier has no pod")?.name_any())
}

/// What the operator does of an apply, and what Kubernetes makes of that.
#[derive(Default)]
struct ApplyRounds {
    deployments: Vec<Duration>,
    pods: Vec<Duration>,
}

/// Creates a model with both tiers again and again and takes the time until Deployments and pods of both exist.
async fn apply_rounds(kube: &kube::Client, rounds: u32) -> anyhow::Result<ApplyRounds> {
    const SPACE: &str = "bench";
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(SPACE.into());
    Api::<Namespace>::all(kube.clone()).create(&PostParams::default(), &namespace).await?;
    let deployments: Api<Deployment> = Api::namespaced(kube.clone(), SPACE);
    let pods: Api<Pod> = Api::namespaced(kube.clone(), SPACE);
    let models: Api<AtlasModel> = Api::namespaced(kube.clone(), SPACE);
    let mut samples = ApplyRounds::default();
    for round in 0..rounds {
        let name = format!("bench-{round}");
        let (made, scheduled) =
            tokio::join!(BothTiers::watch(&deployments, &name), BothTiers::watch(&pods, &name));
        let (mut made, mut scheduled) = (made?, scheduled?);
        let began = Instant::now();
        models.create(&PostParams::default(), &sample(&name)?).await?;
        let (made, scheduled) = tokio::try_join!(made.seen(began), scheduled.seen(began))?;
        samples.deployments.push(made);
        samples.pods.push(scheduled);
        models.delete(&name, &DeleteParams::default()).await?;
        let selector = format!("{}={name}", names::LABEL_MODEL);
        wait_until("the model's pods to be gone", PATIENCE, || async {
            match pods.list(&kube::api::ListParams::default().labels(&selector)).await {
                Ok(left) if left.items.is_empty() => Ok(()),
                Ok(left) => Err(format!("{} left", left.items.len())),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    }
    Ok(samples)
}

/// A watch of a model's objects that began before the model existed.
struct BothTiers<K: 'static> {
    stream: BoxStream<'static, watcher::Result<watcher::Event<K>>>,
}

impl<K> BothTiers<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    /// Watches the objects of the model; returns once the first list is in.
    async fn watch(api: &Api<K>, model: &str) -> anyhow::Result<Self> {
        let config = watcher::Config::default().labels(&format!("{}={model}", names::LABEL_MODEL));
        let mut stream = watcher(api.clone(), config).boxed();
        while !matches!(stream.try_next().await?.context("the watch ended")?, watcher::Event::InitDone) {}
        Ok(Self { stream })
    }

    /// Time from `began` until there is an object of each of two tiers.
    async fn seen(&mut self, began: Instant) -> anyhow::Result<Duration> {
        let mut tiers = std::collections::BTreeSet::new();
        let all = async {
            while tiers.len() < 2 {
                let event = self.stream.try_next().await?.context("the watch ended")?;
                if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) = event {
                    tiers.insert(object.labels().get(names::LABEL_TIER).cloned());
                }
            }
            anyhow::Ok(began.elapsed())
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .with_context(|| format!("no {} of both tiers", K::kind(&())))?
    }
}

fn sample(name: &str) -> anyhow::Result<AtlasModel> {
    let tier = |tier: &str, profile: &str| {
        serde_json::json!({"name": tier, "gpuProfile": profile, "contextTokens": 512, "maxBatch": 1,
            "model": {"source": format!("http://models.atlas.test:8089/smollm2-135m-{tier}.gguf")}})
    };
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "AtlasModel",
        "metadata": {"name": name},
        "spec": {"tiers": [tier("primary", "rx-7900-xtx"), tier("fallback", "rx-7600")],
                 "rollout": {"drainTimeout": "1s"}},
    }))?)
}

/// What the figures were taken on.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    format!("{cores} cores of {}", model.trim_start_matches([' ', '\t', ':']))
}

/// Resident memory of the controller that runs as a pod on this machine.
fn controller_rss_kib() -> Option<u64> {
    let folders = std::fs::read_dir("/proc").ok()?;
    folders
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
            let command = read("cmdline")?;
            let mut words = command.split('\0');
            let program = words.next()?;
            if !program.ends_with("atlas-operator") || words.next()? != "controller" {
                return None;
            }
            let status = read("status")?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .max()
}
