//! What a client has of a stream, so that another engine can go on behind it.
//!
//! Pure: events come in, and come out without the fields that are between gateway and engine only. The form is that of
//! "Resuming a broken stream" in docs/contracts.md.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    dialect::Dialect,
    events,
    marks::{Held, Kind, Mark},
};

/// Fields that only the gateway may send to an engine.
pub const CONTRACT_FIELDS: [&str; 3] = ["return_token_ids", "resume_tokens", "resume"];

/// A stream as far as the client has it.
#[derive(Debug, Default)]
pub struct Transcript {
    id: Option<String>,
    created: Option<u64>,
    seed: Option<Value>,
    choices: BTreeMap<usize, Choice>,
    /// Of streams that tell their tokens in comments.
    held: Option<Held>,
    /// An event of another form passed: nobody knows any more what the client has.
    unclear: bool,
    /// The event with the usage, which has no choice, passed.
    told_usage: bool,
    done: bool,
}

#[derive(Debug, Default)]
struct Choice {
    ids: Vec<u64>,
    finished: bool,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It passes, in this form.
    Pass(Bytes),
    /// The client has it already.
    Drop,
    /// The engine says that it failed.
    Failed(Bytes),
}

#[derive(Deserialize)]
struct Chunk {
    id: Option<String>,
    created: Option<u64>,
    seed: Option<Value>,
    error: Option<ErrorBody>,
    #[serde(default)]
    choices: Vec<ChunkChoice>,
}

/// What says how many choices an answer has.
#[derive(Deserialize)]
struct Asked {
    n: Option<usize>,
    prompt: Option<Value>,
    stream_options: Option<Value>,
}

/// What a client has not of an answer, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// Some of what it says.
    Answer,
    /// What it took, and the mark of the stream's end.
    Usage,
    /// That mark.
    Mark,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: Option<String>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    index: usize,
    token_ids: Option<Vec<u64>>,
    finish_reason: Option<String>,
}

