//! `atlas-operator controller` runs the controllers of AtlasModel and GpuProfile; `atlas-operator gateway` runs the
//! data path of one namespace.
//!
//! The controllers are a straight pipe: gather, validate, plan, desired, apply, observe, status. Traffic does not
//! depend on them: with the controllers away the gateways still serve and fail over.

mod act;
mod apply;
mod busy;
mod config;
mod context;
mod controller;
mod credentials;
mod desired;
mod drain;
mod error;
mod events;
mod fit;
mod gateway_set;
mod headers;
mod kinds;
mod leader;
mod measure;
mod metrics;
mod node_marks;
mod observe;
mod ownership;
mod place;
mod plan;
mod pod_removal;
mod probe;
mod profile;
mod profile_status;
mod reconcile;
mod recorder;
mod reports;
mod revision;
mod state_metrics;
mod status;
mod status_write;
mod stores;
mod telemetry;
mod validate;
mod watch;
mod webhook;
mod wrong_card;

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use config::{Cli, Command, GatewayArgs};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Longest wait for the API server to answer what is not a watch; it gives its own answers up after a minute.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Longest silence of the API server towards a gateway.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Threads of the controllers at most: they wait for the API server most of their time, and each thread of a large
/// machine would keep memory of its own.
const CONTROLLER_THREADS: usize = 4;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Controller(_)) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        runtime.worker_threads(cores.min(CONTROLLER_THREADS));
    }
    runtime.enable_all().build().context("no threads can be started")?.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    telemetry::start_logging(cli.log_format, &cli.log).context("--log holds no filter")?;
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    let config = kube::Config::infer()
        .await
        .context("no way to the API server: run in a pod with a ServiceAccount, or set KUBECONFIG")?;
    let client = kube::Client::try_from(config.clone()).context("no client of the API server")?;
    match cli.command {
        Command::Controller(args) => {
            let asking =
                kube::Client::try_from(with_deadline(config)).context("no client of the API server")?;
            controller::run(*args, controller::Clients { watching: client, asking }, stop).await?;
        }
        Command::Gateway(args) => {
            let client =
                kube::Client::try_from(with_patience(config)).context("no client of the API server")?;
            atlas_gateway::run(gateway_config(args), client, stop).await?;
        }
    }
    tracing::info!("stopped as asked");
    Ok(())
}

/// For gateways: their watches end after 20 s, so a connection that is silent for longer is one to a server that is gone.
fn with_patience(mut config: kube::Config) -> kube::Config {
    config.read_timeout = Some(SILENT_FOR);
    config.reset_reader_on_write = true;
    config
}

/// For questions and writes: an API server that stays silent must not hold a reconcile for ever.
fn with_deadline(mut config: kube::Config) -> kube::Config {
    config.read_timeout = Some(ANSWER_WITHIN);
    // A pooled connection that was idle has not been asked anything yet.
    config.reset_reader_on_write = true;
    config
}

fn gateway_config(args: GatewayArgs) -> atlas_gateway::GatewayConfig {
    let GatewayArgs {
        namespace,
        listen,
        internal_listen,
        cluster_domain,
        pod_name,
        tls_certificate,
        tls_key,
    } = args;
    let tls = tls_certificate.zip(tls_key);
    atlas_gateway::GatewayConfig {
        namespace,
        pod_name,
        listen,
        internal_listen,
        tls: tls.map(|(certificate, key)| atlas_gateway::TlsFiles { certificate, key }),
        cluster_domain,
        timing: atlas_gateway::Timing::production(),
    }
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no handler for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no handler for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}
