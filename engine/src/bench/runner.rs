//! A loaded model and the steps that benchmarks measure.

use super::{Kind, Test};
use crate::backend::alone;
use crate::checkpoint::Checkpoint;
use crate::config::Compute;
use crate::error::Fatal;
use crate::model::{Model, ModelError, ModelShape, Tensors};
use atlas_engine_core::SequenceId;
use atlas_engine_core::backend::KvType;
use atlas_engine_core::plan::{Chunk, StepPlan};
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape};
use atlas_kernels::BlockType;
use std::time::Instant;

/// Rows of a prefill step.
const CHUNK_ROWS: usize = 512;

/// The weights that every token is multiplied with.
pub(super) struct Matrices {
    pub(super) elements: u64,
    pub(super) bytes: u64,
    /// Whether they are floats, which are multiplied as such.
    pub(super) floats: bool,
}

impl Matrices {
    pub(super) fn of(tensors: &Tensors) -> Self {
        let tied = !tensors.contains("output.weight");
        let mut all = Self { elements: 0, bytes: 0, floats: false };
        for (name, tensor) in tensors.iter() {
            if tensor.shape.len() == 2 && (tied || name != "token_embd.weight") {
                all.elements += tensor.shape.iter().product::<u64>();
                all.bytes += tensor.byte_count();
                all.floats |=
                    BlockType::from_ggml(tensor.tensor_type.number()).is_some_and(BlockType::is_float);
            }
        }
        all
    }
}

/// The part of the cache that a test's sequences have. Tokens follow from sequence and position alone, so what an
/// earlier test has filled need not be computed again.
#[derive(Debug, Clone)]
struct Region {
    /// First block.
    first: usize,
    /// Blocks a sequence.
    blocks: usize,
    /// Positions that each sequence has filled.
    filled: Vec<usize>,
}

pub(super) struct Runner {
    model: Model,
    vocabulary: u32,
    /// The first one is shared by all tests of one sequence; every other test has its own.
    regions: Vec<Region>,
}

/// The regions, and which of them each test has.
fn regions(tests: &[Test]) -> (Vec<Region>, Vec<usize>) {
    let blocks_of = |test: &Test| (test.depth + test.tokens + 1).div_ceil(BLOCK_TOKENS);
    let alone = tests.iter().filter(|test| test.sequences == 1).map(blocks_of).max().unwrap_or(0);
    let mut regions =
        vec![Region { first: 0, blocks: alone.max(WARM.div_ceil(BLOCK_TOKENS)), filled: vec![0] }];
    let mut next = regions[0].blocks;
    let of_tests = tests.iter().map(|test| {
        if test.sequences == 1 {
            return 0;
        }
        regions.push(Region { first: next, blocks: blocks_of(test), filled: vec![0; test.sequences] });
        next += blocks_of(test) * test.sequences;
        regions.len() - 1
    });
    let of_tests = of_tests.collect();
    (regions, of_tests)
}

/// Rows of the step that touches every weight before anything is measured.
const WARM: usize = 32;

