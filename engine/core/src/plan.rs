//! The work of one step, as data.

use crate::block_pool::BlockId;
use crate::sequence::{SequenceId, TokenId};

/// Consecutive tokens of one sequence, to be computed in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whose tokens they are.
    pub sequence: SequenceId,
    /// Position of the first one.
    pub start: usize,
    /// The tokens; never empty. The last `drafted` of them are guesses.
    pub tokens: Vec<TokenId>,
    /// Guessed tokens at the end.
    pub drafted: usize,
    /// Rows at the end whose logits are wanted: those of `prompt_rows`, and where the sequence has no more tokens that
    /// were not computed, the last token's and those of its drafts.
    pub logit_rows: usize,
    /// The first of these rows, as many as are for log-probabilities of the prompt's own tokens.
    pub prompt_rows: usize,
    /// Rows at the end whose hidden states are wanted; for embeddings.
    pub hidden_rows: usize,
    /// The sequence's blocks, from position 0 to the chunk's end.
    pub blocks: Vec<BlockId>,
}

impl Chunk {
    /// Rows at the end that tokens are drawn from.
    #[must_use]
    pub fn draw_rows(&self) -> usize {
        self.logit_rows - self.prompt_rows
    }
}

/// The work of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepPlan {
    /// Blocks to copy before anything else, in this order, from the first to the second.
    pub copies: Vec<(BlockId, BlockId)>,
    /// At most one chunk a sequence.
    pub chunks: Vec<Chunk>,
}

impl StepPlan {
    /// Tokens in all chunks.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Rows that are for log-probabilities of prompts.
    #[must_use]
    pub fn prompt_row_count(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.prompt_rows).sum()
    }

    /// Rows whose logits are wanted.
    #[must_use]
    pub fn logit_count(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.logit_rows).sum()
    }
}
