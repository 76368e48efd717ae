//! `/tokenize` and `/detokenize`: token ids of a text or of a conversation, and back.

use super::Engine;
use super::chat::ChatRequest;
use super::encode::{Front, encode_any};
use super::fields::Fields;
use super::openai::ApiError;
use serde_json::{Map, Value, json};

/// Ids of `prompt` or of `messages`, with the model's limit.
///
/// # Errors
/// Neither is there, or the conversation cannot be written as a prompt.
pub async fn tokenize(engine: &Engine, fields: &Fields) -> Result<Value, ApiError> {
    let ids = match fields.string("prompt")? {
        Some(text) => {
            let as_prompt = fields.bool("add_special_tokens")?.unwrap_or(true);
            let front = if as_prompt { Front::AsPrompt } else { Front::Bare };
            encode_any(engine, text.to_owned(), front, "prompt").await?
        }
        None if fields.get("messages").is_some() => {
            let prompt = ChatRequest::read(&with_model(fields))?.prompt(engine)?;
            encode_any(engine, prompt, Front::AsPrompt, "messages").await?
        }
        None => return Err(fields.invalid("prompt", "is missing: give prompt or messages")),
    };
    let mut answer =
        json!({"tokens": ids, "count": ids.len(), "max_model_len": engine.limits.context_tokens});
    if fields.bool("return_token_strs")?.unwrap_or(false) {
        answer["token_strs"] = ids.iter().map(|id| engine.tokenizer.token_text(*id)).collect();
    }
    Ok(answer)
}

/// The text of `tokens`.
///
/// # Errors
/// There are none, or one is outside the vocabulary.
pub fn detokenize(engine: &Engine, fields: &Fields) -> Result<Value, ApiError> {
    let ids = fields.required("tokens", fields.token_ids("tokens")?, "an array of token ids")?;
    let vocabulary = engine.limits.vocabulary;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(
            fields.invalid("tokens", format!("names token {id}, and the vocabulary has {vocabulary} tokens"))
        );
    }
    Ok(json!({"prompt": engine.tokenizer.decode(&ids)}))
}

/// A chat request needs a model id, counting tokens does not.
pub fn with_model(fields: &Fields) -> Fields {
    let mut values: Map<String, Value> = fields.clone().into_values();
    values.entry("model").or_insert_with(|| "".into());
    Fields::new(values)
}
