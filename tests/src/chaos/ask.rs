//! One request as a client makes it: its connection, its tries, and what it saw of the answer.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::load::{InTheMiddle, Midway, Outcome, Sample};
use crate::cluster::net::Netns;

/// No request takes longer, whatever happens to it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How an error event begins, which is no piece of an answer.
const ERROR: &[u8] = b"data: {\"error\"";

/// Where clients connect to, and how patient they are with it. Every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Door {
    ways: Arc<[SocketAddr]>,
    /// Whose network the connection is made in; the host's where there is none.
    netns: Option<Arc<Netns>>,
    /// The usual client asks again twice when its connection is lost.
    tries: usize,
    /// How long a connection may take to be accepted before another one is opened.
    accept: Duration,
    /// How long opening connections may take altogether.
    open: Duration,
    /// How long an accepted connection may be silent before it counts as lost.
    silence: Duration,
}

impl Door {
    /// One address, on which nothing is tried again: what is lost there shows.
    #[must_use]
    pub fn only(address: SocketAddr) -> Self {
        Self { tries: 1, ..Self::any(vec![address]) }
    }

    /// Several addresses for the same, as a Service has them: a client takes any, and another one after a loss.
    #[must_use]
    pub fn any(addresses: Vec<SocketAddr>) -> Self {
        Self {
            ways: addresses.into(),
            netns: None,
            tries: 3,
            accept: PATIENCE,
            open: Duration::ZERO,
            silence: PATIENCE,
        }
    }

    /// A ClusterIP. Kubernetes chooses the pod for each connection, and may choose one that is gone: then nobody accepts.
    #[must_use]
    pub fn service(netns: Arc<Netns>, address: SocketAddr) -> Self {
        Self {
            netns: Some(netns),
            accept: Duration::from_millis(300),
            open: Duration::from_secs(2),
            silence: Duration::from_secs(5),
            ..Self::any(vec![address])
        }
    }

    async fn connect(&self, at: usize) -> io::Result<TcpStream> {
        let address = self.ways[at % self.ways.len()];
        let connect = async {
            match &self.netns {
                None => TcpStream::connect(address).await,
                Some(netns) => netns.connect(address).await,
            }
        };
        in_time(self.accept, connect).await
    }

    /// Opens a connection; one that is not accepted counts in the sample, and another one is opened while there is time.
    async fn enter(&self, at: usize, sample: &mut Sample) -> io::Result<TcpStream> {
        let began = Instant::now();
        loop {
            let attempt = Instant::now();
            match self.connect(at).await {
                Ok(stream) => return Ok(stream),
                Err(error) if began.elapsed() >= self.open => return Err(error),
                Err(_) => sample.unaccepted += 1,
            }
            // A refusal comes at once, and so would the next one.
            let pause = Duration::from_millis(100).saturating_sub(attempt.elapsed());
            tokio::time::sleep(pause).await;
        }
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is asked.
    pub prompt: &'a str,
    /// Length of the answer.
    pub max_tokens: u32,
    /// Whether for a stream.
    pub streams: bool,
    /// The answer where it is known.
    pub expected: Option<&'a str>,
}

/// Asks once, with the tries that the door allows, and leaves the answer's text in `text`.
pub async fn ask(door: &Door, question: Question<'_>, text: &mut String, midway: &Midway) -> Sample {
    let mut sample = Sample::begin(question.streams);
    let began = Instant::now();
    let first = usize::from(rand::random::<u16>());
    // How each try ended, for requests that are lost in the end.
    let mut ends = Vec::new();
    let tries = async {
        for at in first.. {
            let done = exchange(door, at, question, &mut sample, text, midway).await;
            if let Err(error) = &done {
                ends.push(format!("{error:#} after {} ms", began.elapsed().as_millis()));
            }
            match &done {
                Err(error) if at - first + 1 < door.tries && is_severed(error) => {
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
        Ok(Ok(())) => question
            .expected
            .filter(|expected| *expected != text)
            .map(|expected| format!("the answer differs: {text:?} instead of {expected:?}")),
        Ok(Err(_)) => Some(ends.join("; ")),
        Err(_) => Some(format!("no end after {PATIENCE:?}")),
    };
    if let Some(why) = failed {
        sample.outcome = if sample.pieces.is_empty() { Outcome::Lost(why) } else { Outcome::Broken(why) };
    }
    sample
}

/// Whether the connection was refused or lost, rather than an answer bad.
fn is_severed(error: &anyhow::Error) -> bool {
    error.is::<io::Error>() || error.is::<hyper::Error>()
}

async fn exchange(
    door: &Door,
    at: usize,
    question: Question<'_>,
    sample: &mut Sample,
    text: &mut String,
    midway: &Midway,
) -> anyhow::Result<()> {
    let stream = door.enter(at, sample).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = json!({"model": "code", "stream": sample.streams, "temperature": 0,
        "max_tokens": question.max_tokens,
        "messages": [{"role": "user", "content": question.prompt}]});
    let request = Request::post("/v1/chat/completions")
        .header("host", "code")
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{:032x}-0000000000000001-00", sample.trace))
        .body(Full::new(Bytes::from(body.to_string())))?;
    let lost = |error: hyper::Error| io::Error::new(io::ErrorKind::ConnectionReset, error);
    let head = async { sender.send_request(request).await.map_err(lost) };
    let mut response = in_time(door.silence, head).await?;
    let tier = response.headers().get("x-atlas-tier").and_then(|value| value.to_str().ok());
    sample.tier = tier.map(str::to_owned);
    let status = response.status();
    let (mut bytes, mut in_the_middle) = (Vec::new(), None);
    loop {
        let frame = async { response.body_mut().frame().await.transpose().map_err(lost) };
        let Some(frame) = in_time(door.silence, frame).await? else { break };
        if let Ok(data) = frame.into_data() {
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