impl Runner {
    /// The model after a first short step, not settled yet, with room for these tests, and which region each of them has.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        compute: &Compute,
        tests: &[Test],
    ) -> Result<(Self, Vec<usize>), Fatal> {
        let (regions, of_tests) = regions(tests);
        let sequences = tests.iter().map(|test| test.sequences).max().unwrap_or(1);
        let blocks: usize = regions.iter().map(|region| region.blocks * region.filled.len()).sum();
        let max = MaxShape {
            rows: CHUNK_ROWS.max(sequences),
            sequences,
            logit_rows: sequences,
            hidden_rows: 0,
            blocks_per_sequence: regions.iter().map(|region| region.blocks).max().unwrap_or(1),
        };
        let shape =
            ModelShape { kv_type: KvType::F16, blocks: u32::try_from(blocks).unwrap_or(u32::MAX), max };
        let Checkpoint { config, tensors, .. } = checkpoint;
        let devices = vec![(alone(compute, tensors, config, &shape)?, usize::MAX)];
        let model = Model::load_parts(config, tensors, devices, &shape, &mut |_| {})?;
        let vocabulary = u32::try_from(model.config().vocabulary).unwrap_or(u32::MAX);
        let mut runner = Self { model, vocabulary, regions };
        runner.step(0, &[(0, 0, WARM, true)])?;
        Ok((runner, of_tests))
    }

    /// Does all that loading put off.
    pub(super) fn settle(&mut self) -> Result<(), ModelError> {
        while self.model.settle()? > 0 {}
        Ok(())
    }

    /// Bytes that one position takes in the cache.
    pub(super) fn kv_bytes_per_token(&self) -> u64 {
        self.model.config().kv_spec(KvType::F16, 1).block_bytes().unwrap_or(0) / BLOCK_TOKENS as u64
    }

    /// Bytes of the whole cache.
    pub(super) fn kv_bytes(&self) -> u64 {
        let blocks: usize = self.regions.iter().map(|region| region.blocks * region.filled.len()).sum();
        self.kv_bytes_per_token() * (blocks * BLOCK_TOKENS) as u64
    }

    /// Seconds of one test.
    pub(super) fn measure(&mut self, test: &Test, region: usize) -> Result<f64, ModelError> {
        match test.kind {
            Kind::Prefill => {
                let began = Instant::now();
                self.prefill(region, 0, 0, test.tokens)?;
                let seconds = began.elapsed().as_secs_f64();
                let filled = &mut self.regions[region].filled[0];
                *filled = test.tokens.max(*filled);
                Ok(seconds)
            }
            Kind::Decode => {
                for sequence in 0..test.sequences {
                    let filled = self.regions[region].filled[sequence];
                    if filled < test.depth {
                        self.prefill(region, sequence, filled, test.depth)?;
                        self.regions[region].filled[sequence] = test.depth;
                    }
                }
                let mut decode = |position| {
                    let rows: Vec<_> =
                        (0..test.sequences).map(|sequence| (sequence, position, 1, true)).collect();
                    self.step(region, &rows)
                };
                decode(test.depth)?;
                let began = Instant::now();
                for token in 1..=test.tokens {
                    decode(test.depth + token)?;
                }
                Ok(began.elapsed().as_secs_f64())
            }
        }
    }

    fn prefill(&mut self, region: usize, sequence: usize, from: usize, to: usize) -> Result<(), ModelError> {
        for first in (from..to).step_by(CHUNK_ROWS) {
            let rows = CHUNK_ROWS.min(to - first);
            self.step(region, &[(sequence, first, rows, first + rows == to)])?;
        }
        Ok(())
    }

    /// One step of (sequence, first position, tokens, whether the last one's logits are wanted).
    fn step(&mut self, region: usize, parts: &[(usize, usize, usize, bool)]) -> Result<(), ModelError> {
        let Region { first, blocks, .. } = self.regions[region];
        let chunk = |(sequence, start, count, wanted): &(usize, usize, usize, bool)| {
            let token = |position: usize| {
                (position as u32 * 7919 + *sequence as u32 * 31) % (self.vocabulary - 1) + 1
            };
            let used = (start + count).div_ceil(BLOCK_TOKENS);
            Chunk {
                sequence: SequenceId(*sequence as u64),
                start: *start,
                tokens: (*start..start + count).map(token).collect(),
                drafted: 0,
                logit_rows: usize::from(*wanted),
                prompt_rows: 0,
                hidden_rows: 0,
                blocks: (0..used).map(|index| (first + sequence * blocks + index) as u32).collect(),
            }
        };
        let plan = StepPlan { copies: Vec::new(), chunks: parts.iter().map(chunk).collect() };
        self.model.run(&plan).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_one_sequence_share_a_region_and_others_have_their_own() {
        let test = |depth, sequences, tokens| Test { kind: Kind::Decode, depth, sequences, tokens };
        let (regions, of_tests) =
            regions(&[test(128, 1, 15), test(30, 4, 1), test(500, 1, 12), test(30, 2, 2)]);
        assert_eq!(of_tests, [0, 1, 0, 2]);
        let places: Vec<_> =
            regions.iter().map(|region| (region.first, region.blocks, region.filled.len())).collect();
        assert_eq!(places, [(0, 33, 1), (33, 2, 4), (41, 3, 2)]);
    }
}
