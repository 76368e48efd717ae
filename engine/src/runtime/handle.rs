//! The async side's end: submit a request, receive its tokens.

use crate::status::Status;
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{AdmissionQueue, FinishReason, QueueFull, TokenId, TokenMask, ValidRequest};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What a request's channel carries. The channel closes without a finish where the worker fails.
#[derive(Debug, Clone)]
pub struct TokenEvent {
    /// The next token.
    pub token: TokenId,
    /// Its log-probabilities, where asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set on the last one.
    pub finish: Option<FinishReason>,
}

/// A request in the queue.
pub(super) struct Submission {
    pub request: ValidRequest,
    pub mask: Option<Box<dyn TokenMask>>,
    /// Unbounded, but never longer than the request's token limit.
    pub events: UnboundedSender<TokenEvent>,
    pub queued: Instant,
}

/// The queue between both sides.
pub(super) struct Inbox {
    queue: Mutex<AdmissionQueue<Submission>>,
    arrived: Condvar,
    status: Arc<Status>,
}

/// Submits requests to the worker.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: Arc<Inbox>,
}

impl EngineHandle {
    /// A handle and the inbox that the worker reads.
    pub(super) fn new(queue_limit: usize, status: Arc<Status>) -> (Self, Arc<Inbox>) {
        let queue = Mutex::new(AdmissionQueue::new(queue_limit));
        let inbox = Arc::new(Inbox { queue, arrived: Condvar::new(), status });
        (Self { inbox: inbox.clone() }, inbox)
    }

    /// Puts a request with its grammar into the queue. Dropping the receiver ends it.
    ///
    /// # Errors
    /// The queue is at its limit.
    pub fn submit(
        &self,
        request: ValidRequest,
        mask: Option<Box<dyn TokenMask>>,
    ) -> Result<UnboundedReceiver<TokenEvent>, QueueFull> {
        let (events, receiver) = unbounded_channel();
        let mut queue = self.inbox.lock();
        // Clients that gave up while waiting must not keep others out.
        queue.retain(|waiting| !waiting.events.is_closed());
        queue.push(Submission { request, mask, events, queued: Instant::now() })?;
        self.inbox.count(&queue);
        self.inbox.arrived.notify_one();
        Ok(receiver)
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, AdmissionQueue<Submission>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, queue: &AdmissionQueue<Submission>) {
        self.status.progress.waiting.store(queue.len() as u64, Relaxed);
    }

    /// The oldest request that somebody still waits for. With `wait`, sleeps until there is one.
    pub(super) fn take(&self, wait: bool) -> Option<Submission> {
        let mut queue = self.lock();
        loop {
            queue.retain(|waiting| !waiting.events.is_closed());
            let taken = queue.pop();
            self.count(&queue);
            if taken.is_some() || !wait {
                return taken;
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
