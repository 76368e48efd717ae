//! A thousand models on a thousand nodes: how long the operator takes, what it holds, and what it does when idle.
//!
//! etcd, the API server and the operator are real and run on loopback; nodes, pods and the Deployment controller's
//! words are written by the benchmark. Between the operator and the API server stands a proxy that counts.
//! It is a benchmark, never a test: nothing fails because a shared machine was slow.

mod figures;
mod load;
mod operator;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::json;

use crate::{api_proxy::ApiProxy, bench::machine, cluster::ApiServer};
use figures::Figures;
use load::Load;
use operator::{Counts, MODELS_BUSY, Operator};

/// Without a write for this long, what was begun is done.
const QUIET: Duration = Duration::from_secs(3);

/// What `atlas-local scale` takes.
#[derive(clap::Args)]
pub struct Args {
    /// AtlasModels, each with two tiers.
    #[arg(long, default_value_t = 1000)]
    models: usize,
    /// Nodes, half of each kind, with cards enough for every model.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// GpuProfiles, half of each kind; each has its own nodes and models.
    #[arg(long, default_value_t = 8)]
    profiles: usize,
    /// Seconds for which the operator is left alone and watched.
    #[arg(long, default_value_t = 120)]
    idle: u64,
}

/// Runs the benchmark, prints its figures and leaves them in `target/bench/scale.json`.
///
/// # Errors
/// Something under measurement never happens.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.apply_crds().await?;
    let client = server.client();
    let proxy = ApiProxy::start(client.clone()).await?;
    let figures = measure(args, &client, &proxy).await;
    server.stop().await;
    let figures = figures?;
    println!(
        "\nmachine: {}\ncommand: atlas-local scale --models {} --nodes {} --profiles {}\n",
        machine(),
        args.models,
        args.nodes,
        args.profiles
    );
    figures.print();
    let path = Path::new("target/bench/scale.json");
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let report = json!({"machine": machine(), "models": args.models, "nodes": args.nodes, "profiles": args.profiles, "figures": figures});
    std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    Ok(())
}

async fn measure(args: &Args, client: &kube::Client, proxy: &ApiProxy) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    figures.plans();
    let load = Load::new(client.clone(), args.models, args.nodes, args.profiles);
    say("profiles, nodes and namespaces");
    load.create_surroundings().await?;
    let mut operator = Operator::start(proxy).await?;

    say("models");
    let began = Instant::now();
    load.create_models().await?;
    figures.seconds("apply of every AtlasModel", began.elapsed());
    load.wait_for_every_model("Accepted").await?;
    figures.seconds("every AtlasModel reconciled", began.elapsed());
    operator.wait_until_quiet().await?;
    figures.seconds("the last write, counted from the same start", began.elapsed() - QUIET);
    figures.counts("of that", &operator.counts(proxy).await?);
    figures.busy("reconcile of a model, without waiting for the API server", &operator, MODELS_BUSY).await?;

    say("pods");
    let began = Instant::now();
    load.create_pods().await?;
    figures.seconds("every pod created and ready", began.elapsed());
    load.wait_for_every_model("Ready").await?;
    figures.seconds("every AtlasModel ready", began.elapsed());
    operator.wait_until_quiet().await?;

    for (what, change) in [
        ("one node cordoned", json!({"spec": {"unschedulable": true}})),
        (
            "it is lost",
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": ""}]}}),
        ),
        ("one node's label changed", json!({"metadata": {"labels": {"amd.com/gpu.driver-version": "6.3"}}})),
    ] {
        say(what);
        let before = operator.counts(proxy).await?;
        load.change_node(&change).await?;
        operator.wait_until_quiet().await?;
        figures.counts(what, &operator.counts(proxy).await?.since(&before));
    }
    say("one model changed");
    let before = operator.counts(proxy).await?;
    load.change_model().await?;
    operator.wait_until_quiet().await?;
    figures.counts("one model changed", &operator.counts(proxy).await?.since(&before));

    say("idle");
    let before = operator.counts(proxy).await?;
    tokio::time::sleep(Duration::from_secs(args.idle)).await;
    let idle = operator.counts(proxy).await?.since(&before);
    figures.idle(&idle, args.idle);
    figures.memory("memory of the operator (VmRSS), and its peak", &operator)?;

    say("a restart");
    // The operator counts from nothing again, the proxy goes on.
    let before = Counts { requests: proxy.requests() as f64, ..Counts::default() };
    let began = Instant::now();
    operator = operator.restart(proxy).await?;
    figures.seconds("restart until the stores are filled", began.elapsed());
    let models = args.models as f64;
    operator.wait_for_reconciles(models).await?;
    figures.seconds("restart until every model was looked at", began.elapsed());
    operator.wait_until_quiet().await?;
    figures.counts("the restart", &operator.counts(proxy).await?.since(&before));
    figures.busy("reconcile of a settled model, without waiting", &operator, MODELS_BUSY).await?;
    figures.memory("memory after the restart, and its peak", &operator)?;
    operator.stop().await.context("the operator did not stop")?;
    Ok(figures)
}

fn say(what: &str) {
    eprintln!("… {what}");
}
