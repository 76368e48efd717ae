//! A client of the Service URL: one chat completion, or a steady load of them.
//!
//! It is deliberately plain: no retries and no connection tricks, so that what it loses, users would lose.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// A finished answer and what served it.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// `x-atlas-tier`.
    pub tier: String,
    /// `x-atlas-model`.
    pub model: String,
    /// The generated text.
    pub text: String,
    /// Milliseconds to the first token.
    pub first_token_ms: u64,
    /// Milliseconds to the last.
    pub total_ms: u64,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The connection failed or broke.
    #[error("{}", chain(.0))]
    Transport(#[from] reqwest::Error),
    /// The server refused.
    #[error("HTTP {status}: {body}")]
    Refused {
        /// Status code.
        status: u16,
        /// Start of the body.
        body: String,
    },
    /// The stream ended with an error event, or without its end.
    #[error("the stream broke: {0}")]
    Broken(String),
}

/// An error with its causes on one line: reqwest's own text leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// A client of one model behind one base URL (`http://HOST:PORT/v1`).
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
}

impl Client {
    /// Makes a client of `model` at `base`.
    ///
    /// # Errors
    ///
    /// The HTTP client cannot be built.
    pub fn new(base: &str, model: &str) -> Result<Self, reqwest::Error> {
        // The client wants a TLS provider even for plain HTTP; one that is installed already serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).no_proxy().build()?;
        Ok(Self { http, base: base.to_owned(), model: model.to_owned() })
    }

    /// The base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Streams one chat completion at temperature 0 and hands each piece of text to `on_text`.
    ///
    /// # Errors
    ///
    /// No answer, a refusal, or a stream that broke.
    pub async fn chat(
        &self,
        prompt: &str,
        max_tokens: u32,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, RequestError> {
        let began = Instant::now();
        let body = json!({
            "model": self.model, "stream": true, "temperature": 0, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": prompt}],
        });
        let response = self.http.post(format!("{}/chat/completions", self.base)).json(&body).send().await?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (tier, model) = (header("x-atlas-tier"), header("x-atlas-model"));
        let status = response.status().as_u16();
        if status != 200 {
            let mut body = response.text().await?;
            body.truncate(400);
            return Err(RequestError::Refused { status, body });
        }
        let mut text = String::new();
        let mut first_token_ms = None;
        let mut pending = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            pending.extend_from_slice(&chunk?);
            while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event);
                let Some(data) = event.trim().strip_prefix("data:").map(str::trim) else { continue };
                if data == "[DONE]" {
                    let total_ms = millis(began);
                    let first_token_ms = first_token_ms.unwrap_or(total_ms);
                    return Ok(Answer { tier, model, text, first_token_ms, total_ms });
                }
                let value: Value =
                    serde_json::from_str(data).map_err(|e| RequestError::Broken(format!("{e} in {data}")))?;
                if let Some(error) = value.get("error") {
                    return Err(RequestError::Broken(error.to_string()));
                }
                if let Some(piece) =
                    value["choices"][0]["delta"]["content"].as_str().filter(|p| !p.is_empty())
                {
                    first_token_ms.get_or_insert_with(|| millis(began));
                    text.push_str(piece);
                    on_text(piece);
                }
            }
        }
        Err(RequestError::Broken("it ended without [DONE]".to_owned()))
    }
}

/// What a load of short requests came to.
#[derive(Debug, Default, Serialize)]
pub struct LoadResult {
    /// Requests that got their whole answer.
    pub answered: u64,
    /// The others, with what the client saw.
    pub lost: Vec<String>,
    /// When the first answer from each tier came, and how many there were: (tier, answers).
    pub by_tier: Vec<(String, u64)>,
}

/// A steady load of short requests, each on the heels of the one before.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<LoadResult>,
}

impl Load {
    /// Starts `clients` clients that ask for four tokens at a time.
    #[must_use]
    pub fn start(client: &Client, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for number in 0..clients {
            let (client, stop) = (client.clone(), stop.clone());
            set.spawn(async move {
                let mut result = LoadResult::default();
                while !stop.load(Ordering::Relaxed) {
                    match client.chat(&format!("Say the number {number}."), 4, |_| {}).await {
                        Ok(answer) => {
                            result.answered += 1;
                            count(&mut result.by_tier, &answer.tier, 1);
                        }
                        Err(error) => result.lost.push(error.to_string()),
                    }
                }
                result
            });
        }
        Self { stop, clients: set }
    }

    /// Ends the load after the requests that run, and adds up what came of it.
    pub async fn stop(mut self) -> LoadResult {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = LoadResult::default();
        while let Some(joined) = self.clients.join_next().await {
            match joined {
                Ok(result) => {
                    sum.answered += result.answered;
                    sum.lost.extend(result.lost);
                    for (tier, answers) in result.by_tier {
                        count(&mut sum.by_tier, &tier, answers);
                    }
                }
                Err(error) => sum.lost.push(format!("a load client ended: {error}")),
            }
        }
        sum
    }
}

fn count(by_tier: &mut Vec<(String, u64)>, tier: &str, answers: u64) {
    match by_tier.iter_mut().find(|(name, _)| name == tier) {
        Some((_, sum)) => *sum += answers,
        None => by_tier.push((tier.to_owned(), answers)),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
