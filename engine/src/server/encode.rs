//! From texts to token ids, off the threads that serve others.

use super::Engine;
use super::openai::ApiError;
use atlas_engine_core::TokenId;

/// Ids of prompts: one of megabytes takes a while.
///
/// # Errors
/// The tokenizer fails.
pub async fn encode(engine: &Engine, texts: Vec<String>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let tokenizer = engine.tokenizer.clone();
    let encode =
        move || texts.iter().map(|text| tokenizer.encode_prompt(text)).collect::<Result<Vec<_>, _>>();
    let encoded = tokio::task::spawn_blocking(encode).await;
    let encoded = encoded.map_err(|error| ApiError::internal(error.to_string()))?;
    encoded.map_err(|error| ApiError::internal(error.to_string()))
}
