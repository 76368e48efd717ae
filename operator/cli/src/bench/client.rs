//! One streamed request, and when each part of its answer came.

use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde::Deserialize;
use serde_json::json;

use crate::{args::BenchArgs, error::CliError};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What one answer took.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// From the request to the first token.
    pub first_token: Duration,
    /// Between tokens after the first.
    pub gaps: Vec<Duration>,
    /// From the request to the end.
    pub total: Duration,
    /// Tokens, as the server counts them where it does.
    pub tokens: u64,
    /// The tier that answered, where the gateway says.
    pub tier: Option<String>,
}

/// Asks one URL again and again.
pub struct Asker {
    client: Client,
    base: String,
    key: Option<String>,
    prompt: String,
    max_tokens: u32,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<ModelId>,
}

#[derive(Deserialize)]
struct ModelId {
    id: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
}

impl Asker {
    pub fn new(args: &BenchArgs) -> Result<Self, CliError> {
        // One provider for the process; a second call finds the first one's in place.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(TIMEOUT).build().map_err(CliError::HttpClient)?;
        Ok(Self {
            client,
            base: args.url.trim_end_matches('/').to_owned(),
            key: args.api_key.clone(),
            prompt: args.prompt.clone(),
            max_tokens: args.max_tokens,
        })
    }

    /// The model that was named, or the only one that there is.
    pub async fn find_model(&self, named: Option<&str>) -> Result<String, CliError> {
        if let Some(named) = named {
            return Ok(named.to_owned());
        }
        let url = format!("{}/models", self.base);
        let failed = |source| CliError::Http { url: url.clone(), source };
        let response = self.with_key(self.client.get(&url)).send().await.map_err(failed)?;
        let models: Models = response.error_for_status().map_err(failed)?.json().await.map_err(failed)?;
        models.data.into_iter().next().map(|model| model.id).ok_or_else(|| CliError::NotFound {
            what: format!("a model at {}", self.base),
            hint: ": name one with --model".to_owned(),
        })
    }

    /// Asks once. Every request begins differently, so that no cache of prompts answers for the card.
    pub async fn ask(&self, model: &str, number: usize) -> Result<Sample, String> {
        let body = json!({
            "model": model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "messages": [{"role": "user", "content": format!("({number}) {}", self.prompt)}],
        });
        let begun = Instant::now();
        let request = self.with_key(self.client.post(format!("{}/chat/completions", self.base)).json(&body));
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        if !status.is_success() {
            let said = response.text().await.unwrap_or_default();
            return Err(format!("{status}: {}", said.chars().take(200).collect::<String>()));
        }
        read_stream(response, begun).await
    }

    fn with_key(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

async fn read_stream(mut response: Response, begun: Instant) -> Result<Sample, String> {
    let tier = response.headers().get("x-atlas-tier").and_then(|tier| tier.to_str().ok()).map(str::to_owned);
    let mut buffer = Vec::new();
    let mut times = Vec::new();
    let mut counted = None;
    while let Some(bytes) = response.chunk().await.map_err(|error| error.to_string())? {
        buffer.extend_from_slice(&bytes);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(data) = line.trim().strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                continue;
            }
            let chunk: Chunk = serde_json::from_str(data).map_err(|error| format!("{error} in {data}"))?;
            if let Some(error) = chunk.error {
                return Err(error.to_string());
            }
            counted = chunk.usage.map(|usage| usage.completion_tokens).or(counted);
            let has_text = |choice: &Choice| {
                choice
                    .delta
                    .as_ref()
                    .and_then(|delta| delta.content.as_ref())
                    .is_some_and(|text| !text.is_empty())
            };
            if chunk.choices.iter().any(has_text) {
                times.push(begun.elapsed());
            }
        }
    }
    let first_token = *times.first().ok_or("the answer had no text")?;
    Ok(Sample {
        first_token,
        gaps: times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect(),
        total: begun.elapsed(),
        tokens: counted.unwrap_or(times.len() as u64),
        tier,
    })
}
