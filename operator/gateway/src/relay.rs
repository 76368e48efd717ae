//! Passes a stream on as it comes, lets another engine go on when it breaks, and tells the client when none can.
//!
//! Only whole server-sent events are passed on: a client can then read what follows the last one, be it the rest of its
//! answer from another engine or the error event.

use std::{pin::Pin, sync::Arc};

use atlas_operator_core::routing::{Cause, HealthEvent};
use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::Sleep;
use tracing::debug;

use crate::{
    attempt::{Reached, Upstream},
    body::{AnswerBody, BrokenOff},
    call::Call,
    crossing::{Crossing, Story},
    dialect::Dialect,
    error::StreamError,
    events::{self, EventCutter},
    health::endpoint::{Endpoint, InFlight, Loss},
    metrics::Running,
    resume::{self, Among},
    transcript::{Lacks, Taken, Transcript},
};

/// A stream on its way through.
pub struct Relay {
    call: Arc<Call>,
    source: Option<Source>,
    cutter: EventCutter,
    /// What the client has, where another engine could go on.
    transcript: Option<Transcript>,
    /// What it takes to go on at an engine of another model, where that is allowed.
    across: Option<Box<Across>>,
    events: bool,
    deadline: Pin<Box<Sleep>>,
    _running: Running,
}

/// What it takes to go on at an engine of another model.
#[derive(Default)]
struct Across {
    /// What the client has, as text.
    story: Story,
    /// How the other model's events become parts of the stream, once it goes on.
    crossing: Option<Crossing>,
    /// What its request was.
    request: Bytes,
    /// What is told before the next event.
    told: Bytes,
}

/// Where the stream comes from now.
pub struct Source {
    upstream: Upstream,
    endpoint: Arc<Endpoint>,
    loss: Loss,
    _in_flight: InFlight,
}

impl Source {
    /// Of an answer that is a stream.
    #[must_use]
    pub fn new(upstream: Upstream, endpoint: Arc<Endpoint>, loss: Loss, in_flight: InFlight) -> Self {
        Self { upstream, endpoint, loss, _in_flight: in_flight }
    }
}

enum Step {
    Data(Bytes),
    End,
    Broken(StreamError),
}

/// What becomes of a piece of the stream.
enum Passed {
    Bytes(Bytes),
    /// The engine said that it failed; its own words, behind what came before them.
    Failed {
        before: Bytes,
        words: Bytes,
    },
}

