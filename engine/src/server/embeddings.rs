//! `/v1/embeddings`: texts as vectors, from the model's last hidden states.

use super::encode::{Front, encode};
use super::fields::{Fields, token_ids};
use super::openai::ApiError;
use super::reply::Origin;
use super::trace::{Outcome, Recording, Timeline};
use super::{App, Engine};
use crate::runtime::Pooling;
use atlas_engine_core::TokenId;
use atlas_engine_core::admission::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Texts of one request, at most.
const MAX_INPUTS: usize = 128;

/// Answers an embedding request.
///
/// # Errors
/// A field is wrong, a text does not fit, the queue is full, or the time is over.
pub async fn answer(app: &App, engine: &Engine, fields: &Fields, origin: Origin) -> Result<Value, ApiError> {
    let model = fields.required("model", fields.string("model")?, "the model's id")?;
    let as_base64 = match fields.string("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(fields.invalid("encoding_format", "must be float or base64")),
    };
    let pooling = match fields.string("pooling")? {
        None | Some("mean") => Pooling::Mean,
        Some("last") => Pooling::Last,
        Some(_) => return Err(fields.invalid("pooling", "must be mean or last")),
    };
    fields.refuse("dimensions", "leave it out: vectors have the model's own width")?;
    let inputs = inputs(engine, fields.get("input")).await?;
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    app.metrics.prompt_tokens.inc_by(tokens as u64);
    let mut recording = Recording {
        timeline: Timeline::new(origin.trace, "embeddings", model.to_owned(), origin.clock, origin.arrived),
        outcome: Outcome { end: "client", prompt_tokens: tokens, cached_tokens: 0, completion_tokens: 0 },
        spans: app.spans.clone(),
    };
    let vectors = vectors(engine, inputs, pooling, &mut recording.timeline);
    let vectors = tokio::time::timeout(app.request_timeout, vectors).await;
    recording.outcome.end = match &vectors {
        Ok(Ok(_)) => "answered",
        Ok(Err(_)) => "engine",
        Err(_) => "timeout",
    };
    let vectors = vectors.map_err(|_| ApiError::timeout(app.request_timeout.as_secs()))??;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let embedding = if as_base64 { Value::String(base64(&vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json!({"object": "list", "data": data.collect::<Vec<_>>(), "model": model, "usage": usage}))
}

/// One after the other: the worker embeds one at a time.
async fn vectors(
    engine: &Engine,
    inputs: Vec<Vec<TokenId>>,
    pooling: Pooling,
    timeline: &mut Timeline,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let mut vectors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let vector = engine.handle.embed(input, pooling).map_err(|refusal| match refusal {
            Refusal::QueueFull { waiting } => ApiError::queue_full(waiting),
            Refusal::NeverFits { .. } => ApiError::invalid(Some("input"), refusal.to_string()),
        })?;
        let embedded = vector.await.map_err(|_| ApiError::internal("the model failed while embedding"))?;
        timeline.begin(embedded.began);
        vectors.push(normalized(embedded.vector));
    }
    Ok(vectors)
}

/// The token ids of each text: a string, token ids, or an array of either.
async fn inputs(engine: &Engine, value: Option<&Value>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let wrong = |text: String| ApiError::invalid(Some("input"), text);
    let forms = || wrong("input must be a string, an array of strings, or token ids".to_owned());
    let list = match value {
        Some(Value::Array(list)) if list.iter().all(Value::is_number) => vec![Value::Array(list.clone())],
        Some(Value::Array(list)) => list.clone(),
        Some(text @ Value::String(_)) => vec![text.clone()],
        _ => return Err(forms()),
    };
    if list.is_empty() || list.len() > MAX_INPUTS {
        return Err(wrong(format!("input has {} texts, and 1 to {MAX_INPUTS} are allowed", list.len())));
    }
    let texts = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut encoded = encode(engine, texts, Front::AsPrompt, "input").await?.into_iter();
    let limits = &engine.limits;
    list.iter()
        .enumerate()
        .map(|(index, value)| {
            let ids = if value.is_string() { encoded.next() } else { token_ids(value) };
            let ids = ids.ok_or_else(forms)?;
            if ids.is_empty() || ids.len() > limits.context_tokens {
                let (found, most) = (ids.len(), limits.context_tokens);
                return Err(wrong(format!("input {index} has {found} tokens, and 1 to {most} are allowed")));
            }
            match ids.iter().find(|id| **id as usize >= limits.vocabulary) {
                Some(id) => {
                    Err(wrong(format!("input {index} names token {id}, which is not in the vocabulary")))
                }
                None => Ok(ids),
            }
        })
        .collect()
}

/// The same direction with length 1, as OpenAI's are.
fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

/// Little-endian f32 in base64, the form that OpenAI's clients ask for.
fn base64(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_written_as_openai_writes_them() {
        for (vector, expected) in [
            (&[][..], ""),
            (&[1.0], "AACAPw=="),
            (&[1.0, -2.0], "AACAPwAAAMA="),
            (&[0.5, 0.25, 1e9], "AAAAPwAAgD4oa25O"),
        ] {
            assert_eq!(base64(vector), expected);
        }
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0]), [0.0]);
    }
}
