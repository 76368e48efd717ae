//! Heads of requests that two readers could read in two ways, beyond what the HTTP library refuses by itself.

use super::api::refusal;
use super::openai::ApiError;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;

/// Lets requests through whose end and whose host are certain (RFC 9112, 3.2 and 6.1).
pub async fn require_clear_head(request: Request, next: Next) -> Response {
    let Some(problem) = ambiguity(request.version(), request.headers()) else {
        return next.run(request).await;
    };
    let mut response = refusal(request.uri().path(), &ApiError::ambiguous(problem));
    // Nobody can say where the next request would begin.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What makes a head ambiguous.
fn ambiguity(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(coding), None) if is_chunked(coding) => {}
        _ => return Some("send Transfer-Encoding once, as \"chunked\", or not at all"),
    }
    match headers.get_all(header::HOST).iter().count() {
        0 if version >= Version::HTTP_11 => Some("it has no Host header"),
        0 | 1 => None,
        _ => Some("send Host once"),
    }
}