impl Relay {
    /// The body for the client.
    #[must_use]
    pub fn body(call: Arc<Call>, upstream: Upstream, endpoint: Arc<Endpoint>, reached: Rest) -> AnswerBody {
        let Rest { has_ids, loss, in_flight } = reached;
        let events = upstream.events;
        let relay = Self {
            cutter: EventCutter::new(events),
            transcript: (events && has_ids).then(|| Transcript::new(call.dialect())),
            // Another model gets the text of chats and completions only.
            across: (events && has_ids && call.across_models && call.dialect() == Dialect::OpenAi)
                .then(Box::default),
            events,
            deadline: Box::pin(tokio::time::sleep_until(call.deadline)),
            _running: call.metrics.begin(&endpoint.config.model),
            source: Some(Source::new(upstream, endpoint, loss, in_flight)),
            call,
        };
        let frames = stream::unfold(Some(relay), |relay| async move {
            let mut relay = relay?;
            let next = relay.next().await?;
            let goes_on = matches!(&next, Next::Frame(_));
            let frame = match next {
                Next::Frame(bytes) | Next::Last(bytes) => Ok(Frame::data(bytes)),
                Next::Cut => Err(BrokenOff),
            };
            Some((frame, goes_on.then_some(relay)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn next(&mut self) -> Option<Next> {
        loop {
            let source = self.source.as_mut()?;
            let step = step(&self.call, source, &mut self.deadline).await;
            // A stream that ends without saying so is a broken one, however cleanly its connection was closed.
            let unfinished = self.transcript.as_ref().is_some_and(|transcript| !transcript.is_done());
            let step = if unfinished && matches!(step, Step::End) {
                Step::Broken(StreamError::Interrupted)
            } else {
                step
            };
            match step {
                Step::Data(data) => match self.pass(data) {
                    Passed::Bytes(bytes) if bytes.is_empty() => {}
                    Passed::Bytes(bytes) => return Some(Next::Frame(bytes)),
                    Passed::Failed { before, words } => {
                        let source = self.source.take()?;
                        self.call.model.report(&source.endpoint, HealthEvent::ServerError);
                        let (model, tier) =
                            (source.endpoint.config.model.clone(), source.endpoint.config.tier.clone());
                        if !self.go_on(source).await {
                            self.call.metrics.interrupted(&model, &tier);
                            return Some(Next::Last(join(before, words)));
                        }
                        if !before.is_empty() {
                            return Some(Next::Frame(before));
                        }
                    }
                },
                Step::End => {
                    let source = self.source.take()?;
                    self.call.model.report(&source.endpoint, HealthEvent::Answered);
                    source.endpoint.pool(source.upstream.port).give_back(source.upstream.sender);
                    let rest = self.cutter.rest();
                    return (!rest.is_empty()).then_some(Next::Last(rest));
                }
                Step::Broken(error) => {
                    let source = self.source.take()?;
                    if self.transcript.as_ref().is_some_and(Transcript::is_done) {
                        return None;
                    }
                    let (model, tier) =
                        (source.endpoint.config.model.clone(), source.endpoint.config.tier.clone());
                    if error == StreamError::Interrupted {
                        let lacks = self.lacks();
                        if lacks != Lacks::Mark && self.go_on(source).await {
                            continue;
                        }
                        if lacks != Lacks::Answer {
                            return Some(Next::Last(events::DONE));
                        }
                    }
                    self.call.metrics.interrupted(&model, &tier);
                    let told = error.event(self.call.dialect());
                    return Some(if self.events { Next::Last(told) } else { Next::Cut });
                }
            }
        }
    }

    /// What the client has not.
    fn lacks(&self) -> Lacks {
        let crossed = self.across.as_ref().is_some_and(|across| across.crossing.is_some());
        // Another model is asked for one choice only, whatever the body says.
        let body = if crossed { &b"{}"[..] } else { &self.call.body };
        self.transcript.as_ref().map_or(Lacks::Answer, |transcript| transcript.lacks(body))
    }

    /// Finds another engine that goes on behind what the client has.
    async fn go_on(&mut self, broken: Source) -> bool {
        let Some(transcript) = &mut self.transcript else { return false };
        transcript.broke();
        let endpoint = Arc::clone(&broken.endpoint);
        // Closed before anything is sent elsewhere: the old engine may still be generating.
        drop(broken);
        self.cutter.rest();
        let (model, tokens) = (&endpoint.config.model, transcript.tokens());
        let among = if self.across.is_some() { Among::SameNow } else { Among::Same };
        let crossed = self.across.as_ref().filter(|across| across.crossing.is_some());
        let request = crossed.map_or(&self.call.body, |across| &across.request);
        // On the heap, since few streams break and every one would keep room for it.
        let resumed = match transcript.resumed_body(request) {
            Some(body) => Box::pin(resume::go_on(&self.call, &endpoint, body, among)).await,
            None => None,
        };
        let (outcome, source) = match resumed {
            Some((source, _)) => ("resumed", Some(source)),
            None => match Box::pin(self.cross(&endpoint)).await {
                Some(source) => ("crossed", Some(source)),
                None => ("failed", None),
            },
        };
        self.call.metrics.resumed(model, outcome);
        if source.is_some() {
            self.call.model.count(|counts| &counts.resumed);
        }
        debug!(%model, tokens, outcome, "a stream broke");
        self.source = source;
        self.source.is_some()
    }

    /// Finds an engine of another model that goes on behind the text, where the client allows that.
    async fn cross(&mut self, broken: &Arc<Endpoint>) -> Option<Source> {
        let (across, transcript) = (self.across.as_mut()?, self.transcript.as_mut()?);
        let identity = transcript.identity()?;
        let (identity, before) = match &across.crossing {
            Some(crossing) => ((crossing.id.clone(), crossing.created), crossing.tokens),
            None => (identity, 0),
        };
        let tokens = before + transcript.tokens() as u64;
        let body = across.story.crossed_body(&self.call.body, tokens)?;
        let (source, endpoint) = resume::go_on(&self.call, broken, body.clone(), Among::Others).await?;
        let tier = endpoint.config.tier.as_str();
        across.told = Crossing::comment(tier, self.call.model.config().display_model(tier));
        across.crossing = Some(Crossing::new(&across.story, identity, tokens));
        across.request = body;
        *transcript = Transcript::default();
        Some(source)
    }

    fn pass(&mut self, data: Bytes) -> Passed {
        let whole = self.cutter.cut(data);
        let Some(transcript) = self.transcript.as_mut() else { return Passed::Bytes(whole) };
        let mut across = self.across.as_deref_mut();
        let told = across.as_mut().map(|across| std::mem::take(&mut across.told));
        let mut passed = BytesMut::from(told.unwrap_or_default());
        for event in events::split(whole) {
            let event = match transcript.take(event) {
                Taken::Pass(event) => event,
                Taken::Drop => continue,
                Taken::Failed(words) => return Passed::Failed { before: passed.freeze(), words },
            };
            let event = match across.as_mut() {
                None => event,
                Some(across) => {
                    let rewritten = match &mut across.crossing {
                        Some(crossing) => crossing.rewrite(event),
                        None => Some(event),
                    };
                    let Some(event) = rewritten else { continue };
                    across.story.take(&event);
                    event
                }
            };
            if passed.is_empty() {
                passed = BytesMut::from(event);
            } else {
                passed.extend_from_slice(&event);
            }
        }
        Passed::Bytes(passed.freeze())
    }
}

/// What a relay needs of a [`Reached`] besides its stream.
pub struct Rest {
    has_ids: bool,
    loss: Loss,
    in_flight: InFlight,
}

impl Rest {
    /// Takes an answer apart.
    #[must_use]
    pub fn split(reached: Reached) -> (http::response::Parts, crate::attempt::Content, Self) {
        let Reached { parts, content, has_ids, loss, in_flight, waited: _ } = reached;
        (parts, content, Self { has_ids, loss, in_flight })
    }

    /// As the source of a relay that goes on.
    #[must_use]
    pub fn into_source(self, upstream: Upstream, endpoint: Arc<Endpoint>) -> Source {
        Source::new(upstream, endpoint, self.loss, self.in_flight)
    }
}

enum Next {
    Frame(Bytes),
    Last(Bytes),
    Cut,
}

fn join(a: Bytes, b: Bytes) -> Bytes {
    if a.is_empty() { b } else { [a, b].concat().into() }
}

async fn step(call: &Call, source: &mut Source, deadline: &mut Pin<Box<Sleep>>) -> Step {
    if let Some(first) = source.upstream.first.take() {
        return Step::Data(first);
    }
    loop {
        tokio::select! {
            biased;
            frame = source.upstream.body.frame() => match frame {
                None => return Step::End,
                Some(Ok(frame)) => {
                    source.endpoint.saw_bytes(call.model.clock.now());
                    if let Ok(data) = frame.into_data() && !data.is_empty() {
                        return Step::Data(data);
                    }
                }
                Some(Err(_)) => {
                    let reset = HealthEvent::ConnectionFailed(Cause::ConnectionReset);
                    call.model.report(&source.endpoint, reset);
                    return Step::Broken(StreamError::Interrupted);
                }
            },
            _ = source.loss.wait() => return Step::Broken(StreamError::Interrupted),
            () = deadline.as_mut() => return Step::Broken(StreamError::TimedOut),
        }
    }
}
