//! One attempt of a request at one engine, up to the point from where the client may see the answer.
//!
//! Dropping an attempt closes its connection, which is how the engine learns that nobody waits any more.

use std::{sync::Arc, time::Duration};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header, response::Parts};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    call::Call,
    health::endpoint::{Awaiting, Endpoint, InFlight, Loss, Port},
    pool::{ConnectError, Pooled, Sender},
    transcript::CONTRACT_FIELDS,
};

/// In which form the request is sent.
#[derive(Debug, Clone)]
pub enum Form {
    /// As the client sent it.
    Plain,
    /// With token ids in the answer, so that it can be resumed elsewhere.
    WithIds(Bytes),
    /// Going on behind what the client has.
    Resumed(Bytes),
}

/// An engine's answer, as far as it must be here before the client may see any of it.
pub struct Reached {
    /// Status and headers.
    pub parts: Parts,
    /// The body.
    pub content: Content,
    /// Whether a stream has what a transcript needs.
    pub has_ids: bool,
    /// Tells when the engine is lost.
    pub loss: Loss,
    /// Counts the request on its endpoint.
    pub in_flight: InFlight,
    /// Time that was the engine's.
    pub waited: Duration,
}

/// A body.
pub enum Content {
    /// All of it.
    Whole(Bytes),
    /// Its beginning, and where the rest comes from.
    Stream(Upstream),
}

/// A stream on its way from an engine.
pub struct Upstream {
    /// The rest of the answer.
    pub body: Incoming,
    /// Its connection, given back at the end.
    pub sender: Sender,
    /// The port that the connection belongs to.
    pub port: Port,
    /// What was read already.
    pub first: Option<Bytes>,
    /// Whether it is a stream of events, in which an error can be told.
    pub events: bool,
}

/// Why there is no answer.
pub enum Failure {
    /// No connection.
    Connect(ConnectError),
    /// The connection broke before the answer was whole, or before the first bytes of a stream.
    Broken,
    /// The endpoint was lost meanwhile.
    Lost(Cause),
}

impl Failure {
    /// Lets the endpoint's health know, and names the cause for the metrics.
    pub fn blame(&self, call: &Call, endpoint: &Endpoint) -> &'static str {
        match self {
            Self::Connect(error) => match error.cause() {
                Some(cause) => {
                    call.model.report(endpoint, HealthEvent::ConnectionFailed(cause));
                    cause.as_str()
                }
                None => {
                    call.model.report(endpoint, HealthEvent::ConnectTimedOut);
                    "ConnectTimedOut"
                }
            },
            Self::Broken => {
                call.model.report(endpoint, HealthEvent::ConnectionFailed(Cause::ConnectionReset));
                Cause::ConnectionReset.as_str()
            }
            Self::Lost(cause) => cause.as_str(),
        }
    }
}

/// Sends the request to one engine.
///
/// # Errors
///
/// There is no answer, and the client saw nothing of one.
pub async fn attempt(call: &Call, endpoint: &Arc<Endpoint>, form: Form) -> Result<Reached, Failure> {
    let mut loss = endpoint.loss();
    let in_flight = InFlight::begin(Arc::clone(endpoint), call.needs.load_tokens);
    let begun = Instant::now();
    let awaiting = Awaiting::begin(endpoint);
    let exchanged = tokio::select! {
        biased;
        exchanged = exchange_in_form(call, endpoint, form) => exchanged,
        cause = loss.wait() => Err(Failure::Lost(cause)),
    };
    drop(awaiting);
    let (Answer { parts, content }, has_ids) = exchanged?;
    call.model.report(
        endpoint,
        match parts.status.as_u16() {
            500 | 502 | 504 => HealthEvent::ServerError,
            _ => HealthEvent::Answered,
        },
    );
    Ok(Reached { parts, content, has_ids, loss, in_flight, waited: begun.elapsed() })
}

struct Answer {
    parts: Parts,
    content: Content,
}

