//! Server-sent events as bytes: cutting a stream behind whole ones, and what the gateway itself sends.

use bytes::{Bytes, BytesMut};

/// An event is never this long; what is, passes unchecked rather than filling the memory.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Keeps a client and everything between awake; clients ignore comments.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// The mark for the end of a stream.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Cuts a stream of bytes behind whole events.
#[derive(Debug, Default)]
pub struct EventCutter {
    /// Whether the stream is one of events at all; else everything passes.
    pub enabled: bool,
    held: BytesMut,
}

impl EventCutter {
    /// For a stream of events, or for anything else.
    #[must_use]
    pub fn new(enabled: bool) -> Self {
        Self { enabled, held: BytesMut::new() }
    }

    /// Takes bytes in and returns those up to the end of the last whole event.
    pub fn cut(&mut self, data: Bytes) -> Bytes {
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
    pub fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

fn last_event_end(bytes: &[u8]) -> Option<usize> {
    let after =
        |mark: &[u8]| bytes.windows(mark.len()).rposition(|window| window == mark).map(|at| at + mark.len());
    after(b"\n\n").max(after(b"\r\n\r\n"))
}

/// The events in bytes that end behind one, each with its end.
pub fn split(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let end = |mark: &[u8]| {
            bytes.windows(mark.len()).position(|window| window == mark).map(|at| at + mark.len())
        };
        let end = [end(b"\n\n"), end(b"\r\n\r\n")].into_iter().flatten().min().unwrap_or(bytes.len());
        Some(bytes.split_to(end))
    })
}

/// The data of an event that has one line of it.
#[must_use]
pub fn data(event: &[u8]) -> Option<&[u8]> {
    let mut lines = event.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
    let line = lines.next()?;
    lines.next().is_none().then(|| line.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_pass_whole_and_nothing_is_lost() {
        let check = |pieces: &[&'static str], expected: &[&str], rest: &str| {
            let mut cutter = EventCutter::new(true);
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

    #[test]
    fn events_are_split_and_read() {
        let events: Vec<Bytes> =
            split(Bytes::from_static(b"data: 1\n\n: ping\n\ndata:2\r\n\r\nrest")).collect();
        assert_eq!(events, ["data: 1\n\n", ": ping\n\n", "data:2\r\n\r\n", "rest"]);
        let read: Vec<Option<&[u8]>> = events.iter().map(|event| data(event)).collect();
        assert_eq!(read, [Some(&b"1"[..]), None, Some(b"2"), None]);
    }
}
