//! `atlas-engine logits`: what a model thinks at every position of given tokens, for comparisons of accuracy.
//!
//! Each line of standard input is a JSON list of token ids, a text of its own; the answer is the logits of all its
//! positions, little-endian f32, one row after the other. No sampling, no tokenizer, no HTTP.

use crate::backend::alone;
use crate::checkpoint::Checkpoint;
use crate::config::Logits;
use crate::error::Fatal;
use crate::model::{Model, ModelShape};
use atlas_engine_core::backend::{Backend, KvType};
use atlas_engine_core::plan::{Chunk, StepPlan};
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape};
use atlas_engine_core::{SequenceId, TokenId};
use atlas_kernels::CpuBackend;
use std::io::Write as _;

/// Tokens of a text, at most.
const LONGEST: usize = 512;

/// Answers every line.
///
/// # Errors
/// The file is no model that this engine serves, or a line no list of its token ids.
pub fn logits(arguments: &Logits) -> Result<(), Fatal> {
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let mut model = load(&checkpoint, arguments)?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(|source| Fatal::System { what: "reading standard input", source })?;
        let tokens = tokens(&line, model.config().vocabulary)
            .map_err(|source| Fatal::System { what: "reading token ids", source })?;
        let blocks = 0..u32::try_from(tokens.len().div_ceil(BLOCK_TOKENS)).unwrap_or(u32::MAX);
        let chunk = Chunk {
            sequence: SequenceId(0),
            start: 0,
            logit_rows: tokens.len(),
            prompt_rows: 0,
            tokens,
            drafted: 0,
            hidden_rows: 0,
            blocks: blocks.collect(),
        };
        let plan = StepPlan { copies: Vec::new(), chunks: vec![chunk] };
        let bytes: Vec<u8> = model.run(&plan)?.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let mut out = std::io::stdout().lock();
        let written = out.write_all(&bytes).and_then(|()| out.flush());
        written.map_err(|source| Fatal::System { what: "printing", source })?;
    }
    Ok(())
}

/// The model with a cache of one text; exact ones keep f32 throughout.
fn load(checkpoint: &Checkpoint, arguments: &Logits) -> Result<Model, Fatal> {
    let Checkpoint { config, tensors, .. } = checkpoint;
    let blocks = LONGEST / BLOCK_TOKENS;
    let max = MaxShape {
        rows: LONGEST,
        sequences: 1,
        logit_rows: LONGEST,
        hidden_rows: 0,
        blocks_per_sequence: blocks,
    };
    let kv_type = if arguments.exact { KvType::F32 } else { KvType::F16 };
    let shape = ModelShape { kv_type, blocks: u32::try_from(blocks).unwrap_or(u32::MAX), max };
    let backend: Box<dyn Backend> = if arguments.exact {
        Box::new(CpuBackend::exact(arguments.compute.thread_count())?)
    } else {
        alone(&arguments.compute, tensors, config, &shape)?
    };
    Ok(Model::load(config, tensors, backend, &shape)?)
}

fn tokens(line: &str, vocabulary: usize) -> std::io::Result<Vec<TokenId>> {
    let wrong = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
    let tokens: Vec<TokenId> = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
    if tokens.is_empty() || tokens.len() > LONGEST {
        return Err(wrong(format!("{} token ids where 1 to {LONGEST} are expected", tokens.len())));
    }
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => Err(wrong(format!("token id {token} is beyond the vocabulary of {vocabulary}"))),
        None => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ids_are_checked_before_they_are_computed_with() {
        assert_eq!(tokens("[0, 9, 3]", 10).unwrap(), [0, 9, 3]);
        let long = serde_json::to_string(&vec![1; LONGEST + 1]).unwrap();
        for (line, reason) in [
            ("", "EOF"),
            ("[-1]", "invalid value"),
            ("[]", "0 token ids where 1 to 512"),
            ("[10]", "token id 10 is beyond the vocabulary of 10"),
            (&long, "513 token ids"),
        ] {
            let error = tokens(line, 10).unwrap_err().to_string();
            assert!(error.contains(reason), "{line:?}: {error}");
        }
    }
}
