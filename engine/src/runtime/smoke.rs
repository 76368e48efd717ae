//! A short generation before the engine is ready: whether the device computes, and the same thing twice.
//!
//! An engine that was started again after its card failed must not take requests that the card fails again for.
//! What the right tokens are depends on the model, so it is not asked; the self-test checks kernels against references.

use crate::model::{Model, ModelError};
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::{DeviceError, SequenceId, StepPlan, TokenId};

/// Tokens of the prompt; with what is generated they fit one block.
const PROMPT: std::ops::Range<TokenId> = 1..5;
/// Tokens to generate.
const TOKENS: usize = 2;

/// Generates twice, in the first and in the last block of the cache, and compares.
///
/// # Errors
/// The device fails or its answers differ, or the model has no finite answer.
pub fn check(model: &mut Model, blocks: u32) -> Result<(), ModelError> {
    let first = generate(model, 0)?;
    let last = generate(model, blocks.saturating_sub(1))?;
    match (first, last) {
        (Some(first), Some(last)) if first == last => Ok(()),
        (None, None) => Err(ModelError::NotFinite),
        (first, last) => {
            let reason = format!("the same prompt gave {first:?} and then {last:?}");
            Err(DeviceError::Unsound { reason }.into())
        }
    }
}

/// The most likely tokens; `None` where a logit is no finite number.
fn generate(model: &mut Model, block: u32) -> Result<Option<Vec<TokenId>>, ModelError> {
    let vocabulary = TokenId::try_from(model.config().vocabulary).unwrap_or(TokenId::MAX);
    let mut tokens: Vec<TokenId> = PROMPT.map(|token| token.min(vocabulary.saturating_sub(1))).collect();
    let (mut start, mut drawn) = (0, Vec::with_capacity(TOKENS));
    while drawn.len() < TOKENS {
        let next = tokens.len();
        let chunk = Chunk {
            sequence: SequenceId(u64::MAX),
            start,
            tokens,
            drafted: 0,
            logit_rows: 1,
            prompt_rows: 0,
            hidden_rows: 0,
            blocks: vec![block],
        };
        start += next;
        let logits = model.run(&StepPlan { copies: Vec::new(), chunks: vec![chunk] })?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Ok(None);
        }
        let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        // There are logits, and as many as token ids at most.
        let best = best.and_then(|(token, _)| TokenId::try_from(token).ok()).unwrap_or_default();
        drawn.push(best);
        tokens = vec![best];
    }
    Ok(Some(drawn))
}
