//! Passes a stream on as it comes, and tells the client when it breaks.
//!
//! Only whole server-sent events are passed on: a client can then read the error event behind the last one.

use std::{pin::Pin, sync::Arc};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::time::Sleep;

use crate::{
    body::{AnswerBody, BrokenOff},
    error::StreamError,
    health::endpoint::{Endpoint, InFlight, Loss},
    metrics::{Metrics, Running},
    model::Model,
    pool::Sender,
};

/// An event is never this long; what is, passes unchecked rather than filling the memory.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// A stream on its way through.
pub struct Relay {
    /// The rest of the engine's answer.
    pub body: Incoming,
    /// Its connection, given back at the end.
    pub sender: Sender,
    /// What was read already.
    pub first: Option<Bytes>,
    /// Whether it is a stream of events, in which an error can be told.
    pub events: bool,
    /// Tells when the engine is lost.
    pub loss: Loss,
    /// End of the request's time.
    pub deadline: Pin<Box<Sleep>>,
    /// The model.
    pub model: Arc<Model>,
    /// The engine.
    pub endpoint: Arc<Endpoint>,
    /// Where breaks are counted.
    pub metrics: Arc<Metrics>,
    /// Counts the request until its last byte.
    pub _counted: (InFlight, Running),
}

enum Step {
    Data(Bytes),
    End,
    Broken(StreamError),
}

impl Relay {
    /// The body for the client.
    #[must_use]
    pub fn into_body(mut self) -> AnswerBody {
        let first = self.first.take();
        let cutter = EventCutter { enabled: self.events, ..EventCutter::default() };
        let frames = stream::unfold(Some((self, cutter, first)), |state| async move {
            let (mut relay, mut cutter, first) = state?;
            let mut next = first.map(Step::Data);
            loop {
                let step = match next.take() {
                    Some(step) => step,
                    None => relay.step().await,
                };
                match step {
                    Step::Data(data) => {
                        let passed = cutter.cut(data);
                        if !passed.is_empty() {
                            return Some((Ok(Frame::data(passed)), Some((relay, cutter, None))));
                        }
                    }
                    Step::End => {
                        relay.model.report(&relay.endpoint, HealthEvent::Answered);
                        relay.endpoint.pool.give_back(relay.sender);
                        let rest = cutter.rest();
                        return (!rest.is_empty()).then(|| (Ok(Frame::data(rest)), None));
                    }
                    Step::Broken(error) => {
                        let (model, tier) = (&relay.endpoint.config.model, &relay.endpoint.config.tier);
                        relay.metrics.interrupted(model, tier);
                        let end = if relay.events { Ok(Frame::data(error.event())) } else { Err(BrokenOff) };
                        return Some((end, None));
                    }
                }
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn step(&mut self) -> Step {
        loop {
            tokio::select! {
                biased;
                frame = self.body.frame() => match frame {
                    None => return Step::End,
                    Some(Ok(frame)) => {
                        self.endpoint.saw_bytes(self.model.clock.now());
                        if let Ok(data) = frame.into_data() && !data.is_empty() {
                            return Step::Data(data);
                        }
                    }
                    Some(Err(_)) => {
                        let reset = HealthEvent::ConnectionFailed(Cause::ConnectionReset);
                        self.model.report(&self.endpoint, reset);
                        return Step::Broken(StreamError::Interrupted);
                    }
                },
                _ = self.loss.wait() => return Step::Broken(StreamError::Interrupted),
                () = &mut self.deadline => return Step::Broken(StreamError::TimedOut),
            }
        }
    }
}

/// Cuts a stream of bytes behind whole events.
#[derive(Debug, Default)]
struct EventCutter {
    enabled: bool,
    held: BytesMut,
}

impl EventCutter {
    /// Takes bytes in and returns those up to the end of the last whole event.
    fn cut(&mut self, data: Bytes) -> Bytes {
        if !self.enabled || (self.held.is_empty() && data.ends_with(b"\n\n")) {
            return data;
        }
        self.held.extend_from_slice(&data);
        match last_event_end(&self.held) {
            Some(end) => self.held.split_to(end).freeze(),
            None if self.held.len() > MAX_EVENT_BYTES => self.rest(),
            None => Bytes::new(),
        }
    }

    /// What is still held back.
    fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

fn last_event_end(bytes: &[u8]) -> Option<usize> {
    let after =
        |mark: &[u8]| bytes.windows(mark.len()).rposition(|window| window == mark).map(|at| at + mark.len());
    after(b"\n\n").max(after(b"\r\n\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_pass_whole_and_nothing_is_lost() {
        let check = |pieces: &[&'static str], expected: &[&str], rest: &str| {
            let mut cutter = EventCutter { enabled: true, ..EventCutter::default() };
            let cut: Vec<Bytes> =
                pieces.iter().map(|piece| cutter.cut(Bytes::from_static(piece.as_bytes()))).collect();
            assert_eq!(cut, expected, "{pieces:?}");
            assert_eq!(cutter.rest(), rest, "{pieces:?}");
        };
        check(&["data: 1\n\n", "data: 2\n\n"], &["data: 1\n\n", "data: 2\n\n"], "");
        check(&["data: 1\n\ndata: 2"], &["data: 1\n\n"], "data: 2");
        check(&["da", "ta: 1\n", "\nda", "ta: 2\n\n"], &["", "", "data: 1\n\n", "data: 2\n\n"], "");
        check(&["data: 1\r\n\r", "\ndata"], &["", "data: 1\r\n\r\n"], "data");
    }

    #[test]
    fn what_is_no_stream_of_events_passes_as_it_is() {
        let mut cutter = EventCutter::default();
        assert_eq!(cutter.cut(Bytes::from_static(b"half")), "half");
    }
}
