//! What the gateway itself answers when it cannot pass on an engine's answer; how it is written is `dialect`'s.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use thiserror::Error;

use crate::{
    body::{self, AnswerBody},
    dialect::{Dialect, Problem},
};

/// A refusal that the client reads.
#[derive(Debug, Clone, Error)]
pub enum ApiError {
    /// No model has that id, or none was named where there are several.
    #[error("{}", describe_not_found(id.as_deref(), available))]
    ModelNotFound {
        /// What was asked for.
        id: Option<String>,
        /// What there is.
        available: Vec<String>,
    },
    /// The path is none of the API's.
    #[error("no such path: {path}; the API is under /v1")]
    PathNotFound {
        /// What was asked for.
        path: String,
    },
    /// Two readers could read the request in two ways.
    #[error("the request can be read in two ways: {what}")]
    Ambiguous {
        /// What is wrong, and what it should be.
        what: &'static str,
    },
    /// The request body passes the limit.
    #[error(
        "the request body is larger than {limit_bytes} bytes, the limit of this model (requests.maxBodyBytes): send less, or raise the limit"
    )]
    BodyTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The request body is compressed.
    #[error("the request body has the Content-Encoding {encoding:?}: send it as it is")]
    Encoded {
        /// How.
        encoding: String,
    },
    /// The request body did not arrive.
    #[error("the request body did not arrive within {seconds} s")]
    BodyTooSlow {
        /// The limit.
        seconds: u64,
    },
    /// The request body broke off.
    #[error("the request body could not be read to its end")]
    BodyBroken,
    /// A header of ours has a value that means nothing.
    #[error("header {name}: {value:?} is not {expected}")]
    BadHeader {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// The model asks for an API key.
    #[error(
        "model {model:?} asks for an API key: {}",
        if *told { "this one is not valid" } else { "send it as Authorization: Bearer KEY" }
    )]
    NotAuthorised {
        /// The model.
        model: String,
        /// Whether the caller sent anything.
        told: bool,
    },
    /// The keys are not known yet.
    #[error("the API keys of model {model:?} could not be read yet (Secret {secret}): try again")]
    KeysNotRead {
        /// The model.
        model: String,
        /// The Secret.
        secret: String,
    },
    /// The caller is at one of its limits.
    #[error("the limit of this API key is reached: {limit} {value}")]
    LimitReached {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        value: u32,
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// The model's engines have all that they can do, and too many requests wait already.
    #[error("model {model:?} is busy: {queued} requests wait already (requests.queue); try again later")]
    Busy {
        /// The model.
        model: String,
        /// Requests that wait.
        queued: usize,
        /// In which time they have had their turn.
        retry_after: Duration,
    },
    /// The model was suspended by its owner.
    #[error("model {model:?} is suspended (spec.suspend): set it to false to serve again")]
    Suspended {
        /// The model.
        model: String,
    },
    /// No tier can serve.
    #[error("no tier of model {model:?} serves now: {reasons}")]
    NoTierServes {
        /// The model.
        model: String,
        /// Each tier and why it does not serve.
        reasons: String,
    },
    /// The tier that the client insists on does not serve.
    #[error(
        "tier {tier:?} of model {model:?} does not serve now, and the request allows no other: {reasons}"
    )]
    TierNotActive {
        /// The model.
        model: String,
        /// The wanted tier.
        tier: String,
        /// Each tier and why it does not serve.
        reasons: String,
    },
    /// The tier that serves cannot take the request, and one that does not serve now could.
    #[error(
        "tier {serving:?}, which serves model {model:?} now, has a context of {context_tokens} tokens and the request needs more; tier {larger:?} with {larger_tokens} can take it when it serves again: shorten the request or lower max_tokens, or try again later"
    )]
    TierTooSmall {
        /// The model.
        model: String,
        /// The tier that serves.
        serving: String,
        /// Its context.
        context_tokens: u64,
        /// The tier that could.
        larger: String,
        /// Its context.
        larger_tokens: u64,
    },
    /// Too many requests wait for a tier already.
    #[error(
        "no tier of model {model:?} serves now, and too many requests wait for one already: try again later"
    )]
    TooManyHeld {
        /// The model.
        model: String,
    },
    /// Retrying more would make an overload worse.
    #[error("model {model:?} could not answer, and its retries are used up for the moment: try again later")]
    RetriesUsedUp {
        /// The model.
        model: String,
    },
    /// Engine after engine ended the connection on the request.
    #[error(
        "{breaks} engines of model {model:?} ended the connection while they worked on this request, so it is sent to no other one: it may be what breaks them"
    )]
    EnginesBreak {
        /// The model.
        model: String,
        /// How many.
        breaks: usize,
    },
    /// The request body is no JSON, so that nobody knows what it asks for.
    #[error("the request body is not valid JSON: {problem}")]
    NotJson {
        /// What is wrong with it, and where.
        problem: String,
    },
    /// The request took too long.
    #[error("model {model:?} did not answer within {millis} ms")]
    Timeout {
        /// The model.
        model: String,
        /// The limit.
        millis: u128,
    },
}

