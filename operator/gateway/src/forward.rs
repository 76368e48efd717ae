//! Sends a request to the best endpoint, and to the next one when that fails before the client saw a byte.
//!
//! Answers that are not streams are held back until they are whole, and streams until their first bytes, so the
//! client sees one answer. What breaks later is `relay`'s.

use std::{sync::Arc, time::Duration};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, response::Parts};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::debug;

use crate::{
    body::{self, AnswerBody},
    error::ApiError,
    headers::{self, Wishes},
    health::endpoint::{Awaiting, Endpoint, InFlight},
    metrics::Metrics,
    model::Model,
    pool::{ConnectError, Pooled, Sender},
    relay::Relay,
};

/// Attempts of one request, over all endpoints and while it is held.
const MAX_ATTEMPTS: usize = 16;
/// Pause before endpoints that refused are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A request whose body is here, so that it can be sent again.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// The headers that engines get.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What the client asks of the gateway itself.
    pub wishes: Wishes,
    /// When it came in.
    pub received: Instant,
}

/// How an attempt ended.
enum Outcome {
    /// With the answer for the client; `waited` is the part of the time that was the engine's.
    Answer { response: Response<AnswerBody>, waited: Duration },
    /// With a whole answer that says that another endpoint should be asked: 429 or a server error.
    Refused(Response<AnswerBody>),
    /// Without an answer.
    Failed(Failure),
}

enum Failure {
    Connect(ConnectError),
    /// The connection broke before the answer was whole, or before the first bytes of a stream.
    Broken,
    Lost(Cause),
}

/// Sends a request and returns the one answer that the client sees.
pub async fn forward(model: &Arc<Model>, metrics: &Arc<Metrics>, call: Call) -> Response<AnswerBody> {
    match try_all(model, metrics, &call).await {
        Ok(response) => response,
        Err(error) => {
            model.count(|counts| &counts.failed);
            error.into_response()
        }
    }
}

async fn try_all(
    model: &Arc<Model>,
    metrics: &Arc<Metrics>,
    call: &Call,
) -> Result<Response<AnswerBody>, ApiError> {
    let config = model.config();
    let limit = call.wishes.timeout.map_or(config.timeout, |timeout| timeout.min(config.timeout));
    let deadline = call.received + limit;
    let hold_until = deadline.min(call.received + model.timing.hold);
    let required = required_tier(model, &call.wishes)?;
    let timed_out = || ApiError::Timeout { model: config.name.clone(), millis: limit.as_millis() };

    let mut routes = model.routes();
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut attempts = 0;
    let mut last_refusal: Option<Response<AnswerBody>> = None;
    loop {
        let view = Arc::clone(&routes.borrow_and_update());
        if let (Some(tier), Some(active)) = (&required, &view.active_tier)
            && tier != active
        {
            let (model, reasons) = (config.name.clone(), model.describe_tiers());
            return Err(ApiError::TierNotActive { model, tier: tier.clone(), reasons });
        }
        let chosen = view.choose(|endpoint| {
            required.as_ref().is_none_or(|tier| *tier == endpoint.config.tier)
                && !tried.iter().any(|other| Arc::ptr_eq(other, endpoint))
        });
        if let Some(endpoint) = chosen.filter(|_| attempts < MAX_ATTEMPTS) {
            attempts += 1;
            let Ok(outcome) =
                tokio::time::timeout_at(deadline, attempt(model, metrics, &endpoint, call, deadline)).await
            else {
                return Err(timed_out());
            };
            match outcome {
                Outcome::Answer { response, waited } => {
                    if attempts == 1 {
                        metrics.added(&config.name, call.received.elapsed().saturating_sub(waited));
                    }
                    return Ok(response);
                }
                Outcome::Refused(response) => {
                    note_retry(model, metrics, &endpoint, response.status().as_str());
                    last_refusal = Some(response);
                }
                Outcome::Failed(failure) => {
                    note_retry(model, metrics, &endpoint, blame(model, &endpoint, &failure))
                }
            }
            tried.push(endpoint);
            continue;
        }
        // Everything that may be asked was asked. "Too many" and "broken" are answers; "not now" and no answer at
        // all are worth waiting for.
        let worth_waiting =
            last_refusal.as_ref().is_none_or(|refusal| refusal.status() == StatusCode::SERVICE_UNAVAILABLE);
        if !worth_waiting || attempts >= MAX_ATTEMPTS || Instant::now() >= hold_until {
            return match last_refusal {
                Some(refusal) => Ok(refusal),
                None => Err(ApiError::NoTierServes {
                    model: config.name.clone(),
                    reasons: model.describe_tiers(),
                }),
            };
        }
        tokio::select! {
            changed = routes.changed() => if changed.is_err() { return Err(timed_out()) },
            () = tokio::time::sleep(RETRY_PAUSE), if !tried.is_empty() => {}
            () = tokio::time::sleep_until(hold_until) => {}
        }
        tried.clear();
    }
}

