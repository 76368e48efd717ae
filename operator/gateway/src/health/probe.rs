//! Probes: `GET /internal/status` on an engine's internal port, over a connection that carries nothing else.
//!
//! The status says in one answer whether the engine is ready and whether it gets on with its work. Where there is none,
//! `/readyz` is asked.
//!
//! A probe that waits is checked by knocking at both ports. The kernel of a node that is alive accepts connections at once,
//! however busy or frozen its processes are; where nobody does, the node or the way to it is gone, and there is no need to
//! wait for as long as a busy engine may take.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use rand::RngExt;
use tokio::net::TcpStream;

use super::{endpoint::Endpoint, facts::Status};
use crate::{
    model::Model,
    pool::{self, Sender},
};

/// A status is less than a page; more is not read.
const MAX_PROBE_BODY_BYTES: usize = 64 << 10;

/// Probes an endpoint until it is removed.
pub async fn run(model: Arc<Model>, endpoint: Arc<Endpoint>) {
    let mut connection = None;
    loop {
        let sent_at = model.clock.now();
        // The next probe still fits into `unhealthyAfter`, so one lost packet alone is no verdict; and a probe that was sent
        // when the node was lost outlasts the silence that the verdict of the knocks needs, which is half of it.
        let timeout =
            (model.config().unhealthy_after * 3 / 5).clamp(Duration::from_millis(50), Duration::from_secs(5));
        let probed = tokio::select! {
            () = endpoint.removed.cancelled() => return,
            probed = tokio::time::timeout(timeout, probe(&endpoint, &mut connection, timeout)) => probed,
            () = nobody_there([endpoint.config.api, endpoint.config.internal], timeout) => Ok(Outcome::NotAccepted),
        };
        let event = match probed {
            Ok(Outcome::Answered { ready, status }) => {
                if let Some(Status { report, facts, ready: _ }) = status {
                    endpoint.learn(facts);
                    model.report(&endpoint, HealthEvent::Report(report));
                }
                if ready { HealthEvent::ProbeOk { sent_at } } else { HealthEvent::ProbeNotReady }
            }
            Ok(Outcome::Failed(cause)) => HealthEvent::ConnectionFailed(cause),
            Ok(Outcome::NotAccepted) => {
                connection = None;
                HealthEvent::ConnectTimedOut
            }
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
    Answered { ready: bool, status: Option<Status> },
    Failed(Cause),
    NotAccepted,
    Late,
}

/// Returns a little before `timeout` when neither port accepts a connection; never when one does, or refuses it. It begins
/// only after most probes have their answer.
async fn nobody_there(ports: [SocketAddr; 2], timeout: Duration) {
    tokio::time::sleep(timeout / 4).await;
    let knock = |port| tokio::time::timeout(timeout * 2 / 3, TcpStream::connect(port));
    let [api, internal] = ports.map(knock);
    let (api, internal) = tokio::join!(api, internal);
    if api.is_ok() || internal.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn probe(endpoint: &Endpoint, connection: &mut Option<Sender>, timeout: Duration) -> Outcome {
    if let Some(sender) = connection.as_mut().filter(|sender| !sender.is_closed())
        && let Some(answered) = ask(endpoint, sender).await
    {
        return answered;
    }
    // An idle connection may have been closed by its peer for any reason; only a fresh one proves something.
    *connection = None;
    let mut sender = match pool::connect(endpoint.config.internal, timeout).await {
        Ok(sender) => sender,
        Err(error) => return error.cause().map_or(Outcome::Late, Outcome::Failed),
    };
    match ask(endpoint, &mut sender).await {
        Some(answered) => {
            *connection = Some(sender);
            answered
        }
        None => Outcome::Failed(Cause::ConnectionReset),
    }
}

async fn ask(endpoint: &Endpoint, sender: &mut Sender) -> Option<Outcome> {
    let (code, body) = get(endpoint, sender, "/internal/status").await?;
    if let Some(status) = Status::parse(&body).filter(|_| code == StatusCode::OK) {
        return Some(Outcome::Answered { ready: status.ready, status: Some(status) });
    }
    let (code, _) = get(endpoint, sender, "/readyz").await?;
    Some(Outcome::Answered { ready: code == StatusCode::OK, status: None })
}

async fn get(endpoint: &Endpoint, sender: &mut Sender, path: &'static str) -> Option<(StatusCode, Bytes)> {
    sender.ready().await.ok()?;
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = http::Uri::from_static(path);
    let host = endpoint.config.internal.to_string();
    request.headers_mut().insert(header::HOST, http::HeaderValue::from_str(&host).ok()?);
    let response = sender.send_request(request).await.ok()?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_PROBE_BODY_BYTES).collect().await.ok()?;
    Some((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpSocket;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A listener that answers no SYN any more, as a lost node: its queue of connections is full.
    async fn deaf() -> (tokio::net::TcpListener, Vec<TcpStream>, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
            waiting.push(connected.unwrap());
        }
        (listener, waiting, address)
    }

    #[tokio::test]
    async fn a_node_is_gone_only_where_neither_port_accepts() {
        let (_listener, _waiting, deaf) = deaf().await;
        tokio::time::timeout(PATIENCE, nobody_there([deaf, deaf], SHORT)).await.expect("nobody accepts");
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let frozen = listener.local_addr().unwrap();
        let closed =
            tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        for alive in [[deaf, frozen], [frozen, deaf], [deaf, closed]] {
            let verdict = tokio::time::timeout(SHORT * 2, nobody_there(alive, SHORT)).await;
            assert!(verdict.is_err(), "{alive:?} is alive");
        }
    }
}