fn describe_not_found(id: Option<&str>, available: &[String]) -> String {
    let list = match available {
        [] => "there is none here yet, or none for this caller's API key".to_owned(),
        ids => format!("available here: {}", ids.join(", ")),
    };
    match id {
        Some(id) => format!("model {id:?} does not exist; {list}"),
        None => format!("the request names no model (in \"model\" or by Host); {list}"),
    }
}

impl ApiError {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ModelNotFound { .. } | Self::PathNotFound { .. } => StatusCode::NOT_FOUND,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Encoded { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Ambiguous { .. } | Self::BodyBroken | Self::BadHeader { .. } | Self::NotJson { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::EnginesBreak { .. } => StatusCode::BAD_GATEWAY,
            Self::NotAuthorised { .. } => StatusCode::UNAUTHORIZED,
            Self::LimitReached { .. } | Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::KeysNotRead { .. }
            | Self::Suspended { .. }
            | Self::NoTierServes { .. }
            | Self::TierNotActive { .. }
            | Self::TierTooSmall { .. }
            | Self::TooManyHeld { .. }
            | Self::RetriesUsedUp { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The machine-readable code in the body.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ModelNotFound { .. } => "model_not_found",
            Self::PathNotFound { .. } => "path_not_found",
            Self::Ambiguous { .. } => "ambiguous_request",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::Encoded { .. } => "unsupported_encoding",
            Self::BodyTooSlow { .. } => "body_timeout",
            Self::BodyBroken => "body_broken",
            Self::BadHeader { .. } => "bad_header",
            Self::NotAuthorised { .. } => "invalid_api_key",
            Self::KeysNotRead { .. } => "keys_not_read",
            Self::LimitReached { .. } => "rate_limit_exceeded",
            Self::Busy { .. } => "queue_full",
            Self::Suspended { .. } => "model_suspended",
            Self::NoTierServes { .. } => "no_tier_available",
            Self::TierNotActive { .. } => "tier_not_active",
            Self::TierTooSmall { .. } => "tier_cannot_serve",
            Self::TooManyHeld { .. } => "too_many_waiting",
            Self::RetriesUsedUp { .. } => "retries_used_up",
            Self::EnginesBreak { .. } => "engines_break",
            Self::NotJson { .. } => "invalid_json",
            Self::Timeout { .. } => "timeout",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Suspended { .. } => Some(Duration::from_secs(60)),
            Self::LimitReached { retry_after, .. } | Self::Busy { retry_after, .. } => Some(*retry_after),
            Self::KeysNotRead { .. } => Some(Duration::from_secs(1)),
            Self::TierTooSmall { .. } => Some(Duration::from_secs(10)),
            Self::NoTierServes { .. }
            | Self::TierNotActive { .. }
            | Self::TooManyHeld { .. }
            | Self::RetriesUsedUp { .. } => Some(Duration::from_secs(2)),
            _ => None,
        }
    }

    fn problem(&self) -> Problem {
        Problem { status: self.status(), code: self.code(), message: self.to_string() }
    }

    /// The end of a stream that has begun.
    #[must_use]
    pub fn event(&self, dialect: Dialect) -> Bytes {
        dialect.event(&self.problem())
    }

    /// The whole answer.
    #[must_use]
    pub fn into_response(self, dialect: Dialect) -> Response<AnswerBody> {
        let mut response = body::json(self.status(), &dialect.body(&self.problem()));
        if let Self::Ambiguous { .. } = self {
            // Nobody can say where the next request would begin.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
        }
        response
    }
}

/// Why a stream ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// The engine was lost.
    Interrupted,
    /// The request's time was over.
    TimedOut,
    /// The engine answered with this status and no error body of its own.
    Refused(StatusCode),
}

impl StreamError {
    /// The server-sent event that tells the client.
    #[must_use]
    pub fn event(self, dialect: Dialect) -> Bytes {
        let (status, code, message) = match self {
            Self::Interrupted => (
                StatusCode::BAD_GATEWAY,
                "stream_interrupted",
                "the engine was lost while it generated this answer: send the request again".to_owned(),
            ),
            Self::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "the answer was not finished within its time (the model's requests.timeout, or x-atlas-timeout-ms)".to_owned(),
            ),
            Self::Refused(status) => {
                (status, "engine_error", format!("the engine answered {status}: send the request again"))
            }
        };
        dialect.event(&Problem { status, code, message })
    }
}
