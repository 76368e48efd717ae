//! Reads on what a client still sends although its request is refused already.
//!
//! Closing a connection with unread bytes resets it, and a reset takes the answer with it: the client of a body that is too
//! large would learn of a broken pipe, and never why.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Longest time for which a body that nobody wants is read.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest wait for the next bytes of one.
const PAUSE: Duration = Duration::from_secs(5);

/// A request's body; what is left of it when it is dropped is read and thrown away.
#[derive(Debug)]
pub struct Lingering {
    body: Option<Incoming>,
    ended: bool,
}

impl Lingering {
    /// Takes a body over. A client that waits for leave to send one (`Expect`) is not led on: it is told no, and sends none.
    #[must_use]
    pub fn new(headers: &HeaderMap, body: Incoming) -> Self {
        let ended = body.is_end_stream() || headers.contains_key(header::EXPECT);
        Self { body: Some(body), ended }
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
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
