//! What a client's connection waits for: for the head of a request not long, between two requests long, and for its end
//! until nothing of a request can be on its way any more.
//!
//! A pool of connections takes one that was idle for a minute or more and sends a request on it, which is lost with a
//! connection that is ended at that moment. So idle ones are kept for longer than clients and load balancers keep theirs,
//! and where the gateway stops, those that do nothing are ended last.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::body::{AnswerBody, BrokenOff};

/// Idle connections that may stay idle for long; more of them get no longer than the head of a request. One keeps the
/// buffer that its largest request took, 64 KiB at most, and a gateway's memory is 256 MiB.
const MOST_IDLE: usize = 1_024;

/// How long a connection may wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the head of a request.
    pub head: Duration,
    /// For the next request.
    pub idle: Duration,
}

/// The connections of a listener.
#[derive(Debug)]
pub struct Connections {
    patience: Patience,
    idle: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing came yet.
    Fresh,
    /// Some of a head came.
    Head,
    /// A request is being answered.
    Busy,
    /// Everything that came was answered.
    Idle { for_long: bool },
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// The client does not read what was written.
    write_waits: bool,
    /// Of a reader to whom the clock matters again once the request is answered.
    reader: Option<Waker>,
}

/// One of them.
#[derive(Debug)]
pub struct Conversation {
    all: Arc<Connections>,
    state: Mutex<State>,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self { patience, idle: AtomicUsize::new(0) })
    }

    /// A connection that was accepted now.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Arc<Conversation> {
        let state = State { phase: Phase::Fresh, since: Instant::now(), write_waits: false, reader: None };
        Arc::new(Conversation { all: Arc::clone(self), state: Mutex::new(state) })
    }
}

impl Conversation {
    /// A whole head is here; the request runs until its [`Answering`] is dropped.
    #[must_use]
    pub fn answer(self: &Arc<Self>) -> Answering {
        self.enter(Phase::Busy);
        Answering(Arc::clone(self))
    }

    /// Returns once nothing came for so long, no request runs, and the client has its answers.
    pub async fn quiet(&self, quiet: Duration) {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let until = self.rests_since().map_or(now, |since| since.max(begun)) + quiet;
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn rests_since(&self) -> Option<Instant> {
        let state = self.lock();
        let rests = matches!(state.phase, Phase::Fresh | Phase::Idle { .. }) && !state.write_waits;
        rests.then_some(state.since)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        if let Phase::Idle { .. } = state.phase {
            self.all.idle.fetch_sub(1, Ordering::Relaxed);
        }
        if let Phase::Idle { .. } = phase {
            self.all.idle.fetch_add(1, Ordering::Relaxed);
        }
        // Time for the first head began with the connection.
        if !(state.phase == Phase::Fresh && phase == Phase::Head) {
            state.since = Instant::now();
        }
        state.phase = phase;
    }

    fn answered(&self) {
        let for_long = self.all.idle.load(Ordering::Relaxed) < MOST_IDLE;
        self.enter(Phase::Idle { for_long });
        if let Some(reader) = self.lock().reader.take() {
            reader.wake();
        }
    }

    fn heard(&self) {
        let phase = self.lock().phase;
        if matches!(phase, Phase::Fresh | Phase::Idle { .. }) {
            self.enter(Phase::Head);
        }
    }

    /// Until when it waits for more; without end while a request runs, which has limits of its own.
    fn waits_until(&self, reader: &Waker) -> Option<Instant> {
        let mut state = self.lock();
        let Patience { head, idle } = self.all.patience;
        match state.phase {
            Phase::Busy => {
                state.reader = Some(reader.clone());
                None
            }
            Phase::Idle { for_long: true } => Some(state.since + idle),
            Phase::Fresh | Phase::Head | Phase::Idle { for_long: false } => Some(state.since + head),
        }
    }

    /// What a reader is told whose wait is over: half a head is an error, and nothing at all an end.
    fn ending(&self) -> io::Result<()> {
        if self.lock().phase == Phase::Head { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Phase::Idle { .. } = self.lock().phase {
            self.all.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A request that runs.
#[derive(Debug)]
pub struct Answering(Arc<Conversation>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// The body of an answer, with which its request ends.
#[derive(Debug)]
pub struct Answered {
    body: AnswerBody,
    _answering: Answering,
}

impl Answered {
    /// Binds them together.
    #[must_use]
    pub fn new(body: AnswerBody, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that tells its [`Conversation`] what comes, and ends where it waited for too long.
#[derive(Debug)]
pub struct Heard<S> {
    inner: S,
    conversation: Arc<Conversation>,
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Heard<S> {
    /// Listens to a connection.
    pub fn new(inner: S, conversation: Arc<Conversation>) -> Self {
        Self { inner, conversation, waits: None }
    }

    fn wrote<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.conversation.lock().write_waits = done.is_pending();
        done
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        // First what is there already, and then the clock: a process that stood still must not blame its clients.
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(context, buffer) {
            if buffer.filled().len() > before {
                self.conversation.heard();
            }
            return Poll::Ready(read);
        }
        let Some(until) = self.conversation.waits_until(context.waker()) else { return Poll::Pending };
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if waits.deadline() != until {
            waits.as_mut().reset(until);
        }
        ready!(waits.as_mut().poll(context));
        Poll::Ready(self.conversation.ending())
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.wrote(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(context);
        self.wrote(done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
