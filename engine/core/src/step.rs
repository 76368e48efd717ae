//! A plan as the arrays that a device takes.

use crate::backend::Batch;
use crate::plan::StepPlan;
use crate::program::BLOCK_TOKENS;

/// The arrays of one step; kept, so that their memory is used again.
#[derive(Debug, Default)]
pub struct StepArrays {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    seq_start: Vec<u32>,
    context: Vec<u32>,
    blocks: Vec<u32>,
    blocks_per_sequence: usize,
    logit_rows: Vec<u32>,
    hidden_rows: Vec<u32>,
}

impl StepArrays {
    /// Fills the arrays from a plan. Positions and ids fit u32, since a context does.
    pub fn fill(&mut self, plan: &StepPlan) -> Batch<'_> {
        let Self {
            ids,
            positions,
            slots,
            seq_start,
            context,
            blocks,
            blocks_per_sequence,
            logit_rows,
            hidden_rows,
        } = self;
        for array in [&mut *ids, positions, slots, seq_start, context, blocks, logit_rows, hidden_rows] {
            array.clear();
        }
        *blocks_per_sequence = plan.chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(0);
        seq_start.push(0);
        for chunk in &plan.chunks {
            for (offset, token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start + offset;
                let block = chunk.blocks[position / BLOCK_TOKENS];
                ids.push(*token);
                positions.push(position as u32);
                slots.push(block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
            }
            let end = ids.len() as u32;
            logit_rows.extend(end - chunk.logit_rows as u32..end);
            hidden_rows.extend(end - chunk.hidden_rows as u32..end);
            seq_start.push(end);
            context.push((chunk.start + chunk.tokens.len()) as u32);
            blocks.extend_from_slice(&chunk.blocks);
            blocks.resize(context.len() * *blocks_per_sequence, 0);
        }
        Batch {
            ids,
            positions,
            slots,
            seq_start,
            context,
            blocks,
            blocks_per_sequence: *blocks_per_sequence,
            logit_rows,
            hidden_rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Chunk;
    use crate::sequence::SequenceId;

    #[test]
    fn every_row_knows_its_place() {
        let chunk = |start, tokens: &[u32], logit_rows, blocks: &[u32]| Chunk {
            sequence: SequenceId(1),
            start,
            tokens: tokens.to_vec(),
            drafted: 0,
            logit_rows,
            prompt_rows: 0,
            hidden_rows: 1,
            blocks: blocks.to_vec(),
        };
        let chunks =
            vec![chunk(15, &[5, 6, 7], 2, &[4, 9]), chunk(0, &[8], 0, &[2]), chunk(1, &[3], 1, &[3])];
        let mut arrays = StepArrays::default();
        for _ in 0..2 {
            let batch = arrays.fill(&StepPlan { copies: Vec::new(), chunks: chunks.clone() });
            assert_eq!(batch.ids, [5, 6, 7, 8, 3]);
            assert_eq!(batch.positions, [15, 16, 17, 0, 1]);
            assert_eq!(batch.slots, [4 * 16 + 15, 9 * 16, 9 * 16 + 1, 32, 49]);
            assert_eq!(batch.seq_start, [0, 3, 4, 5]);
            assert_eq!(batch.context, [18, 1, 2]);
            assert_eq!((batch.blocks, batch.blocks_per_sequence), (&[4, 9, 2, 0, 3, 0][..], 2));
            assert_eq!((batch.logit_rows, batch.hidden_rows), (&[1, 2, 4][..], &[2, 3, 4][..]));
        }
    }
}
