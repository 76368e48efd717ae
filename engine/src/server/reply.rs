//! An answer's two forms: one JSON object, or server-sent events.
//!
//! Neither form sends anything, not even headers, before the first piece of text is there: until then a failure is a
//! plain HTTP error, and the gateway can still ask another engine.

use super::fields::Common;
use super::generate::{Generation, Piece};
use super::openai::ApiError;
use super::{App, unix_seconds};
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How one API writes its objects.
pub trait Format: Send + Sync + 'static {
    /// Beginning of the answer's id.
    const ID_PREFIX: &'static str;
    /// `object` of a whole answer.
    const OBJECT: &'static str;
    /// `object` of a streamed piece.
    const CHUNK_OBJECT: &'static str;

    /// The choice of a whole answer.
    fn choice(text: &str, finish: &str) -> Value;
    /// The choice of a streamed piece; `first` on the first one.
    fn chunk_choice(text: &str, finish: Option<&str>, first: bool) -> Value;
}

/// Counts a request as long as it is being answered, its body included.
pub struct InFlight(Arc<App>);

impl InFlight {
    /// Counts one more.
    pub fn new(app: Arc<App>) -> Self {
        app.in_flight.fetch_add(1, Relaxed);
        Self(app)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// What stands in every object of one answer.
struct Envelope {
    id: String,
    created: u64,
    model: String,
}

impl Envelope {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

/// Answers a request in the form it asks for.
///
/// # Errors
/// The answer fails before anything was sent.
pub async fn reply<F: Format>(
    mut generation: Generation,
    common: Common,
    in_flight: InFlight,
) -> Result<Response, ApiError> {
    let envelope = Envelope {
        id: format!("{}-{:016x}{:016x}", F::ID_PREFIX, rand::random::<u64>(), rand::random::<u64>()),
        created: unix_seconds(),
        model: common.model,
    };
    if !common.stream {
        let mut text = String::new();
        let mut finish = "stop";
        while let Some(piece) = generation.next().await? {
            text.push_str(&piece.text);
            finish = piece.finish.map_or(finish, super::generate::finish_reason);
        }
        let mut object = envelope.object(F::OBJECT, vec![F::choice(&text, finish)]);
        object["usage"] = generation.usage();
        return Ok(Json(object).into_response());
    }
    let first = generation.next().await?;
    let body = Body::from_stream(events::<F>(generation, first, envelope, common.include_usage, in_flight));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn event(value: &Value) -> Result<String, std::convert::Infallible> {
    Ok(format!("data: {value}\n\n"))
}

fn events<F: Format>(
    mut generation: Generation,
    first: Option<Piece>,
    envelope: Envelope,
    include_usage: bool,
    in_flight: InFlight,
) -> impl futures::Stream<Item = Result<String, std::convert::Infallible>> {
    async_stream::stream! {
        let _in_flight = in_flight;
        let chunk = |choices: Vec<Value>| {
            let mut chunk = envelope.object(F::CHUNK_OBJECT, choices);
            if include_usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        let mut is_first = true;
        let mut next = Ok(first);
        while let Ok(Some(Piece { text, finish })) = &next {
            // Text and finish come in events of their own, as clients expect.
            if !text.is_empty() || is_first {
                yield event(&chunk(vec![F::chunk_choice(text, None, is_first)]));
                is_first = false;
            }
            if let Some(finish) = finish {
                let finish = super::generate::finish_reason(*finish);
                yield event(&chunk(vec![F::chunk_choice("", Some(finish), false)]));
            }
            next = generation.next().await;
        }
        match next {
            Err(error) => yield event(&error.body()),
            Ok(_) => {
                if include_usage {
                    let mut chunk = envelope.object(F::CHUNK_OBJECT, Vec::new());
                    chunk["usage"] = generation.usage();
                    yield event(&chunk);
                }
                yield Ok("data: [DONE]\n\n".to_owned());
            }
        }
    }
}
