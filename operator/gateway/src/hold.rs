//! Answers a stream's client before the engine does, where that takes long.
//!
//! The engine sends nothing before its first event, so that another one can be asked until then. Clients and what is
//! between give up on a silent connection, so after a while the headers go out and comments keep it awake; retries and
//! waiting go on behind them.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::{
    body::{AnswerBody, BrokenOff},
    call::Call,
    dialect::Dialect,
    error::{ApiError, StreamError},
    events, headers,
};

/// The answer that is being worked on.
pub type Work = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, ApiError>> + Send>>;

type Frames = Pin<Box<dyn Stream<Item = Result<Frame<bytes::Bytes>, BrokenOff>> + Send>>;

/// Waits for the answer, and begins one of its own when that takes too long. `finished` sees what the work came to.
pub async fn answer(
    call: Arc<Call>,
    mut work: Work,
    finished: impl FnOnce(&Result<Response<AnswerBody>, ApiError>) + Send + 'static,
) -> Result<Response<AnswerBody>, ApiError> {
    let patience = tokio::time::sleep_until(call.received + call.model.timing.first_byte_hold);
    tokio::select! {
        biased;
        done = &mut work => {
            finished(&done);
            done
        }
        () = patience => Ok(begun(call, work, finished)),
    }
}

fn begun(
    call: Arc<Call>,
    work: Work,
    finished: impl FnOnce(&Result<Response<AnswerBody>, ApiError>) + Send + 'static,
) -> Response<AnswerBody> {
    let (running, dialect) = (call.metrics.begin(&call.model.config().name), call.dialect());
    let mut pings = tokio::time::interval(call.model.timing.ping_interval);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let waiting = stream::unfold(Some((work, pings, running, finished)), move |state| async move {
        let (mut work, mut pings, running, finished) = state?;
        let done = tokio::select! {
            biased;
            done = &mut work => done,
            _ = pings.tick() => {
                let ping: Frames = Box::pin(stream::iter([Ok(Frame::data(events::PING))]));
                return Some((ping, Some((work, pings, running, finished))));
            }
        };
        finished(&done);
        Some((frames_of(done, dialect).await, None))
    });
    let mut response = Response::new(StreamBody::new(waiting.flatten()).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(id) = call.headers.get(headers::REQUEST_ID) {
        headers.insert(headers::REQUEST_ID, id.clone());
    }
    response
}

/// What follows the pings.
async fn frames_of(done: Result<Response<AnswerBody>, ApiError>, dialect: Dialect) -> Frames {
    let response = match done {
        Ok(response) => response,
        Err(error) => return Box::pin(stream::iter([Ok(Frame::data(error.event(dialect)))])),
    };
    let (parts, body) = response.into_parts();
    let is_stream = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if is_stream {
        // The headers are gone, so what served is told in a comment.
        let tier = parts.headers.get(headers::TIER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let told = Frame::data(format!(": {}: {tier}\n\n", headers::TIER).into());
        return Box::pin(stream::iter([Ok(told)]).chain(BodyStream::new(body)));
    }
    // A whole answer, which is an error or what the client did not ask for: one event either way.
    match body.collect().await {
        Ok(whole) => {
            let value = serde_json::from_slice::<Value>(&whole.to_bytes()).unwrap_or_default();
            let event = if parts.status.is_success() {
                format!("data: {value}\n\n").into()
            } else if !value["error"].is_null() {
                dialect.event_of(&value)
            } else {
                StreamError::Refused(parts.status).event(dialect)
            };
            Box::pin(stream::iter([Ok(Frame::data(event))]))
        }
        Err(broken) => Box::pin(stream::iter([Err(broken)])),
    }
}
