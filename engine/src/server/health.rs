//! Probes, metrics and status. The same routes stand on both ports; the internal one has a thread of its own, so that
//! it answers on time whatever the API and the model are doing.

use super::App;
use crate::error::Fatal;
use crate::status::Phase;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::net::TcpListener;
use std::sync::Arc;

/// `/healthz`, `/readyz` and `/metrics`.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    let ready = app.status.phase() == Phase::Serving;
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(app.status.readiness())).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.render(&app.status) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Starts the internal port's thread.
///
/// # Errors
/// The thread or its runtime cannot start.
pub fn spawn_internal(listener: TcpListener, app: Arc<App>) -> Result<(), Fatal> {
    let failed = |source| Fatal::System { what: "starting the internal port", source };
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let status = get(|State(app): State<Arc<App>>| async move { Json(app.status.json()) });
        let router = routes().route("/internal/status", status).with_state(app);
        axum::serve(listener, router).await
    };
    let thread = move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::error!(%error, "the internal port stopped");
        }
    };
    std::thread::Builder::new().name("internal-port".into()).spawn(thread).map_err(failed)?;
    Ok(())
}