impl Transcript {
    /// Of a stream of this API.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Self { held: (dialect != Dialect::OpenAi).then(Held::default), ..Self::default() }
    }

    fn take_marked(&mut self, kind: Kind) -> Taken {
        match kind {
            Kind::Waits => Taken::Drop,
            Kind::Marked(Mark { id, created, seed, token_ids, end }, events) => {
                self.id = self.id.take().or(id);
                self.created = self.created.or(created);
                self.seed = self.seed.take().or(seed);
                self.choices.entry(0).or_default().ids.extend(token_ids);
                self.done |= end;
                Taken::Pass(events)
            }
            Kind::Failed(words, timed_out) => {
                self.unclear |= timed_out;
                Taken::Failed(words)
            }
            Kind::Unmarked(events) => {
                self.unclear = true;
                self.held = None;
                Taken::Pass(events)
            }
        }
    }

    /// Takes in one event of the engine's.
    pub fn take(&mut self, event: Bytes) -> Taken {
        if let Some(held) = &mut self.held {
            let kind = held.take(&event);
            return self.take_marked(kind);
        }
        let Some(data) = events::data(&event) else { return Taken::Pass(event) };
        if data == b"[DONE]" {
            self.done = true;
            return Taken::Pass(event);
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else {
            self.unclear = true;
            return Taken::Pass(event);
        };
        if let Some(error) = chunk.error {
            // The time of a request is over wherever it goes on.
            self.unclear |= error.code.as_deref() == Some("request_timeout");
            return Taken::Failed(event);
        }
        self.id = self.id.take().or(chunk.id);
        self.created = self.created.or(chunk.created);
        self.seed = self.seed.take().or(chunk.seed);
        self.told_usage |= chunk.choices.is_empty();
        let mut repeats = !chunk.choices.is_empty();
        for choice in chunk.choices {
            let known = self.choices.entry(choice.index).or_default();
            let finishes = choice.finish_reason.is_some();
            repeats &= known.finished && finishes;
            match choice.token_ids {
                Some(_) if known.finished => {}
                Some(ids) => known.ids.extend(ids),
                None => self.unclear = true,
            }
            known.finished |= finishes;
        }
        if repeats { Taken::Drop } else { Taken::Pass(without_contract_fields(event)) }
    }

    /// The stream broke: what the client has not got of it comes again.
    pub fn broke(&mut self) {
        if let Some(held) = &mut self.held {
            *held = Held::default();
        }
    }

    /// Whether the client has everything.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// What the client has not of the answer to this request.
    #[must_use]
    pub fn lacks(&self, body: &[u8]) -> Lacks {
        // What cannot be read has no count, so its answer counts as unfinished: that tells of a break where there was none,
        // and never the other way around.
        let asked = serde_json::from_slice::<Asked>(body).ok();
        let count = || {
            let asked = asked.as_ref()?;
            let prompts = match asked.prompt.as_ref().and_then(Value::as_array) {
                // One prompt of token ids.
                Some(prompts) if !prompts.iter().all(Value::is_u64) => prompts.len(),
                _ => 1,
            };
            prompts.checked_mul(asked.n.unwrap_or(1))
        };
        let whole = !self.unclear
            && self.choices.values().all(|choice| choice.finished)
            && Some(self.choices.len()) == count();
        let options = || asked.as_ref()?.stream_options.as_ref();
        let wants_usage = options().is_some_and(|options| options["include_usage"] == true);
        match whole {
            false => Lacks::Answer,
            true if wants_usage && !self.told_usage => Lacks::Usage,
            true => Lacks::Mark,
        }
    }

    /// Tokens that the client has, over all choices.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.choices.values().map(|choice| choice.ids.len()).sum()
    }

    /// Id and time of the stream, once they are known; `None` too where it must not go on.
    #[must_use]
    pub fn identity(&self) -> Option<(String, u64)> {
        if self.unclear {
            return None;
        }
        Some((self.id.clone()?, self.created?))
    }

    /// The request that goes on behind what the client has; `None` where that is not known.
    #[must_use]
    pub fn resumed_body(&self, body: &[u8]) -> Option<Bytes> {
        let (false, Some(id), Some(created), Some(seed)) = (self.unclear, &self.id, self.created, &self.seed)
        else {
            return None;
        };
        let count = self.choices.keys().max()? + 1;
        let ids = |index: usize| self.choices.get(&index).map_or(&[][..], |choice| &choice.ids);
        let tokens = if count == 1 { json!(ids(0)) } else { (0..count).map(ids).collect::<Vec<_>>().into() };
        let resume = json!({"id": id, "created": created, "seed": seed});
        with_fields(body, &format!(r#""return_token_ids":true,"resume_tokens":{tokens},"resume":{resume}"#))
    }
}

/// The request that asks for what a [`Transcript`] needs; `None` where the body is no JSON object.
#[must_use]
pub fn body_with_ids(body: &[u8]) -> Option<Bytes> {
    with_fields(body, r#""return_token_ids":true"#)
}

/// A JSON object with more fields in front. The body itself, which may be megabytes, is not parsed again.
fn with_fields(body: &[u8], fields: &str) -> Option<Bytes> {
    let rest = body.trim_ascii_start().strip_prefix(b"{")?;
    let comma = if rest.trim_ascii_start().starts_with(b"}") { "" } else { "," };
    let mut all = BytesMut::with_capacity(rest.len() + fields.len() + 2);
    for part in [b"{", fields.as_bytes(), comma.as_bytes(), rest] {
        all.extend_from_slice(part);
    }
    Some(all.freeze())
}

/// The event as the client may see it.
fn without_contract_fields(event: Bytes) -> Bytes {
    let mut bytes = event.to_vec();
    // Inside a JSON string every quote has a backslash before it, so the names can be found as bytes.
    while cut_field(&mut bytes, b"\"token_ids\":", |byte| byte == b']') {}
    cut_field(&mut bytes, b"\"seed\":", |byte| matches!(byte, b',' | b'}'));
    Bytes::from(bytes)
}

/// Takes one field with a comma of its own out; its value ends with (an array) or before (a number) the given byte.
fn cut_field(bytes: &mut Vec<u8>, name: &[u8], ends: impl Fn(u8) -> bool) -> bool {
    let Some(start) = bytes.windows(name.len()).position(|window| window == name) else { return false };
    let Some(length) = bytes[start + name.len()..].iter().position(|byte| ends(*byte)) else { return false };
    let mut end = start + name.len() + length;
    end += usize::from(bytes.get(end) == Some(&b']'));
    if bytes.get(end) == Some(&b',') {
        bytes.drain(start..=end);
    } else {
        let start = if start > 0 && bytes[start - 1] == b',' { start - 1 } else { start };
        bytes.drain(start..end);
    }
    true
}

#[cfg(test)]
#[path = "transcript_tests.rs"]
mod tests;
