//! A request on its way: everything that an attempt, a retry and a resumption need of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;
use tokio::time::Instant;

use crate::{identify::BodyHead, metrics::Metrics, model::Model, transcript};

/// No token is longer than this on average, so a prompt has at least so many of them.
const MOST_BYTES_A_TOKEN: u64 = 16;

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
    /// When it came in.
    pub received: Instant,
    /// When its time is over.
    pub deadline: Instant,
}

/// What a body asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The answer comes as a stream of events.
    pub streams: bool,
    /// The body with what a [`transcript::Transcript`] needs; absent where a break cannot be mended.
    pub with_ids: Option<Bytes>,
    /// Tokens that it surely takes: a context of less cannot serve it.
    pub least_tokens: u64,
}

impl Needs {
    /// Reads them off a request.
    #[must_use]
    pub fn of(method: &Method, path: &str, head: &BodyHead, body: &Bytes) -> Self {
        let streams = head.stream.as_ref().and_then(Value::as_bool) == Some(true);
        let generates = *method == Method::POST && matches!(path, "chat/completions" | "completions");
        let max_tokens = [&head.max_completion_tokens, &head.max_tokens];
        let max_tokens = max_tokens.into_iter().flatten().find_map(Value::as_u64).unwrap_or(1);
        Self {
            streams,
            // A client that names fields of the contract itself is told by the engine's public port.
            with_ids: (streams && generates && !head.names_contract_field())
                .then(|| transcript::body_with_ids(body))
                .flatten(),
            least_tokens: if generates {
                max_tokens.saturating_add(body.len() as u64 / MOST_BYTES_A_TOKEN)
            } else {
                0
            },
        }
    }
}
