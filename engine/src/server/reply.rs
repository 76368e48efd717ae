//! An answer's two forms: one JSON object, or server-sent events.
//!
//! Neither form sends anything, not even headers, before the first thing to show is there: until then a failure is a
//! plain HTTP error, and the gateway can still ask another engine.

use super::collect::Answer;
use super::delta::{Delta, Usage};
use super::generate::Generation;
use super::openai::ApiError;
use super::trace::TraceContext;
use super::{App, access};
use atlas_engine_core::Scope;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

/// How one API writes its answers.
pub trait Writer: Send + 'static {
    /// Events for what came.
    fn events(&mut self, delta: Delta, usage: Usage) -> Vec<Event>;
    /// The last events.
    fn end(&mut self, usage: Usage) -> Vec<Event>;
    /// The last events of an answer that fails.
    fn failed(&mut self, error: &ApiError) -> Vec<Event>;
    /// The whole answer at once.
    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value;
}

/// One server-sent event.
pub struct Event(String);

impl Event {
    /// An event without a name.
    pub fn data(value: &Value) -> Self {
        Self(format!("data: {value}\n\n"))
    }

    /// An event with a name.
    pub fn named(name: &str, value: &Value) -> Self {
        Self(format!("event: {name}\ndata: {value}\n\n"))
    }

    /// A comment, which clients ignore.
    pub fn comment(name: &str, value: &Value) -> Self {
        Self(format!(": {name} {value}\n\n"))
    }

    /// OpenAI's mark for the end.
    pub fn done() -> Self {
        Self("data: [DONE]\n\n".to_owned())
    }
}

#[cfg(test)]
impl Event {
    /// What an event carries.
    pub fn value(&self) -> Value {
        // An event without JSON, such as `[DONE]`, carries nothing.
        let data = self.0.lines().find_map(|line| line.strip_prefix("data: "));
        data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default()
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Whose cached prefixes it may use.
    pub scope: Scope,
    /// The trace that it belongs to.
    pub trace: TraceContext,
    /// When it arrived.
    pub arrived: Instant,
    /// The time of day then.
    pub clock: SystemTime,
}

/// Counts a request as long as it is being answered, its body included.
pub struct InFlight {
    app: Arc<App>,
    /// Where it comes from.
    pub origin: Origin,
}

impl InFlight {
    /// Counts one more.
    pub fn new(app: Arc<App>, headers: &HeaderMap) -> Self {
        app.in_flight.fetch_add(1, Relaxed);
        let scope = access::scope(headers, app.status.model_file());
        let trace = TraceContext::of(headers);
        let origin = Origin { scope, trace, arrived: Instant::now(), clock: SystemTime::now() };
        Self { app, origin }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A name that no other object has.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>())
}

/// Answers a request in the form it asks for.
///
/// # Errors
/// The answer fails before anything was sent.
pub async fn reply(
    mut generation: Generation,
    mut writer: impl Writer,
    stream: bool,
    in_flight: InFlight,
) -> Result<Response, ApiError> {
    if !stream {
        let mut answers = vec![Answer::default(); generation.choices()];
        while let Some(delta) = generation.next().await? {
            answers[delta.index].add(delta);
        }
        return Ok(Json(writer.whole(answers, generation.usage())).into_response());
    }
    let first = generation.next().await?;
    let mut response = Response::new(Body::from_stream(events(generation, first, writer, in_flight)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn events(
    mut generation: Generation,
    first: Option<Delta>,
    mut writer: impl Writer,
    in_flight: InFlight,
) -> impl futures::Stream<Item = Result<String, Infallible>> {
    async_stream::stream! {
        let _in_flight = in_flight;
        let mut next = Ok(first);
        while let Ok(Some(delta)) = next {
            for Event(text) in writer.events(delta, generation.usage()) {
                yield Ok(text);
            }
            next = generation.next().await;
        }
        match next {
            Err(error) => {
                for Event(text) in writer.failed(&error) {
                    yield Ok(text);
                }
            }
            Ok(_) => {
                for Event(text) in writer.end(generation.usage()) {
                    yield Ok(text);
                }
            }
        }
    }
}
