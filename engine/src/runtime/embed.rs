//! Embeddings: one text at a time, chunk by chunk between the steps of the sequences, in blocks that are lent for it.

use super::stepper::Stepper;
use crate::model::ModelError;
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::BLOCK_TOKENS;
use atlas_engine_core::{SequenceId, StepPlan, TokenId};
use std::time::Instant;
use tokio::sync::oneshot;

/// What becomes of the hidden states of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

/// A text to embed.
pub struct Embedding {
    /// Its tokens; at least one.
    pub tokens: Vec<TokenId>,
    /// What becomes of them.
    pub pooling: Pooling,
    /// Where the vector goes.
    pub reply: oneshot::Sender<Embedded>,
}

/// What became of a text.
#[derive(Debug)]
pub struct Embedded {
    /// As many values as the model is wide.
    pub vector: Vec<f32>,
    /// When its first step began.
    pub began: Instant,
}

/// A text that is being embedded.
pub struct EmbeddingJob {
    embedding: Embedding,
    blocks: Vec<u32>,
    done: usize,
    sum: Vec<f64>,
    began: Instant,
}

impl EmbeddingJob {
    /// Begins, where the blocks for it are free; gives the text back where they are not.
    pub fn begin(embedding: Embedding, stepper: &mut Stepper) -> Result<Self, Embedding> {
        match stepper.scheduler.lend(embedding.tokens.len().div_ceil(BLOCK_TOKENS)) {
            Some(blocks) => {
                let sum = vec![0.0; stepper.model.config().hidden];
                Ok(Self { embedding, blocks, done: 0, sum, began: Instant::now() })
            }
            None => Err(embedding),
        }
    }

    /// Whether nobody waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        self.embedding.reply.is_closed()
    }

    /// Computes the next tokens; `None` once the vector is on its way and the blocks are free again.
    ///
    /// # Errors
    /// The device fails.
    pub fn advance(mut self, stepper: &mut Stepper, budget: usize) -> Result<Option<Self>, ModelError> {
        let count = self.embedding.tokens.len();
        let end = count.min(self.done + budget.max(1));
        let hidden_rows = match self.embedding.pooling {
            Pooling::Mean => end - self.done,
            Pooling::Last => usize::from(end == count),
        };
        let chunk = Chunk {
            sequence: SequenceId(u64::MAX),
            start: self.done,
            tokens: self.embedding.tokens[self.done..end].to_vec(),
            drafted: 0,
            logit_rows: 0,
            prompt_rows: 0,
            hidden_rows,
            blocks: self.blocks.clone(),
        };
        stepper.model.run(&StepPlan { copies: Vec::new(), chunks: vec![chunk] })?;
        // In order of position, so that chunks change no bit.
        for row in stepper.model.hidden().chunks_exact(self.sum.len()) {
            for (sum, value) in self.sum.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        self.done = end;
        if end < count {
            return Ok(Some(self));
        }
        stepper.scheduler.take_back();
        let share = match self.embedding.pooling {
            Pooling::Mean => 1.0 / count as f64,
            Pooling::Last => 1.0,
        };
        let vector = self.sum.iter().map(|sum| (sum * share) as f32).collect();
        // A client that is gone needs no answer.
        let _ = self.embedding.reply.send(Embedded { vector, began: self.began });
        Ok(None)
    }
}
