//! Streams of `/v1/messages` and `/v1/responses` as far as the client has them.
//!
//! Their events have no room for token ids, so engines write a comment behind the events of each token. Events pass once
//! their comment is there: what the client has is then always what is known of it.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;

use crate::events;

/// What such a comment begins with.
const NAME: &[u8] = b": atlas-resume ";
/// The events of one token are never this long; what is, comes from an engine that writes no comments.
const MAX_HELD_BYTES: usize = 1 << 20;

/// What an engine writes behind events.
#[derive(Debug, Deserialize)]
pub struct Mark {
    /// Id of the answer, in the first one.
    pub id: Option<String>,
    /// Its time.
    pub created: Option<u64>,
    /// Its seed.
    pub seed: Option<Value>,
    /// The tokens whose events came.
    pub token_ids: Vec<u64>,
    /// Whether these were the last events.
    #[serde(default)]
    pub end: bool,
}

/// Events whose comment has not come yet.
#[derive(Debug, Default)]
pub struct Held(BytesMut);

/// What an event is.
#[derive(Debug)]
pub enum Kind {
    /// One that waits for its comment.
    Waits,
    /// The comment, and what waited for it.
    Marked(Mark, Bytes),
    /// The engine says that it failed: this, behind what waited; and whether the time of the request was over.
    Failed(Bytes, bool),
    /// No comment comes: everything passes from now on.
    Unmarked(Bytes),
}

impl Held {
    /// Takes in one event.
    pub fn take(&mut self, event: &Bytes) -> Kind {
        if let Some(mark) = event.strip_prefix(NAME).and_then(|text| serde_json::from_slice(text).ok()) {
            return Kind::Marked(mark, self.0.split().freeze());
        }
        self.0.extend_from_slice(event);
        // OpenAI's failure has an event of its own behind the error's.
        if event.starts_with(b"event: response.failed\n") || is_last_error(event) {
            let all = self.0.split().freeze();
            let timed_out = events::split(all.clone()).any(|event| is_timeout(&event));
            return Kind::Failed(all, timed_out);
        }
        if self.0.len() > MAX_HELD_BYTES { Kind::Unmarked(self.0.split().freeze()) } else { Kind::Waits }
    }
}

/// Anthropic's, which has the error in an object of its own.
fn is_last_error(event: &[u8]) -> bool {
    event.starts_with(b"event: error\n") && error_of(event).is_some_and(|data| data["error"].is_object())
}

fn is_timeout(event: &[u8]) -> bool {
    event.starts_with(b"event: error\n")
        && error_of(event).is_some_and(|data| {
            [&data["code"], &data["error"]["code"]].into_iter().any(|code| code == "request_timeout")
        })
}

fn error_of(event: &[u8]) -> Option<Value> {
    serde_json::from_slice(events::data(event)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_pass_with_their_mark_and_failures_pass_whole() {
        let mut held = Held::default();
        let mut take = |event: &'static str| held.take(&Bytes::from_static(event.as_bytes()));
        assert!(matches!(take("event: a\ndata: {}\n\n"), Kind::Waits));
        assert!(matches!(take("event: b\ndata: {}\n\n"), Kind::Waits));
        let Kind::Marked(mark, events) =
            take(": atlas-resume {\"id\":\"x\",\"created\":5,\"seed\":7,\"token_ids\":[1,2]}\n\n")
        else {
            panic!("a mark")
        };
        assert_eq!(
            (mark.id.as_deref(), mark.created, mark.token_ids, mark.end),
            (Some("x"), Some(5), vec![1, 2], false)
        );
        assert_eq!(events, "event: a\ndata: {}\n\nevent: b\ndata: {}\n\n");
        let responses = [
            "event: error\ndata: {\"type\":\"error\",\"code\":\"request_timeout\"}\n\n",
            "event: response.failed\ndata: {}\n\n",
        ];
        assert!(matches!(take(responses[0]), Kind::Waits));
        assert!(matches!(take(responses[1]), Kind::Failed(words, true) if words == responses.concat()));
        let messages = "event: error\ndata: {\"type\":\"error\",\"error\":{\"code\":\"internal_error\"}}\n\n";
        assert!(matches!(take(messages), Kind::Failed(words, false) if words == messages));
        let long = Bytes::from(vec![b'x'; MAX_HELD_BYTES + 1]);
        assert!(matches!(held.take(&long), Kind::Unmarked(all) if all == long));
    }
}