/// The only tier that may answer, where the client wants that.
fn required_tier(model: &Model, wishes: &Wishes) -> Result<Option<String>, ApiError> {
    let config = model.config();
    if let Some(tier) = &wishes.require_tier {
        if !config.tiers.iter().any(|known| known.name == *tier) {
            let expected = "the name of one of the model's tiers";
            return Err(ApiError::BadHeader { name: "x-atlas-require-tier", value: tier.clone(), expected });
        }
        return Ok(Some(tier.clone()));
    }
    let first = config.pinned_tier.as_ref().or_else(|| config.tiers.first().map(|tier| &tier.name));
    Ok(first.filter(|_| wishes.no_fallback).cloned())
}

fn note_retry(model: &Model, metrics: &Metrics, endpoint: &Endpoint, cause: &str) {
    let (name, address) = (&endpoint.config.model, endpoint.config.api);
    debug!(model = %name, tier = %endpoint.config.tier, %address, cause, "an attempt failed");
    model.count(|counts| &counts.retried);
    metrics.retried(name, cause);
}

/// Lets the endpoint's health know, and names the cause for the metrics.
fn blame(model: &Model, endpoint: &Endpoint, failure: &Failure) -> &'static str {
    match failure {
        Failure::Connect(error) => match error.cause() {
            Some(cause) => {
                model.report(endpoint, HealthEvent::ConnectionFailed(cause));
                cause.as_str()
            }
            None => {
                model.report(endpoint, HealthEvent::ConnectTimedOut);
                "ConnectTimedOut"
            }
        },
        Failure::Broken => {
            model.report(endpoint, HealthEvent::ConnectionFailed(Cause::ConnectionReset));
            Cause::ConnectionReset.as_str()
        }
        Failure::Lost(cause) => cause.as_str(),
    }
}

