//! Scratch memory of a program: where each buffer lies.

use crate::program::{Buf, BufShape, MaxShape, Segment};
use std::ops::Range;

/// Where each buffer lies in one block of scratch memory: buffers whose lives overlap do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// First f32 of each buffer.
    pub offsets: Vec<usize>,
    /// f32 in all.
    pub length: usize,
}

impl MemoryPlan {
    /// f32 that an offset is a multiple of: a cache line.
    const ALIGNMENT: usize = 16;

    /// Gives every buffer the first gap that is free for its whole life, which runs from the op that writes it to
    /// the last op that reads it.
    #[must_use]
    pub fn new(segment: &Segment, max: &MaxShape) -> Self {
        let lives = lives(segment);
        let length_of = |index: usize| {
            let BufShape { rows, columns } = segment.buffers[index];
            (max.rows_of(rows) * columns).next_multiple_of(Self::ALIGNMENT)
        };
        let mut offsets = vec![0; segment.buffers.len()];
        let mut placed: Vec<usize> = Vec::new();
        let mut order: Vec<usize> = (0..segment.buffers.len()).collect();
        order.sort_by_key(|index| lives[*index].start);
        let mut length = 0;
        for index in order {
            let mut neighbours: Vec<Range<usize>> = placed
                .iter()
                .filter(|other| {
                    lives[**other].start < lives[index].end && lives[index].start < lives[**other].end
                })
                .map(|other| offsets[*other]..offsets[*other] + length_of(*other))
                .collect();
            neighbours.sort_by_key(|range| range.start);
            let wanted = length_of(index);
            let mut offset = 0;
            for range in neighbours {
                if range.start >= offset + wanted {
                    break;
                }
                offset = offset.max(range.end);
            }
            offsets[index] = offset;
            length = length.max(offset + wanted);
            placed.push(index);
        }
        Self { offsets, length }
    }
}

/// For each buffer the ops during which its contents matter, the last one included.
fn lives(segment: &Segment) -> Vec<Range<usize>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; segment.buffers.len()];
    let mut touch = |buffer: Buf, op: usize| {
        let life = lives[usize::from(buffer.0)].get_or_insert(op..op + 1);
        life.end = op + 1;
    };
    if let Some(input) = segment.input {
        touch(input, 0);
    }
    for (at, op) in segment.ops.iter().enumerate() {
        for buffer in op.reads().into_iter().chain([op.writes()]).flatten() {
            touch(buffer, at);
        }
    }
    if let Some(output) = segment.output {
        touch(output, segment.ops.len());
    }
    lives.into_iter().map(Option::unwrap_or_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Op, Rows, WeightId};
    use proptest::prelude::*;

    const MAX: MaxShape =
        MaxShape { rows: 4, sequences: 2, logit_rows: 2, hidden_rows: 1, blocks_per_sequence: 3 };

    #[test]
    fn memory_is_reused_once_a_buffer_is_read_for_the_last_time() {
        let mut segment = Segment::default();
        let [a, b, c] = [16, 32, 16].map(|columns| segment.buffer(Rows::Tokens, columns));
        let weight = WeightId(0);
        segment.push(Op::Embed { weight, out: a });
        segment.push(Op::Linear { x: a, weight, bias: None, out: b });
        segment.push(Op::SwiGlu { x: b, out: c });
        let plan = MemoryPlan::new(&segment, &MAX);
        assert_eq!(plan.offsets, [0, 64, 0]);
        assert_eq!(plan.length, 64 + 128);
    }

    #[test]
    fn an_output_lives_to_the_end() {
        let mut segment = Segment::default();
        let [a, b] = [16, 16].map(|columns| segment.buffer(Rows::Tokens, columns));
        segment.push(Op::Embed { weight: WeightId(0), out: a });
        segment.push(Op::Embed { weight: WeightId(0), out: b });
        segment.output = Some(a);
        assert_eq!(MemoryPlan::new(&segment, &MAX).offsets, [0, 64]);
    }

    proptest! {
        /// Whatever a program does: buffers whose lives overlap do not share memory.
        #[test]
        fn buffers_that_live_together_lie_apart(
            columns in prop::collection::vec(1_usize..40, 1..20), sources in prop::collection::vec(any::<prop::sample::Index>(), 20),
        ) {
            let mut segment = Segment::default();
            for (index, columns) in columns.iter().enumerate() {
                let out = segment.buffer(Rows::Tokens, *columns);
                segment.push(match index {
                    0 => Op::Embed { weight: WeightId(0), out },
                    _ => Op::SwiGlu { x: Buf(sources[index].index(index) as u16), out },
                });
            }
            let plan = MemoryPlan::new(&segment, &MAX);
            let lives = lives(&segment);
            for left in 0..columns.len() {
                let range = |index: usize| plan.offsets[index]..plan.offsets[index] + MAX.rows * columns[index];
                prop_assert!(range(left).end <= plan.length);
                for right in 0..left {
                    let together = lives[left].start < lives[right].end && lives[right].start < lives[left].end;
                    let apart = range(left).end <= range(right).start || range(right).end <= range(left).start;
                    prop_assert!(!together || apart, "{left} and {right}: {plan:?}");
                }
            }
        }
    }
}
