//! The async side's end: submit a request, receive its choices' tokens.

use super::embed::{Embedded, Embedding, Pooling};
use crate::status::Status;
use atlas_engine_core::admission::{Capacity, Refusal, check, check_tokens};
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, MaskError, Scope, TokenId, TokenMask, ValidRequest};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// A request on its way to the worker.
pub struct Submission {
    /// What to compute.
    pub request: ValidRequest,
    /// Lower ones come first; 0 is usual.
    pub priority: i32,
    /// Whose cached prefixes it may use.
    pub scope: Scope,
    /// Each choice's grammar, after the tokens that the choice is resumed with; empty where there is none.
    pub masks: Vec<Box<dyn TokenMask>>,
}

/// What one choice's channel carries: tokens, or last of all that its grammar cannot tell how it goes on.
pub type ChoiceEvent = Result<TokenEvent, MaskError>;

/// A token of a choice. Its channel closes without a finish where the worker fails, and at once, without any
/// event, where the choice's resumed tokens have ended it already.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// The next token.
    pub token: TokenId,
    /// Its log-probabilities, where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set on the last one.
    pub finish: Option<FinishReason>,
    /// What the choice's first token tells of its prompt.
    pub prompt: Option<PromptReport>,
}

/// What is known of a prompt once it is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptReport {
    /// When its first step began.
    pub began: Instant,
    /// Tokens at the beginning that needed no computing, since the cache held them. Those of a resumed answer may be
    /// among them.
    pub cached_tokens: usize,
    /// Log-probabilities of its tokens but the first, where this choice tells them.
    pub logprobs: Vec<TokenLogprobs>,
}

/// A request in the inbox.
pub(super) struct Arrival {
    pub submission: Submission,
    pub clients: Vec<Client>,
}

impl Arrival {
    fn is_abandoned(&self) -> bool {
        self.clients.iter().all(|client| client.events.is_closed())
    }
}

/// The worker's end of a choice's channel.
pub(super) struct Client {
    /// Unbounded, but never longer than the request's token limit.
    pub events: UnboundedSender<ChoiceEvent>,
    pub queued: Instant,
}

/// What arrived and how much waits behind it.
#[derive(Default)]
struct Inside {
    arrivals: Vec<Arrival>,
    embeddings: Vec<Embedding>,
    /// Sequences in the scheduler's line.
    in_line: usize,
}

/// The way between both sides.
pub(super) struct Inbox {
    inside: Mutex<Inside>,
    arrived: Condvar,
    status: Arc<Status>,
    capacity: Capacity,
}

/// Submits requests to the worker.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: Arc<Inbox>,
}

impl EngineHandle {
    /// A handle and the inbox that the worker reads.
    pub(super) fn new(capacity: Capacity, status: Arc<Status>) -> (Self, Arc<Inbox>) {
        let inbox = Arc::new(Inbox { inside: Mutex::default(), arrived: Condvar::new(), status, capacity });
        (Self { inbox: inbox.clone() }, inbox)
    }

    /// Puts a request in line: one receiver a choice. Dropping one ends its choice within a step.
    ///
    /// # Errors
    /// The line is at its limit, or the request can never be served.
    pub fn submit(&self, submission: Submission) -> Result<Vec<UnboundedReceiver<ChoiceEvent>>, Refusal> {
        let queued = Instant::now();
        let channels = (0..submission.request.choices()).map(|_| {
            let (events, receiver) = unbounded_channel();
            (Client { events, queued }, receiver)
        });
        let (clients, receivers) = channels.unzip();
        let mut inside = self.inbox.lock();
        // Clients that gave up while waiting must not keep others out.
        inside.arrivals.retain(|arrival| !arrival.is_abandoned());
        let waiting = inside.in_line + inside.arrivals.len();
        check(&submission.request, waiting, &self.inbox.capacity)?;
        inside.arrivals.push(Arrival { submission, clients });
        self.inbox.count(&inside);
        self.inbox.arrived.notify_one();
        Ok(receivers)
    }
}

impl EngineHandle {
    /// Puts a text in line to be embedded. Dropping the receiver ends it within a step; it closes where the worker
    /// fails.
    ///
    /// # Errors
    /// The line is at its limit, or the whole cache could not hold the text.
    pub fn embed(
        &self,
        tokens: Vec<TokenId>,
        pooling: Pooling,
    ) -> Result<oneshot::Receiver<Embedded>, Refusal> {
        let (reply, receiver) = oneshot::channel();
        let mut inside = self.inbox.lock();
        inside.embeddings.retain(|embedding| !embedding.reply.is_closed());
        let waiting = inside.in_line + inside.arrivals.len() + inside.embeddings.len();
        check_tokens(tokens.len(), waiting, &self.inbox.capacity)?;
        inside.embeddings.push(Embedding { tokens, pooling, reply });
        self.inbox.arrived.notify_one();
        Ok(receiver)
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, inside: &Inside) {
        self.status.progress.waiting.store((inside.in_line + inside.arrivals.len()) as u64, Relaxed);
    }

    /// Everything that arrived. With `wait`, sleeps until there is something.
    pub(super) fn take(&self, wait: bool) -> Vec<Arrival> {
        let mut inside = self.lock();
        while wait && inside.arrivals.is_empty() && inside.embeddings.is_empty() {
            inside = self.arrived.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
        let arrivals = std::mem::take(&mut inside.arrivals);
        // Until the scheduler has counted them itself they wait in its line.
        inside.in_line += arrivals.len();
        arrivals
    }

    /// The oldest text to embed that somebody waits for.
    pub(super) fn take_embedding(&self) -> Option<Embedding> {
        let mut inside = self.lock();
        inside.embeddings.retain(|embedding| !embedding.reply.is_closed());
        (!inside.embeddings.is_empty()).then(|| inside.embeddings.remove(0))
    }

    /// Puts a text back to the head of its line: there is no room for it yet.
    pub(super) fn put_back(&self, embedding: Embedding) {
        self.lock().embeddings.insert(0, embedding);
    }

    /// Tells how many sequences wait in the scheduler's line.
    pub(super) fn set_in_line(&self, count: usize) {
        let mut inside = self.lock();
        inside.in_line = count;
        self.count(&inside);
    }
}
