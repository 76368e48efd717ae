//! Answers told in blocks, as `/v1/messages` and `/v1/responses` do: thoughts, then text, then calls, each opened, added
//! to and closed. How a stream begins, goes from one block to the next and ends stands here once; how each API writes
//! that is its own.

use super::collect::Answer;
use super::delta::{Delta, Finish, Usage};
use super::marks::Marks;
use super::openai::ApiError;
use super::reply::{Event, Writer};
use crate::text::answer::Part;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use serde_json::Value;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Thoughts.
    Reasoning,
    /// What the model says.
    Content,
    /// The call of a tool.
    Call,
}

/// How an API writes an answer in blocks; one is open at a time.
pub trait Blocks: Send + 'static {
    /// The first events.
    fn begin(&mut self, usage: Usage, events: &mut Vec<Event>);
    /// A block begins; `name` is the tool's where it is a call.
    fn open(&mut self, kind: Kind, name: &str, events: &mut Vec<Event>);
    /// Log-probabilities of the tokens whose text comes next; for APIs that tell them.
    fn logprobs(&mut self, _logprobs: &[(TokenId, TokenLogprobs)]) {}
    /// More text, or more of a call's arguments, for the open block.
    fn add(&mut self, kind: Kind, text: &str, events: &mut Vec<Event>);
    /// The open block ends, `whole` or cut by the token limit.
    fn close(&mut self, kind: Kind, whole: bool, events: &mut Vec<Event>);
    /// The last events, after the last block.
    fn end(&mut self, finish: Option<&Finish>, usage: Usage, events: &mut Vec<Event>);
    /// The last events of an answer that fails, whatever is open.
    fn failed(&mut self, error: &ApiError) -> Vec<Event>;
    /// The whole answer at once.
    fn whole(&mut self, answer: Answer, usage: Usage) -> Value;
}

/// Writes the stream of an API that tells its answers in blocks.
pub struct BlockWriter<B> {
    api: B,
    /// Behind the events of each token, where a gateway asked for them.
    marks: Option<Marks>,
    begun: bool,
    open: Option<Kind>,
    finish: Option<Finish>,
}

impl<B: Blocks> BlockWriter<B> {
    /// A writer for one answer.
    pub fn new(api: B, marks: Option<Marks>) -> Self {
        Self { api, marks, begun: false, open: None, finish: None }
    }

    /// Goes on behind what a broken answer had written.
    pub fn replay(&mut self, begun: bool, shown: Vec<Delta>) {
        if begun {
            self.begin(Usage::default(), &mut Vec::new());
        }
        for delta in shown {
            self.write(delta, Usage::default());
        }
    }

    fn write(&mut self, delta: Delta, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin(usage, &mut events);
        self.api.logprobs(&delta.logprobs);
        for part in delta.parts {
            match part {
                Part::Reasoning(text) => self.add(Kind::Reasoning, &text, &mut events),
                Part::Content(text) => self.add(Kind::Content, &text, &mut events),
                Part::Call { name } => self.open(Kind::Call, &name, &mut events),
                Part::Arguments(text) => self.add(Kind::Call, &text, &mut events),
            }
        }
        self.finish = delta.finish.or(self.finish.take());
        events
    }

    fn begin(&mut self, usage: Usage, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.begun, true) {
            self.api.begin(usage, events);
        }
    }

    fn open(&mut self, kind: Kind, name: &str, events: &mut Vec<Event>) {
        self.close(true, events);
        self.api.open(kind, name, events);
        self.open = Some(kind);
    }

    fn add(&mut self, kind: Kind, text: &str, events: &mut Vec<Event>) {
        if self.open != Some(kind) {
            self.open(kind, "", events);
        }
        self.api.add(kind, text, events);
    }

    fn close(&mut self, whole: bool, events: &mut Vec<Event>) {
        if let Some(kind) = self.open.take() {
            self.api.close(kind, whole, events);
        }
    }
}

impl<B: Blocks> Writer for BlockWriter<B> {
    fn events(&mut self, delta: Delta, usage: Usage) -> Vec<Event> {
        let mut delta = delta;
        let ids = std::mem::take(&mut delta.token_ids);
        let mut events = self.write(delta, usage);
        events.extend(self.marks.as_mut().map(|marks| marks.tokens(&ids)));
        events
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin(usage, &mut events);
        let cut = self.finish.as_ref().is_some_and(|finish| finish.reason == FinishReason::Length);
        self.close(!cut, &mut events);
        self.api.end(self.finish.as_ref(), usage, &mut events);
        events.extend(self.marks.as_ref().map(|_| Marks::end()));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.api.failed(error)
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        // These APIs know one choice.
        self.api.whole(answers.into_iter().next().unwrap_or_default(), usage)
    }
}
