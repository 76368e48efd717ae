//! The internal port: probes, metrics and status, and generation with the fields of the resume contract.
//!
//! The port has a thread of its own, so that probes are answered on time whatever the API and the model are doing.
//! Generation asked for here is computed on the API's threads; this one only passes the bytes on.

use super::listen::{ConnectionLimits, serve};
use super::{App, api, health};
use crate::error::Fatal;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use std::net::TcpListener;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// Pieces of an answer that wait for this thread to pass them on.
const PIECES: usize = 16;

/// Starts the internal port's thread; `api` runs what generates. The receiver resolves when the thread ends.
///
/// # Errors
/// The thread or its runtime cannot start.
pub fn spawn(
    listener: TcpListener,
    app: Arc<App>,
    api: Handle,
    limits: ConnectionLimits,
    stop: watch::Receiver<bool>,
) -> Result<oneshot::Receiver<()>, Fatal> {
    let failed = |source| Fatal::System { what: "starting the internal port", source };
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let router = router(app, api);
    let run = async move {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => serve(listener, router, limits, stop).await,
            Err(error) => tracing::error!(%error, "the internal port stopped"),
        }
    };
    let (end, ended) = oneshot::channel();
    let thread = move || {
        runtime.block_on(run);
        // Nobody waits only when the process is ending anyway.
        let _ = end.send(());
    };
    std::thread::Builder::new().name("internal-port".into()).spawn(thread).map_err(failed)?;
    Ok(ended)
}

fn router(app: Arc<App>, api: Handle) -> Router {
    let status = get(|State(app): State<Arc<App>>| async move { Json(app.status.json()) });
    let generating = api::resumable(app.clone());
    let pass = move |request: Request| pass_on(generating.clone(), api.clone(), request);
    health::routes()
        .route("/internal/status", status)
        .route("/v1/chat/completions", post(pass.clone()))
        .route("/v1/completions", post(pass.clone()))
        .route("/v1/responses", post(pass.clone()))
        .route("/v1/messages", post(pass))
        .with_state(app)
}

/// Ends a task when nobody waits for it any more.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers a request on the API's threads.
async fn pass_on(router: Router, api: Handle, request: Request) -> Response {
    let handle = api.clone();
    let work = async move {
        let answered = router.oneshot(request).await;
        let (head, body) = answered.unwrap_or_else(|never| match never {}).into_parts();
        let (pieces, passed) = mpsc::channel(PIECES);
        let pump = handle.spawn(pump(body, pieces));
        (head, passed, Aborting(pump))
    };
    let mut running = Aborting(api.spawn(work));
    match (&mut running.0).await {
        Ok((head, mut passed, pump)) => {
            let body = futures::stream::poll_fn(move |context| {
                // Held as long as the body is.
                let _ = &pump;
                passed.poll_recv(context)
            });
            Response::from_parts(head, Body::from_stream(body))
        }
        Err(error) => super::openai::ApiError::internal(error.to_string()).into_response(),
    }
}

async fn pump(body: Body, pieces: mpsc::Sender<Result<Bytes, axum::Error>>) {
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        if pieces.send(piece).await.is_err() {
            return;
        }
    }
}
