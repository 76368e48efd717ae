//! From texts to token ids, off the threads that serve others, and within bounds: the tokenizer takes up to 300 bytes
//! of memory and 3 µs for a token, so what nobody could answer is refused before it is cut into tokens as a whole, and
//! of long texts one is cut at a time.

use super::Engine;
use super::openai::ApiError;
use crate::text::TextTokenizer;
use crate::text::tokenizer::TokenizerError;
use atlas_engine_core::{RequestError, TokenId};
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A text of fewer bytes for each token of the context is cut without a look at whether it could fit.
const BYTES_A_TOKEN: usize = 8;
/// Bytes of the pieces that are looked at. A cut within a text changes a few tokens on either side of it.
const PIECE_BYTES: usize = 16 << 10;
/// Texts from here on are cut one at a time.
const LONG_BYTES: usize = 64 << 10;
/// Texts that need not fit the context may be so long, or as long as [`BYTES_A_TOKEN`] lets them.
const LOOSE_BYTES: usize = 1 << 20;

/// The tokenizer, and whose turn it is with something long.
#[derive(Clone)]
pub struct Encoder {
    tokenizer: Arc<TextTokenizer>,
    long: Arc<Semaphore>,
}

impl Encoder {
    /// An encoder that is idle.
    pub fn new(tokenizer: Arc<TextTokenizer>) -> Self {
        Self { tokenizer, long: Arc::new(Semaphore::new(1)) }
    }

    /// Waits for its turn with work on something long. The turn goes with the work, which nobody stops when its client
    /// leaves.
    ///
    /// # Errors
    /// None: turns are never taken away.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let turn = self.long.clone().acquire_owned().await;
        turn.map_err(|error| ApiError::internal(error.to_string()))
    }

    async fn encode<T: Send + 'static>(
        &self,
        bytes: usize,
        encode: impl FnOnce(&TextTokenizer) -> Result<T, TokenizerError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let internal = |error: &dyn std::error::Error| ApiError::internal(error.to_string());
        let turn = if bytes >= LONG_BYTES { Some(self.turn().await?) } else { None };
        let tokenizer = self.tokenizer.clone();
        let encode = move || {
            let encoded = encode(&tokenizer);
            drop(turn);
            encoded
        };
        let encoded = tokio::task::spawn_blocking(encode).await.map_err(|error| internal(&error))?;
        encoded.map_err(|error| internal(&error))
    }
}

/// How texts become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// With the token in front that prompts of the model begin with, if any.
    AsPrompt,
    /// As they stand.
    Bare,
}

impl Front {
    fn encode(self, tokenizer: &TextTokenizer, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        match self {
            Self::AsPrompt => tokenizer.encode_prompt(text),
            Self::Bare => tokenizer.encode(text),
        }
    }
}

/// Ids of texts that must each fit the context; `param` names their field.
///
/// # Errors
/// One has more than twice the context's tokens, or the tokenizer fails. A text that is nearer to the limit is not
/// refused here: its exact count is told where it is weighed with its answer.
pub async fn encode(
    engine: &Engine,
    texts: Vec<String>,
    front: Front,
    param: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let context = engine.limits.context_tokens;
    let bytes = texts.iter().map(String::len).sum();
    let encode = move |tokenizer: &TextTokenizer| {
        let mut encoded = Vec::with_capacity(texts.len());
        for text in &texts {
            let long = text.len() > context.saturating_mul(BYTES_A_TOKEN);
            if long && exceeds(tokenizer, text, context.saturating_mul(2))? {
                return Ok(ControlFlow::Break(text.len()));
            }
            encoded.push(front.encode(tokenizer, text)?);
        }
        Ok(ControlFlow::Continue(encoded))
    };
    match engine.encoder.encode(bytes, encode).await? {
        ControlFlow::Continue(encoded) => Ok(encoded),
        ControlFlow::Break(bytes) => {
            Err(ApiError::from_request(&RequestError::FarTooLong { context, bytes }, param))
        }
    }
}

/// Ids of a text that is only counted or shown, and may exceed the context; `param` names its field.
///
/// # Errors
/// It is longer than anything that could be asked, or the tokenizer fails.
pub async fn encode_any(
    engine: &Engine,
    text: String,
    front: Front,
    param: &str,
) -> Result<Vec<TokenId>, ApiError> {
    let most = LOOSE_BYTES.max(engine.limits.context_tokens.saturating_mul(BYTES_A_TOKEN));
    if text.len() > most {
        let message =
            format!("{param} has {} bytes of text, and {most} are cut into tokens at a time", text.len());
        return Err(ApiError::invalid(Some(param), message));
    }
    engine.encoder.encode(text.len(), move |tokenizer| front.encode(tokenizer, &text)).await
}

/// Whether a text has more tokens than this, by its pieces, as far as it takes to know.
fn exceeds(tokenizer: &TextTokenizer, text: &str, tokens: usize) -> Result<bool, TokenizerError> {
    let (mut rest, mut count) = (text, 0);
    while !rest.is_empty() && count <= tokens {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        count += tokenizer.encode(piece)?.len();
        rest = after;
    }
    Ok(count > tokens)
}