async fn exchange_in_form(call: &Call, endpoint: &Endpoint, form: Form) -> Result<(Answer, bool), Failure> {
    match form {
        Form::Plain => Ok((exchange(call, endpoint, Port::Api, &call.body).await?, false)),
        Form::Resumed(body) => Ok((exchange(call, endpoint, Port::Internal, &body).await?, true)),
        Form::WithIds(body) => {
            let answer = exchange(call, endpoint, Port::Internal, &body).await?;
            if refuses_the_contract(&answer) {
                // An older engine: it serves as well, but its streams cannot be mended.
                endpoint.refuses_resume(call.dialect());
                return Ok((exchange(call, endpoint, Port::Api, &call.body).await?, false));
            }
            Ok((answer, true))
        }
    }
}

fn refuses_the_contract(answer: &Answer) -> bool {
    let Content::Whole(body) = &answer.content else { return false };
    let error = || serde_json::from_slice::<Value>(body).ok().map(|value| value["error"].clone());
    match answer.parts.status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            error().is_none_or(|error| error["code"] != "model_not_found")
        }
        StatusCode::BAD_REQUEST => error()
            .and_then(|error| error["param"].as_str().map(str::to_owned))
            .is_some_and(|param| CONTRACT_FIELDS.contains(&param.as_str())),
        _ => false,
    }
}

async fn exchange(call: &Call, endpoint: &Endpoint, port: Port, body: &Bytes) -> Result<Answer, Failure> {
    let timeout = call.model.timing.connect_timeout;
    let (pool, address) = (endpoint.pool(port), endpoint.address(port));
    let pooled = pool.take(address, timeout).await.map_err(Failure::Connect)?;
    let reused = pooled.reused;
    match send(pooled, call, endpoint, port, body).await {
        Ok((parts, body, sender)) => receive(call, endpoint, port, parts, body, sender).await,
        Err(_) if reused => {
            // An idle connection may have been closed by its peer for any reason; only a fresh one proves something.
            let fresh = pool.open(address, timeout).await.map_err(Failure::Connect)?;
            let sent = send(fresh, call, endpoint, port, body).await;
            let (parts, body, sender) = sent.map_err(|_| Failure::Broken)?;
            receive(call, endpoint, port, parts, body, sender).await
        }
        Err(_) => Err(Failure::Broken),
    }
}

async fn send(
    mut pooled: Pooled,
    call: &Call,
    endpoint: &Endpoint,
    port: Port,
    body: &Bytes,
) -> Result<(Parts, Incoming, Sender), hyper::Error> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.uri.clone();
    *request.headers_mut() = call.headers.clone();
    let host = HeaderValue::from_str(&endpoint.address(port).to_string());
    request.headers_mut().insert(header::HOST, host.unwrap_or(HeaderValue::from_static("engine")));
    let (parts, body) = pooled.sender.send_request(request).await?.into_parts();
    Ok((parts, body, pooled.sender))
}

async fn receive(
    call: &Call,
    endpoint: &Endpoint,
    port: Port,
    parts: Parts,
    mut body: Incoming,
    sender: Sender,
) -> Result<Answer, Failure> {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let events = content_type.is_some_and(|value| value.starts_with("text/event-stream"));
    if events && parts.status.is_success() {
        let Ok(Some(first)) = next_data(&mut body).await else { return Err(Failure::Broken) };
        endpoint.saw_bytes(call.model.clock.now());
        let upstream = Upstream { body, sender, port, first: Some(first), events };
        return Ok(Answer { parts, content: Content::Stream(upstream) });
    }
    let mut whole = BytesMut::new();
    while let Some(data) = next_data(&mut body).await.map_err(|_| Failure::Broken)? {
        endpoint.saw_bytes(call.model.clock.now());
        whole.extend_from_slice(&data);
        if whole.len() > call.model.timing.max_buffered_answer_bytes {
            let first = Some(whole.freeze());
            let upstream = Upstream { body, sender, port, first, events: false };
            return Ok(Answer { parts, content: Content::Stream(upstream) });
        }
    }
    endpoint.pool(port).give_back(sender);
    Ok(Answer { parts, content: Content::Whole(whole.freeze()) })
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
