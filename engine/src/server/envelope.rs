//! What the objects of both completion APIs share: id, time, model, seed and usage, and how a choice's stream ends.

use super::openai::ApiError;
use super::params::Params;
use super::reply::{Event, new_id};
use super::unix_seconds;
use atlas_engine_core::TokenId;
use serde_json::{Value, json};

/// Names of an API's objects.
#[derive(Debug, Clone, Copy)]
pub struct Kinds {
    /// What ids begin with.
    pub id: &'static str,
    /// A whole answer.
    pub whole: &'static str,
    /// A piece of a streamed one.
    pub chunk: &'static str,
}

/// What stays the same from one object of an answer to the next.
pub struct Envelope {
    /// The answer's id.
    pub id: String,
    created: u64,
    model: String,
    kinds: Kinds,
    include_usage: bool,
    continuous_usage: bool,
    /// Until the first object has told it.
    seed: Option<u64>,
    return_token_ids: bool,
}

impl Envelope {
    /// The envelope of a new answer, or of the broken one that a request goes on with.
    pub fn new(params: &Params, kinds: Kinds) -> Self {
        let broken = params.resume.from.as_ref();
        Self {
            id: broken.map_or_else(|| new_id(kinds.id), |broken| broken.id.clone()),
            created: broken.map_or_else(unix_seconds, |broken| broken.created),
            model: params.model.clone(),
            kinds,
            include_usage: params.include_usage,
            continuous_usage: params.continuous_usage,
            seed: params.resume.return_token_ids.then_some(params.sampling.seed),
            return_token_ids: params.resume.return_token_ids,
        }
    }

    fn object(&mut self, kind: &str, choices: Vec<Value>) -> Value {
        let mut object = json!({"id": self.id, "object": kind, "created": self.created, "model": self.model,
            "choices": choices});
        if let Some(seed) = self.seed.take() {
            object["seed"] = seed.into();
        }
        object
    }

    fn chunk(&mut self, choice: Value, usage: &Value) -> Event {
        let mut chunk = self.object(self.kinds.chunk, vec![choice]);
        if self.include_usage {
            chunk["usage"] = if self.continuous_usage { usage.clone() } else { Value::Null };
        }
        Event::data(&chunk)
    }

    /// Events for what a choice shows. Its end comes in an event of its own, `empty`, where there is something else to
    /// show; but where ids are told, text and end of one token stay together, so that a cut never falls between them.
    pub fn chunks(
        &mut self,
        mut choice: Value,
        empty: Option<Value>,
        ids: Vec<TokenId>,
        usage: &Value,
    ) -> Vec<Event> {
        if self.return_token_ids {
            choice["token_ids"] = ids.into();
            return vec![self.chunk(choice, usage)];
        }
        let reason = choice["finish_reason"].clone();
        match empty.filter(|_| !reason.is_null()) {
            None => vec![self.chunk(choice, usage)],
            Some(mut end) => {
                choice["finish_reason"] = Value::Null;
                end["index"] = choice["index"].clone();
                end["logprobs"] = Value::Null;
                end["finish_reason"] = reason;
                vec![self.chunk(choice, usage), self.chunk(end, usage)]
            }
        }
    }

    /// The last events: usage, where it was asked for, and OpenAI's mark.
    pub fn end(&mut self, usage: Value) -> Vec<Event> {
        let mut events = Vec::new();
        if self.include_usage {
            let mut chunk = self.object(self.kinds.chunk, Vec::new());
            chunk["usage"] = usage;
            events.push(Event::data(&chunk));
        }
        events.push(Event::done());
        events
    }

    /// A choice of a whole answer with its ids, where they are told.
    pub fn with_ids(&self, mut choice: Value, ids: Vec<TokenId>) -> Value {
        if self.return_token_ids {
            choice["token_ids"] = ids.into();
        }
        choice
    }

    /// A whole answer.
    pub fn whole(&mut self, choices: Vec<Value>, usage: Value) -> Value {
        let mut object = self.object(self.kinds.whole, choices);
        object["usage"] = usage;
        object
    }

    /// The last event of an answer that fails.
    pub fn failed(error: &ApiError) -> Vec<Event> {
        vec![Event::data(&error.body())]
    }
}
