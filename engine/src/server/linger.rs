//! Reads on what a client still sends although its request is refused already.
//!
//! Closing a connection with unread bytes resets it, and a reset takes the answer with it: the client of a body that is too
//! large, or of one that comes while the model loads, would learn of a broken pipe, and never why.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Longest time for which a body that nobody wants is read.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest wait for the next bytes of one.
const PAUSE: Duration = Duration::from_secs(5);

/// Has what is left of a request's body read and thrown away once it is dropped. A client that waits for leave to send one
/// (`Expect`) is not led on: it is told no, and sends none.
pub async fn linger(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = match body.is_end_stream() || head.headers.contains_key(header::EXPECT) {
        true => body,
        false => Body::new(Lingering { body: Some(body), ended: false }),
    };
    next.run(Request::from_parts(head, body)).await
}

struct Lingering {
    body: Option<Body>,
    ended: bool,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|_| !self.ended) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(LONGEST, async move {
            while let Ok(Some(Ok(_))) = tokio::time::timeout(PAUSE, body.frame()).await {}
        }));
    }
}
