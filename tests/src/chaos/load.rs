//! Clients that ask all the time, half of them for streams, and note what they saw.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// No request takes longer, whatever happens to it.
const PATIENCE: Duration = Duration::from_secs(120);
/// What clients ask; every answer is known, so that a wrong one shows.
const PROMPTS: [&str; 4] =
    ["Count from one to twenty.", "Write hello world in Rust.", "Name the planets.", "What is a patch?"];
/// Length of a stream: long enough to be caught in the middle.
const STREAM_TOKENS: u32 = 24;
/// Length of a whole answer.
const WHOLE_TOKENS: u32 = 4;

/// How an error event begins, which is no piece of an answer.
const ERROR: &[u8] = b"data: {\"error\"";

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
    /// From the request to the first piece of its answer.
    #[must_use]
    pub fn first_after(&self) -> Option<Duration> {
        Some(self.pieces.first()?.duration_since(self.started))
    }
}

/// What one answer must be.
type Expected = Arc<Vec<[String; 2]>>;

/// What a client may connect to. With several, it starts with any and tries again twice when one is gone, as clients of
/// a Service do by default; with one, nothing is tried again.
type Gateways = Arc<[SocketAddr]>;

/// Tries of a client that has several gateways.
const TRIES: usize = 3;

/// Clients at work.
pub struct Load {
    clients: JoinSet<()>,
    stop: CancellationToken,
    samples: Arc<Mutex<Vec<Sample>>>,
    midway: Midway,
}

/// Streams that have begun and are not over.
type Midway = Arc<AtomicUsize>;

/// A stream in its middle.
struct InTheMiddle(Midway);

impl InTheMiddle {
    fn begin(midway: &Midway) -> Self {
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
    /// The gateway does not answer without any fault.
    pub async fn start(gateways: Vec<SocketAddr>, clients: usize) -> anyhow::Result<Self> {
        let gateways: Gateways = gateways.into();
        let mut expected = Vec::new();
        for prompt in PROMPTS {
            let mut both = [String::new(), String::new()];
            for (streams, text) in [false, true].into_iter().zip(&mut both) {
                let sample = ask(&gateways, prompt, streams, text, None, &Midway::default()).await;
                ensure!(sample.outcome == Outcome::Whole, "without any fault: {:?}", sample.outcome);
            }
            expected.push(both);
        }
        let (expected, samples): (Expected, Arc<Mutex<Vec<Sample>>>) = (Arc::new(expected), Arc::default());
        let (stop, midway) = (CancellationToken::new(), Midway::default());
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (stop, samples, expected) = (stop.clone(), Arc::clone(&samples), Arc::clone(&expected));
            let (midway, gateways) = (Arc::clone(&midway), Arc::clone(&gateways));
            tasks.spawn(async move {
                let mut number = client / 2;
                while !stop.is_cancelled() {
                    let (at, streams) = (number % PROMPTS.len(), client % 2 == 0);
                    let wanted = &expected[at][usize::from(streams)];
                    let sample =
                        ask(&gateways, PROMPTS[at], streams, &mut String::new(), Some(wanted), &midway).await;
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                    number += 1;
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

async fn ask(
    gateways: &[SocketAddr],
    prompt: &str,
    streams: bool,
    text: &mut String,
    expected: Option<&String>,
    midway: &Midway,
) -> Sample {
    let started = Instant::now();
    let mut sample = Sample {
        started,
        pieces: Vec::new(),
        ended: started,
        streams,
        tier: None,
        severed: 0,
        outcome: Outcome::Whole,
    };
    let first = usize::from(rand::random::<u16>());
    let tries = async {
        for at in first.. {
            let gateway = gateways[at % gateways.len()];
            let done = exchange(gateway, prompt, &mut sample, text, midway).await;
            let may_retry = gateways.len() > 1 && at - first + 1 < TRIES;
            match &done {
                Err(error) if may_retry && is_severed(error) => {
                    sample.severed += 1;
                    sample.pieces.clear();
                    text.clear();
                }
                _ => return done,
            }
        }
        Ok(())
    };
    let asked = tokio::time::timeout(PATIENCE, tries).await;
    sample.ended = Instant::now();
    let failed = match asked {
        Ok(Ok(())) => expected
            .filter(|expected| *expected != text)
            .map(|expected| format!("the answer differs: {text:?} instead of {expected:?}")),
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("no end after {PATIENCE:?}")),
    };
    if let Some(why) = failed {
        sample.outcome = if sample.pieces.is_empty() { Outcome::Lost(why) } else { Outcome::Broken(why) };
    }
    sample
}

/// Whether the connection was refused or lost, rather than an answer bad.
fn is_severed(error: &anyhow::Error) -> bool {
    error.is::<std::io::Error>() || error.is::<hyper::Error>()
}

async fn exchange(
    gateway: SocketAddr,
    prompt: &str,
    sample: &mut Sample,
    text: &mut String,
    midway: &Midway,
) -> anyhow::Result<()> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = json!({"model": "code", "stream": sample.streams, "temperature": 0,
        "max_tokens": if sample.streams { STREAM_TOKENS } else { WHOLE_TOKENS },
        "messages": [{"role": "user", "content": prompt}]});
    let request = Request::post("/v1/chat/completions")
        .header("host", "code")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let mut response = sender.send_request(request).await?;
    let tier = response.headers().get("x-atlas-tier").and_then(|value| value.to_str().ok());
    sample.tier = tier.map(str::to_owned);
    let status = response.status();
    let (mut bytes, mut in_the_middle) = (Vec::new(), None);
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame?.into_data() {
            if status == StatusCode::OK
                && sample.streams
                && data.starts_with(b"data: {\"")
                && !data.starts_with(ERROR)
            {
                sample.pieces.push(Instant::now());
                in_the_middle.get_or_insert_with(|| InTheMiddle::begin(midway));
            }
            bytes.extend_from_slice(&data);
        }
    }
    drop(in_the_middle);
    driver.abort();
    ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&bytes));
    let answer = String::from_utf8(bytes)?;
    if !sample.streams {
        sample.pieces.push(Instant::now());
        let answer: Value = serde_json::from_str(&answer)?;
        let content = answer["choices"][0]["message"]["content"].as_str();
        *text = content.context("an answer without content")?.to_owned();
        return Ok(());
    }
    for data in answer.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        if data == "[DONE]" {
            return Ok(());
        }
        let event: Value = serde_json::from_str(data)?;
        ensure!(event["error"].is_null(), "{event}");
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    bail!("the stream ended without its end")
}
