//! A request on its way: everything that an attempt, a retry and a resumption need of it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    balance, dialect::Dialect, identify::BodyHead, limits, metrics::Metrics, model::Model, queue::Place,
    transcript,
};

/// No token is longer than this on average, so a prompt has at least so many of them.
const MOST_BYTES_A_TOKEN: u64 = 16;

/// An answer's length where the request sets no limit, for the balance among engines only.
const USUAL_TOKENS: u64 = 256;
/// A token's usual length, for the same.
const USUAL_BYTES_A_TOKEN: u64 = 4;

/// A request whose body is here, so that it can be sent again.
#[derive(Debug)]
pub struct Call {
    /// The model.
    pub model: Arc<Model>,
    /// Where its fate is counted.
    pub metrics: Arc<Metrics>,
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// The headers that engines get.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What the body asks for, as far as it matters here.
    pub needs: Needs,
    /// The only tier that may answer, where the client wants that.
    pub required_tier: Option<String>,
    /// Whether an engine of another model may go on with its broken stream.
    pub across_models: bool,
    /// Who asks, where the model wants to know; else empty.
    pub caller: String,
    /// Counts it among the caller's.
    pub _running: Option<limits::Running>,
    /// Its place among the model's requests, from when it has one until the answer is over.
    pub place: OnceLock<Place>,
    /// When it came in.
    pub received: Instant,
    /// When its time is over.
    pub deadline: Instant,
}

impl Call {
    /// The form in which its client reads errors.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        Dialect::of(self.uri.path())
    }
}

/// What a body asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The answer comes as a stream of events.
    pub streams: bool,
    /// The body with what a [`transcript::Transcript`] needs; absent where a break cannot be mended.
    pub with_ids: Option<Bytes>,
    /// Tokens that it takes, roughly: what an engine owes while it has it.
    pub load_tokens: u64,
    /// Hash of the prompt's head, for engines that may have it cached.
    pub head: Option<u64>,
    /// Tokens that it surely takes: a context of less cannot serve it.
    pub least_tokens: u64,
}

impl Needs {
    /// Reads them off a request.
    #[must_use]
    pub fn of(method: &Method, path: &str, head: &BodyHead, body: &Bytes) -> Self {
        let streams = head.stream.as_ref().and_then(Value::as_bool) == Some(true);
        let posted = *method == Method::POST;
        let generates =
            posted && matches!(path, "chat/completions" | "completions" | "responses" | "messages");
        let max_tokens = [&head.max_completion_tokens, &head.max_tokens, &head.max_output_tokens];
        let max_tokens = max_tokens.into_iter().flatten().find_map(Value::as_u64);
        let bytes = body.len() as u64;
        Self {
            // Saturated well below what a sum over many requests could overflow.
            load_tokens: max_tokens.unwrap_or(USUAL_TOKENS).min(1 << 32) + bytes / USUAL_BYTES_A_TOKEN,
            head: generates.then(|| balance::head_of(body)).flatten(),
            streams,
            // A client that names fields of the contract itself is told by the engine's public port.
            with_ids: (streams && generates && !head.names_contract_field())
                .then(|| transcript::body_with_ids(body))
                .flatten(),
            least_tokens: if generates {
                max_tokens.unwrap_or(1).saturating_add(bytes / MOST_BYTES_A_TOKEN)
            } else {
                0
            },
        }
    }
}
