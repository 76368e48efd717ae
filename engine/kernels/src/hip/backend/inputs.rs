//! One step's input as it lies on the card, and the checks that keep kernels inside their memory.

use super::shape;
use crate::hip::arena::{Arena, Span};
use crate::hip::device::{Device, Pinned};
use crate::hip::error::HipError;
use crate::hip::kernels::{FEW_ROWS, MATVEC_ROWS};
use atlas_engine_core::backend::{Batch, DeviceError};
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape, Rope};

/// Rows of a tile of prefill attention.
const TILE_ROWS: usize = 16;

/// Where each list begins, in words; the lists stand one after the other, so that one copy brings them all.
#[derive(Debug, Clone, Copy)]
struct Layout {
    ids: usize,
    positions: usize,
    slots: usize,
    sequences: usize,
    list: usize,
    tiles: usize,
    logit_rows: usize,
    hidden_rows: usize,
    tables: usize,
    end: usize,
}

/// What the launches of one step need to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Counts {
    /// T.
    pub rows: u32,
    /// R.
    pub logit_rows: u32,
    /// H.
    pub hidden_rows: u32,
    /// Rows that attend one by one.
    pub listed: u32,
    /// Tiles of rows that attend together.
    pub tiles: u32,
    /// Partitions of the longest listed row.
    pub partitions: u32,
}

impl Counts {
    /// Whether products take the matrix-vector kernels.
    pub fn is_few(rows: u32) -> bool {
        rows <= FEW_ROWS
    }
}

/// The memory of a program's input, on both sides.
pub struct Inputs {
    layout: Layout,
    max: MaxShape,
    words: Span,
    words_host: Pinned,
    /// One a rope: `[T, pairs]` of cosine and sine.
    angles: Vec<(Rope, Span, Pinned)>,
}

macro_rules! spans {
    ($($name:ident),*) => {
        $(pub fn $name(&self) -> Span {
            self.words.after(self.layout.$name as u64 * 4)
        })*
    };
}

impl Inputs {
    /// Takes the memory.
    pub fn new(
        device: &mut Device,
        arena: &mut Arena,
        max: &MaxShape,
        ropes: &[Rope],
    ) -> Result<Self, HipError> {
        let mut end = 0;
        let mut list = |length: usize| {
            let at = end;
            end = (at + length).next_multiple_of(64);
            at
        };
        let layout = Layout {
            ids: list(max.rows),
            positions: list(max.rows),
            slots: list(max.rows),
            sequences: list(max.rows),
            list: list(listed_rows(max)),
            tiles: list(2 * (max.rows / TILE_ROWS + max.sequences + 1)),
            logit_rows: list(max.logit_rows),
            hidden_rows: list(max.hidden_rows),
            tables: list(max.sequences * max.blocks_per_sequence),
            end: 0,
        };
        let layout = Layout { end, ..layout };
        let words = arena.take("a step's input", end as u64 * 4)?;
        let words_host = device.allocate_pinned(end * 4)?;
        let angles = ropes.iter().map(|rope| {
            let bytes = max.rows * rope.frequencies.len() * 8;
            let span = arena.take("a step's angles", bytes as u64)?;
            Ok((rope.clone(), span, device.allocate_pinned(bytes)?))
        });
        let angles = angles.collect::<Result<_, HipError>>()?;
        Ok(Self { layout, max: *max, words, words_host, angles })
    }

    spans!(ids, positions, slots, sequences, list, tiles, logit_rows, hidden_rows, tables);

    pub fn angles(&self, rope: usize) -> Option<(Span, u32)> {
        self.angles.get(rope).map(|(rope, span, _)| (*span, rope.frequencies.len() as u32))
    }

    /// Columns of the block tables.
    pub fn table_stride(&self) -> u32 {
        self.max.blocks_per_sequence as u32
    }

