//! Clients that ask all the time or at a pace, half of them for streams, and note what they saw.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ask::{Door, Question, ask};

/// What clients ask; every answer is known, so that a wrong one shows.
const PROMPTS: [&str; 4] =
    ["Count from one to twenty.", "Write hello world in Rust.", "Name the planets.", "What is a patch?"];

/// One request as its client saw it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    pub started: Instant,
    /// When each piece of the answer came; of a whole answer only its end counts.
    pub pieces: Vec<Instant>,
    /// When it was over.
    pub ended: Instant,
    /// Whether it was a stream.
    pub streams: bool,
    /// The tier that the answer's head named.
    pub tier: Option<String>,
    /// Connections that were lost with their gateway, each followed by another try.
    pub severed: u32,
    /// Connections that nobody accepted, each followed by another one.
    pub unaccepted: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, token by token as without any fault.
    Whole,
    /// No answer, and why.
    Lost(String),
    /// An answer that ended early or differs, and how.
    Broken(String),
}

impl Sample {
    /// A request that is sent now.
    #[must_use]
    pub fn begin(streams: bool) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            pieces: Vec::new(),
            ended: now,
            streams,
            tier: None,
            severed: 0,
            unaccepted: 0,
            outcome: Outcome::Whole,
        }
    }

    /// From the request to the first piece of its answer.
    #[must_use]
    pub fn first_after(&self) -> Option<Duration> {
        Some(self.pieces.first()?.duration_since(self.started))
    }
}

/// What one answer must be.
type Expected = Arc<Vec<[String; 2]>>;

/// How many clients ask, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Clients.
    pub clients: usize,
    /// Distance of a client's requests on average; none where each follows on the heels of the one before.
    pub pace: Option<Duration>,
}

/// Clients at work.
pub struct Load {
    clients: JoinSet<()>,
    stop: CancellationToken,
    samples: Arc<Mutex<Vec<Sample>>>,
    midway: Midway,
}

/// Streams that have begun and are not over.
pub type Midway = Arc<AtomicUsize>;

/// A stream in its middle.
pub struct InTheMiddle(Midway);

impl InTheMiddle {
    /// Counts it until it is dropped.
    #[must_use]
    pub fn begin(midway: &Midway) -> Self {
        midway.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(midway))
    }
}

impl Drop for InTheMiddle {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    /// Learns the answers, then starts the clients.
    ///
    /// # Errors
    ///
    /// There is no answer without any fault.
    pub async fn start(door: Door, demand: Demand) -> anyhow::Result<Self> {
        let mut expected = Vec::new();
        for prompt in PROMPTS {
            let mut both = [String::new(), String::new()];
            for (streams, text) in [false, true].into_iter().zip(&mut both) {
                let question = Question { prompt, streams, expected: None };
                let sample = ask(&door, question, text, &Midway::default()).await;
                ensure!(sample.outcome == Outcome::Whole, "without any fault: {:?}", sample.outcome);
            }
            expected.push(both);
        }
        let (expected, samples): (Expected, Arc<Mutex<Vec<Sample>>>) = (Arc::new(expected), Arc::default());
        let (stop, midway) = (CancellationToken::new(), Midway::default());
        let mut tasks = JoinSet::new();
        for client in 0..demand.clients {
            let (stop, samples, expected) = (stop.clone(), Arc::clone(&samples), Arc::clone(&expected));
            let (midway, door) = (Arc::clone(&midway), door.clone());
            tasks.spawn(async move {
                let mut number = client / 2;
                while !stop.is_cancelled() {
                    let began = Instant::now();
                    let (at, streams) = (number % PROMPTS.len(), client % 2 == 0);
                    let wanted = expected[at][usize::from(streams)].as_str();
                    let question = Question { prompt: PROMPTS[at], streams, expected: Some(wanted) };
                    let sample = ask(&door, question, &mut String::new(), &midway).await;
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                    number += 1;
                    let until = began + distance(demand.pace);
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => {}
                        () = stop.cancelled() => {}
                    }
                }
            });
        }
        Ok(Self { clients: tasks, stop, samples, midway })
    }

    /// Answers since the given time that this tier gave.
    #[must_use]
    pub fn answered_since(&self, since: Instant, tier: &str) -> usize {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|s| s.started >= since && s.tier.as_deref() == Some(tier)).count()
    }

    /// Whole answers to requests since the given time, whoever gave them.
    #[must_use]
    pub fn whole_since(&self, since: Instant) -> usize {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|s| s.started >= since && s.outcome == Outcome::Whole).count()
    }

    /// Streams that have begun and are not over.
    #[must_use]
    pub fn midway(&self) -> usize {
        self.midway.load(Ordering::Relaxed)
    }

    /// What was seen since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets every client finish what it is at, and returns everything that was seen.
    pub async fn finish(mut self) -> Vec<Sample> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.take()
    }
}

/// Half to one and a half times the pace, so that clients do not march in step.
fn distance(pace: Option<Duration>) -> Duration {
    pace.map_or(Duration::ZERO, |pace| pace.mul_f64(0.5 + rand::random::<f64>()))
}

/// The pace at which these clients ask for `share` of what is answered when nobody waits, which is measured for a while.
///
/// # Errors
///
/// There is no answer.
pub async fn pace_of(door: &Door, clients: usize, share: f64) -> anyhow::Result<Duration> {
    /// Long enough for a steady queue.
    const MEASURED: Duration = Duration::from_secs(4);
    let load = Load::start(door.clone(), Demand { clients, pace: None }).await?;
    // The first answers come before the queue stands.
    tokio::time::sleep(MEASURED / 4).await;
    drop(load.take());
    let began = Instant::now();
    tokio::time::sleep(MEASURED).await;
    let (answered, took) = (load.take().len(), began.elapsed());
    load.finish().await;
    ensure!(answered > 0, "not one of {clients} clients was answered within {MEASURED:?}");
    Ok(took.mul_f64(clients as f64 / answered as f64 / share))
}