async fn attempt(
    model: &Arc<Model>,
    metrics: &Arc<Metrics>,
    endpoint: &Arc<Endpoint>,
    call: &Call,
    deadline: Instant,
) -> Outcome {
    let mut loss = endpoint.loss();
    let in_flight = InFlight::begin(Arc::clone(endpoint));
    let begun = Instant::now();
    let awaiting = Awaiting::begin(endpoint);
    let exchanged = tokio::select! {
        biased;
        exchanged = exchange(model, endpoint, call) => exchanged,
        cause = loss.wait() => Err(Failure::Lost(cause)),
    };
    drop(awaiting);
    let waited = begun.elapsed();
    let Answer { parts, content } = match exchanged {
        Ok(answer) => answer,
        Err(failure) => return Outcome::Failed(failure),
    };
    let status = parts.status;
    model.report(
        endpoint,
        match status.as_u16() {
            500 | 502 | 504 => HealthEvent::ServerError,
            _ => HealthEvent::Answered,
        },
    );
    let (tier, config) = (&endpoint.config.tier, model.config());
    let display_model =
        config.tiers.iter().find(|known| known.name == *tier).map(|tier| tier.display_model.as_str());
    let body = match content {
        Content::Whole(bytes) => body::whole(bytes),
        Content::Stream { body, sender, first, events } => Relay {
            body,
            sender,
            first,
            events,
            loss,
            deadline: Box::pin(tokio::time::sleep_until(deadline)),
            model: Arc::clone(model),
            endpoint: Arc::clone(endpoint),
            metrics: Arc::clone(metrics),
            _counted: (in_flight, metrics.begin(&config.name)),
        }
        .into_body(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers::for_client(&parts.headers, tier, display_model.unwrap_or_default());
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Outcome::Refused(response)
    } else {
        Outcome::Answer { response, waited }
    }
}

/// What an engine answered, as far as it must be here before the client may see any of it.
struct Answer {
    parts: Parts,
    content: Content,
}

enum Content {
    Whole(Bytes),
    Stream { body: Incoming, sender: Sender, first: Option<Bytes>, events: bool },
}

async fn exchange(model: &Model, endpoint: &Endpoint, call: &Call) -> Result<Answer, Failure> {
    let timeout = model.timing.connect_timeout;
    let pooled = endpoint.pool.take(endpoint.config.api, timeout).await.map_err(Failure::Connect)?;
    let reused = pooled.reused;
    match send(pooled, endpoint, call).await {
        Ok((parts, body, sender)) => receive(model, endpoint, parts, body, sender).await,
        Err(_) if reused => {
            // An idle connection may have been closed by its peer for any reason; only a fresh one proves something.
            let fresh = endpoint.pool.open(endpoint.config.api, timeout).await.map_err(Failure::Connect)?;
            let (parts, body, sender) = send(fresh, endpoint, call).await.map_err(|_| Failure::Broken)?;
            receive(model, endpoint, parts, body, sender).await
        }
        Err(_) => Err(Failure::Broken),
    }
}

async fn send(
    mut pooled: Pooled,
    endpoint: &Endpoint,
    call: &Call,
) -> Result<(Parts, Incoming, Sender), hyper::Error> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.uri.clone();
    *request.headers_mut() = call.headers.clone();
    let host = HeaderValue::from_str(&endpoint.config.api.to_string());
    request.headers_mut().insert(header::HOST, host.unwrap_or(HeaderValue::from_static("engine")));
    let (parts, body) = pooled.sender.send_request(request).await?.into_parts();
    Ok((parts, body, pooled.sender))
}

async fn receive(
    model: &Model,
    endpoint: &Endpoint,
    parts: Parts,
    mut body: Incoming,
    sender: Sender,
) -> Result<Answer, Failure> {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let events = content_type.is_some_and(|value| value.starts_with("text/event-stream"));
    if events && parts.status.is_success() {
        let first = match tokio::time::timeout(model.timing.first_byte_hold, next_data(&mut body)).await {
            // Nothing yet: the headers go out alone, so that the client sees that it is being served.
            Err(_) => None,
            Ok(Ok(Some(data))) => Some(data),
            Ok(Ok(None) | Err(_)) => return Err(Failure::Broken),
        };
        endpoint.saw_bytes(model.clock.now());
        return Ok(Answer { parts, content: Content::Stream { body, sender, first, events } });
    }
    let mut whole = BytesMut::new();
    while let Some(data) = next_data(&mut body).await.map_err(|_| Failure::Broken)? {
        endpoint.saw_bytes(model.clock.now());
        whole.extend_from_slice(&data);
        if whole.len() > model.timing.max_buffered_answer_bytes {
            let first = Some(whole.freeze());
            return Ok(Answer { parts, content: Content::Stream { body, sender, first, events: false } });
        }
    }
    endpoint.pool.give_back(sender);
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
