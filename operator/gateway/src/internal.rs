//! The internal listener: `/healthz`, `/readyz`, `/metrics`, `/internal/status`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};

use crate::{
    metrics::Metrics,
    registry::Registry,
    status::{CertificateProblem, Status, compute_status},
    tls::Identity,
};

/// What the internal paths read.
#[derive(Debug)]
pub struct Internal {
    /// Name of this pod.
    pub pod: String,
    /// The certificate of the API's listener, where it has one.
    pub identity: Option<Arc<Identity>>,
    /// The models.
    pub registry: Arc<Registry>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the first lists of both watches are in.
    pub listed: AtomicBool,
    /// Whether the process was asked to stop.
    pub stopping: AtomicBool,
}

/// The paths.
pub fn router(internal: Arc<Internal>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(|State(internal): State<Arc<Internal>>| async move { internal.metrics.render() }),
        )
        .route("/internal/status", get(status))
        .with_state(internal)
}

async fn readyz(State(internal): State<Arc<Internal>>) -> impl IntoResponse {
    if internal.stopping.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping: running requests are finished, new ones go elsewhere\n")
    } else if !internal.listed.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first list of AtlasModels and EndpointSlices\n")
    } else if internal.identity.as_ref().is_some_and(|identity| !identity.is_usable()) {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for a certificate that can be used: see /internal/status\n",
        )
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn status(State(internal): State<Arc<Internal>>) -> Json<Status> {
    let problem = internal.identity.as_ref().and_then(|identity| {
        Some(CertificateProblem { text: identity.problem()?, lets_nobody_in: !identity.is_usable() })
    });
    Json(compute_status(&internal.pod, &internal.registry.view(), problem.as_ref()))
}
