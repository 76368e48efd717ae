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
    /// The trace that it began: logs of gateways and engines name it.
    pub trace: u128,
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
            trace: rand::random(),
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

/// Usual length of a stream: long enough to be caught in the middle.
pub const STREAM_TOKENS: u32 = 24;
/// Length of a whole answer.
const WHOLE_TOKENS: u32 = 4;

/// What one answer must be.
type Expected = Arc<Vec<[String; 2]>>;

/// How many clients ask, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Clients.
    pub clients: usize,
    /// Distance of a client's requests on average; none where each follows on the heels of the one before.
    pub pace: Option<Duration>,
    /// Tokens of a stream.
    pub stream_tokens: u32,
}

impl Demand {
    /// So many clients, each with a request on the heels of the one before.
    #[must_use]
    pub const fn without_pause(clients: usize, stream_tokens: u32) -> Self {
        Self { clients, pace: None, stream_tokens }
    }

    const fn tokens(self, streams: bool) -> u32 {
        if streams { self.stream_tokens } else { WHOLE_TOKENS }
    }
}

/// Clients at work.
pub struct Load {
    clients: JoinSet<()>,
    /// Nothing more is asked.
    stop: CancellationToken,
    /// Nothing more is waited for.
    give_up: CancellationToken,
    samples: Arc<Mutex<Vec<Sample>>>,
    midway: Midway,
}

/// How long requests may take that are under way when no more are made; they come to rest within a few seconds.
const LAST_WAIT: Duration = Duration::from_secs(60);

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
                let question =
                    Question { prompt, max_tokens: demand.tokens(streams), streams, expected: None };
                let sample = ask(&door, question, text, &Midway::default()).await;
                ensure!(sample.outcome == Outcome::Whole, "without any fault: {:?}", sample.outcome);
            }
            expected.push(both);
        }
        Ok(Self::begin(&door, demand, &Arc::new(expected)))
    }

    /// Starts the clients, which know the answers.
    fn begin(door: &Door, demand: Demand, expected: &Expected) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            samples: Arc::default(),
            midway: Midway::default(),
        };
        for number in 0..demand.clients {
            let client = Client {
                number,
                door: door.clone(),
                demand,
                expected: Arc::clone(expected),
                stop: load.stop.clone(),
                give_up: load.give_up.clone(),
                samples: Arc::clone(&load.samples),
                midway: Arc::clone(&load.midway),
            };
            load.clients.spawn(client.run());
        }
        load
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

    /// Lets every client finish what it is at, and returns everything that was seen. It ends however the requests do: what
    /// is not over after a while is lost.
    pub async fn finish(self) -> Vec<Sample> {
        self.finish_within(LAST_WAIT).await
    }

    async fn finish_within(mut self, limit: Duration) -> Vec<Sample> {
        self.stop.cancel();
        let over = async { while self.clients.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, over).await.is_err() {
            self.give_up.cancel();
            while self.clients.join_next().await.is_some() {}
        }
        self.take()
    }
}

/// One client.
struct Client {
    number: usize,
    door: Door,
    demand: Demand,
    expected: Expected,
    stop: CancellationToken,
    give_up: CancellationToken,
    samples: Arc<Mutex<Vec<Sample>>>,
    midway: Midway,
}

impl Client {
    async fn run(self) {
        let mut number = self.number / 2;
        while !self.stop.is_cancelled() {
            let began = Instant::now();
            let (at, streams) = (number % PROMPTS.len(), self.number.is_multiple_of(2));
            let sample = self.ask(at, streams).await;
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            number += 1;
            let until = began + distance(self.demand.pace);
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn ask(&self, at: usize, streams: bool) -> Sample {
        let expected = self.expected[at][usize::from(streams)].as_str();
        let max_tokens = self.demand.tokens(streams);
        let question = Question { prompt: PROMPTS[at], max_tokens, streams, expected: Some(expected) };
        let (begun, mut text) = (Sample::begin(streams), String::new());
        tokio::select! {
            biased;
            sample = ask(&self.door, question, &mut text, &self.midway) => sample,
            () = self.give_up.cancelled() => Sample {
                ended: Instant::now(),
                outcome: Outcome::Lost(format!("no end long after everybody stopped asking: {:?}", begun.started.elapsed())),
                ..begun
            },
        }
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
pub async fn pace_of(door: &Door, unpaced: Demand, share: f64) -> anyhow::Result<Duration> {
    /// Long enough for a steady queue.
    const MEASURED: Duration = Duration::from_secs(4);
    let clients = unpaced.clients;
    let load = Load::start(door.clone(), Demand { pace: None, ..unpaced }).await?;
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_load_ends_although_nobody_answers_and_says_what_is_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Door::only(listener.local_addr().unwrap());
        let answers = PROMPTS.map(|_| [String::new(), String::new()]).to_vec();
        let load = Load::begin(&door, Demand::without_pause(4, STREAM_TOKENS), &Arc::new(answers));
        // Each client has its connection, and waits for an answer on it.
        let mut accepted = Vec::new();
        for _ in 0..4 {
            accepted.push(listener.accept().await.unwrap());
        }
        let samples = load.finish_within(Duration::from_millis(10)).await;
        assert_eq!(samples.len(), 4);
        assert!(samples.iter().all(|sample| matches!(sample.outcome, Outcome::Lost(_))), "{samples:?}");
    }
}
