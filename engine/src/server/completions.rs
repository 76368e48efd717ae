//! `/v1/completions`: a string goes on.

use super::fields::Fields;
use super::generate::Generation;
use super::openai::ApiError;
use super::reply::{Format, InFlight, reply};
use super::{App, Engine};
use axum::response::Response;
use serde_json::{Value, json};

/// The completion API's objects.
struct Completion;

impl Format for Completion {
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn choice(text: &str, finish: &str) -> Value {
        json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish})
    }

    fn chunk_choice(text: &str, finish: Option<&str>, _first: bool) -> Value {
        json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish})
    }
}

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers a completion request.
pub async fn answer(
    app: &App,
    engine: &Engine,
    fields: Fields,
    in_flight: InFlight,
) -> Result<Response, ApiError> {
    let common = fields.common(Some(DEFAULT_MAX_TOKENS))?;
    for feature in ["echo", "suffix"] {
        fields.refuse(feature, "leave it out")?;
    }
    if let Some(best_of) = fields.get("best_of").filter(|best_of| best_of.as_u64() != Some(1)) {
        return Err(ApiError::invalid(
            Some("best_of"),
            format!("best_of is {best_of}, and only 1 is supported"),
        ));
    }
    let prompt = match fields.get("prompt") {
        Some(Value::String(prompt)) => prompt.clone(),
        Some(Value::Array(prompts)) => match prompts.as_slice() {
            [Value::String(prompt)] => prompt.clone(),
            _ => {
                return Err(ApiError::invalid(
                    Some("prompt"),
                    "prompt must be one string; token ids and several prompts are not supported",
                ));
            }
        },
        _ => return Err(ApiError::invalid(Some("prompt"), "prompt must be a string")),
    };
    let generation = Generation::start(app, engine, prompt, "prompt", &common).await?;
    reply::<Completion>(generation, common, in_flight).await
}