    /// Checks a batch and starts its way to the card. `vocabulary` bounds ids, `blocks` the cache.
    pub fn fill(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        vocabulary: u32,
        blocks: u32,
    ) -> Result<Counts, DeviceError> {
        self.check(batch, vocabulary, blocks)?;
        let layout = self.layout;
        let words = self.words_host.bytes_mut().as_chunks_mut::<4>().0;
        let mut put = |at: usize, values: &[u32]| {
            for (word, value) in words[at..].iter_mut().zip(values) {
                *word = value.to_le_bytes();
            }
        };
        put(layout.ids, batch.ids);
        put(layout.positions, batch.positions);
        put(layout.slots, batch.slots);
        put(layout.logit_rows, batch.logit_rows);
        put(layout.hidden_rows, batch.hidden_rows);
        let (mut listed, mut tiles) = (0, 0);
        let mut longest = 0;
        // Each row that is attended alone reads its whole context.
        let alone = batch.rows() <= MATVEC_ROWS as usize;
        for (sequence, ends) in batch.seq_start.windows(2).enumerate() {
            let (begin, end) = (ends[0] as usize, ends[1] as usize);
            for row in begin..end {
                put(layout.sequences + row, &[sequence as u32]);
            }
            let used = (batch.context[sequence] as usize).div_ceil(BLOCK_TOKENS);
            let table = &batch.blocks[sequence * batch.blocks_per_sequence..][..used];
            put(layout.tables + sequence * self.max.blocks_per_sequence, table);
            if alone || end - begin == 1 {
                for row in begin..end {
                    put(layout.list + listed, &[row as u32]);
                    longest = longest.max(batch.positions[row]);
                    listed += 1;
                }
            } else {
                for row in (begin..end).step_by(TILE_ROWS) {
                    put(layout.tiles + 2 * tiles, &[row as u32, (end - row).min(TILE_ROWS) as u32]);
                    tiles += 1;
                }
            }
        }
        let to = self.words.at_least("a step's input", layout.end as u64 * 4)?;
        device.upload_pinned(&self.words_host, layout.end * 4, to)?;
        for (rope, span, host) in &mut self.angles {
            let pairs = rope.frequencies.len();
            let words = host.bytes_mut().as_chunks_mut::<4>().0;
            for (row, position) in words.chunks_exact_mut(2 * pairs).zip(batch.positions) {
                for (pair, frequency) in row.chunks_exact_mut(2).zip(&rope.frequencies) {
                    let (sin, cos) = (*position as f32 * frequency).sin_cos();
                    pair[0] = cos.to_le_bytes();
                    pair[1] = sin.to_le_bytes();
                }
            }
            let bytes = batch.rows() * pairs * 8;
            device.upload_pinned(host, bytes, span.at_least("a step's angles", bytes as u64)?)?;
        }
        let partition = atlas_engine_core::program::PARTITION_TOKENS as u32;
        Ok(Counts {
            rows: batch.rows() as u32,
            logit_rows: batch.logit_rows.len() as u32,
            hidden_rows: batch.hidden_rows.len() as u32,
            listed: listed as u32,
            tiles: tiles as u32,
            partitions: if listed == 0 { 0 } else { longest / partition + 1 },
        })
    }

    /// Everything that a kernel would follow blindly.
    fn check(&self, batch: &Batch<'_>, vocabulary: u32, blocks: u32) -> Result<(), DeviceError> {
        let (rows, sequences, max) = (batch.rows(), batch.sequences(), &self.max);
        for (what, found, most) in [
            ("rows of a step", rows, max.rows),
            ("sequences of a step", sequences, max.sequences),
            ("logit rows of a step", batch.logit_rows.len(), max.logit_rows),
            ("hidden rows of a step", batch.hidden_rows.len(), max.hidden_rows),
            ("columns of the block table", batch.blocks_per_sequence, max.blocks_per_sequence),
        ] {
            if found > most {
                return Err(shape(what, found, most));
            }
        }
        for (what, found, expected) in [
            ("positions of a step", batch.positions.len(), rows),
            ("slots of a step", batch.slots.len(), rows),
            ("starts of sequences", batch.seq_start.len(), sequences + 1),
            ("entries of the block table", batch.blocks.len(), sequences * batch.blocks_per_sequence),
            ("the last sequence's end", batch.seq_start.last().map_or(0, |end| *end as usize), rows),
        ] {
            if found != expected {
                return Err(shape(what, found, expected));
            }
        }
        let over = |what, values: &[u32], limit: usize| match values.iter().max() {
            Some(largest) if *largest as usize >= limit => Err(shape(what, *largest as usize, limit)),
            _ => Ok(()),
        };
        over("a token id", batch.ids, vocabulary as usize)?;
        over("a slot", batch.slots, blocks as usize * BLOCK_TOKENS)?;
        over("a logit row", batch.logit_rows, rows)?;
        over("a hidden row", batch.hidden_rows, rows)?;
        for (sequence, ends) in batch.seq_start.windows(2).enumerate() {
            let (begin, end) = (ends[0] as usize, ends[1] as usize);
            if begin >= end || end > rows {
                return Err(shape("a sequence's end", end, begin + 1));
            }
            let used = (batch.context[sequence] as usize).div_ceil(BLOCK_TOKENS);
            if used > batch.blocks_per_sequence {
                return Err(shape("blocks of a sequence", used, batch.blocks_per_sequence));
            }
            over("a block", &batch.blocks[sequence * batch.blocks_per_sequence..][..used], blocks as usize)?;
            let first = batch.positions[begin];
            for (row, position) in batch.positions[begin..end].iter().enumerate() {
                if *position as usize != first as usize + row || *position >= batch.context[sequence] {
                    return Err(shape("a position", *position as usize, first as usize + row));
                }
            }
        }
        Ok(())
    }
}

/// Rows that attend one by one in the largest step: all of a small step, or one a sequence.
pub fn listed_rows(max: &MaxShape) -> usize {
    max.sequences.max(MATVEC_ROWS as usize).min(max.rows.max(1))
}
