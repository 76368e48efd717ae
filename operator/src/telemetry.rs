//! Logging, and the HTTP listener for `/healthz`, `/readyz` and `/metrics`.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{config::LogFormat, metrics::Metrics};

/// Directives before those that were asked for: the watcher's own lines repeat those of `watch`.
const QUIET: &str = "kube_runtime::watcher=off";

/// Starts logging to standard error, coloured where that is a terminal.
///
/// # Errors
///
/// The filter cannot be read.
pub fn start_logging(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(format!("{QUIET},{filter}"))?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// What the probes answer from.
#[derive(Clone)]
pub struct Health {
    /// Set once the first lists of every watch are in.
    pub ready: Arc<AtomicBool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves the probes and the metrics until the token is cancelled.
///
/// # Errors
///
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr, health: Health, stop: CancellationToken) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    tracing::info!(address = %listener.local_addr()?, "listening for probes");
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first lists\n")
    }
}

async fn metrics(State(health): State<Health>) -> (StatusCode, String) {
    match health.metrics.render() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
