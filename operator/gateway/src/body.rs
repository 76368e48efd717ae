//! Bodies of answers: whole ones, and the type that all of them share.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde::Serialize;
use thiserror::Error;

/// The answer broke off where its form has no way to say so: the connection is cut, so that nobody takes it for
/// whole.
#[derive(Debug, Error)]
#[error("the engine was lost in the middle of an answer")]
pub struct BrokenOff;

/// Body of every answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, BrokenOff>;

/// A body that is there already.
#[must_use]
pub fn whole(bytes: Bytes) -> AnswerBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON answer.
#[must_use]
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<AnswerBody> {
    // Our own values have string keys only, so writing them cannot fail; an empty body would show it.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(whole(Bytes::from(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
