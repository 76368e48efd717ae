//! Probes: `GET /readyz` on an engine's internal port, over a connection that carries nothing else.

use std::{sync::Arc, time::Duration};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use rand::RngExt;

use super::endpoint::Endpoint;
use crate::{
    model::Model,
    pool::{self, Sender},
};

/// A `/readyz` body is a phase and a sentence; more is not read.
const MAX_PROBE_BODY_BYTES: usize = 64 << 10;

/// Probes an endpoint until it is removed.
pub async fn run(model: Arc<Model>, endpoint: Arc<Endpoint>) {
    let mut connection = None;
    loop {
        let sent_at = model.clock.now();
        // Two probes fit into `unhealthyAfter`, so one lost packet alone is no verdict.
        let timeout =
            (model.config().unhealthy_after / 2).clamp(Duration::from_millis(50), Duration::from_secs(5));
        let probed = tokio::select! {
            () = endpoint.removed.cancelled() => return,
            probed = tokio::time::timeout(timeout, probe(&endpoint, &mut connection, timeout)) => probed,
        };
        let event = match probed {
            Ok(Outcome::Answered(StatusCode::OK)) => HealthEvent::ProbeOk { sent_at },
            Ok(Outcome::Answered(_)) => HealthEvent::ProbeNotReady,
            Ok(Outcome::Failed(cause)) => HealthEvent::ConnectionFailed(cause),
            Ok(Outcome::Late) | Err(_) => {
                connection = None;
                HealthEvent::ProbeLate
            }
        };
        model.report(&endpoint, event);
        let interval = model.timing.probe_interval.mul_f64(rand::rng().random_range(0.8..1.2));
        tokio::select! {
            () = endpoint.removed.cancelled() => return,
            () = endpoint.look.notified() => {}
            () = tokio::time::sleep(interval.saturating_sub(elapsed_since(&model, sent_at))) => {}
        }
    }
}

fn elapsed_since(model: &Model, sent_at: u64) -> Duration {
    Duration::from_millis(model.clock.now().saturating_sub(sent_at))
}

enum Outcome {
    Answered(StatusCode),
    Failed(Cause),
    Late,
}

async fn probe(endpoint: &Endpoint, connection: &mut Option<Sender>, timeout: Duration) -> Outcome {
    if let Some(sender) = connection.as_mut().filter(|sender| !sender.is_closed())
        && let Some(status) = ask(endpoint, sender).await
    {
        return Outcome::Answered(status);
    }
    // An idle connection may have been closed by its peer for any reason; only a fresh one proves something.
    *connection = None;
    let mut sender = match pool::connect(endpoint.config.internal, timeout).await {
        Ok(sender) => sender,
        Err(error) => return error.cause().map_or(Outcome::Late, Outcome::Failed),
    };
    match ask(endpoint, &mut sender).await {
        Some(status) => {
            *connection = Some(sender);
            Outcome::Answered(status)
        }
        None => Outcome::Failed(Cause::ConnectionReset),
    }
}

async fn ask(endpoint: &Endpoint, sender: &mut Sender) -> Option<StatusCode> {
    sender.ready().await.ok()?;
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = http::Uri::from_static("/readyz");
    let host = endpoint.config.internal.to_string();
    request.headers_mut().insert(header::HOST, http::HeaderValue::from_str(&host).ok()?);
    let response = sender.send_request(request).await.ok()?;
    let status = response.status();
    Limited::new(response.into_body(), MAX_PROBE_BODY_BYTES).collect().await.ok()?;
    Some(status)
}
