//! What is checked before anything is computed: segments against weights and cache, batches against programs.

use super::kv::PagedKv;
use super::linear::Weight;
use super::program::Program;
use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::Batch;
use atlas_engine_core::program::{BLOCK_TOKENS, Buf, Heads, Op, Rows, Segment, WeightId};

/// What the device holds.
pub(crate) struct Loaded<'a> {
    pub(crate) weights: &'a [Weight],
    pub(crate) kv: Option<&'a PagedKv>,
}

pub(crate) fn shape(what: &'static str, found: usize, expected: usize) -> DeviceError {
    DeviceError::Shape { what, found, expected }
}

fn equal(what: &'static str, found: usize, expected: usize) -> Result<(), DeviceError> {
    if found == expected { Ok(()) } else { Err(shape(what, found, expected)) }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), DeviceError> {
    if found <= limit { Ok(()) } else { Err(shape(what, found, limit)) }
}

impl Loaded<'_> {
    fn weight(&self, id: WeightId) -> Result<&Weight, DeviceError> {
        let known = self.weights.len();
        self.weights.get(id.0 as usize).ok_or_else(|| shape("a weight's id", id.0 as usize, known))
    }

    fn vector(&self, id: WeightId, length: usize) -> Result<(), DeviceError> {
        let weight = self.weight(id)?;
        equal("columns of a vector", weight.columns, 1)?;
        equal("elements of a vector", weight.rows, length)
    }

    fn matrix(&self, id: WeightId, rows: usize, columns: usize) -> Result<(), DeviceError> {
        let weight = self.weight(id)?;
        equal("rows of a weight", weight.rows, rows)?;
        equal("columns of a weight", weight.columns, columns)
    }

    fn cached(&self, layer: u16, heads: &Heads) -> Result<(), DeviceError> {
        let Some(kv) = self.kv else { return Err(shape("KV caches", 0, 1)) };
        let spec = kv.spec();
        if !spec.layers.contains(&layer) {
            return Err(shape("a layer of the KV cache", layer.into(), spec.layers.end.into()));
        }
        equal("key heads", heads.kv, spec.kv_heads)?;
        equal("a head's size", heads.size, spec.head_size)?;
        if heads.kv == 0 || !heads.query.is_multiple_of(heads.kv) {
            return Err(shape("query heads, as a multiple of key heads", heads.query, heads.kv));
        }
        Ok(())
    }
}

/// Every op's buffers, weights and cache go together.
pub(crate) fn check_segment(segment: &Segment, loaded: &Loaded<'_>) -> Result<(), DeviceError> {
    let known = segment.buffers.len();
    let mut written = vec![false; known];
    if let Some(input) = segment.input {
        *written.get_mut(usize::from(input.0)).ok_or_else(|| shape("a buffer", input.0.into(), known))? =
            true;
    }
    for op in &segment.ops {
        for buffer in op.reads().into_iter().flatten() {
            if written.get(usize::from(buffer.0)) != Some(&true) {
                return Err(shape("a buffer that is read before it is written", buffer.0.into(), known));
            }
        }
        if let Some(out) = op.writes() {
            let written =
                written.get_mut(usize::from(out.0)).ok_or_else(|| shape("a buffer", out.0.into(), known))?;
            if std::mem::replace(written, true) {
                return Err(shape("a buffer that is written twice", out.0.into(), known));
            }
        }
        check_op(op, segment, loaded)?;
    }
    match segment.output {
        Some(output) if written.get(usize::from(output.0)) != Some(&true) => {
            Err(shape("the output's buffer", output.0.into(), known))
        }
        _ => Ok(()),
    }
}

fn check_op(op: &Op, segment: &Segment, loaded: &Loaded<'_>) -> Result<(), DeviceError> {
    let columns = |buffer: Buf| segment.shape(buffer).columns;
    let same_rows = |left: Buf, right: Buf| {
        let [left, right] = [left, right].map(|buffer| segment.shape(buffer).rows);
        if left == right { Ok(()) } else { Err(shape("a kind of rows", left as usize, right as usize)) }
    };
    let same = |left: Buf, right: Buf| {
        same_rows(left, right)?;
        equal("columns of a buffer", columns(left), columns(right))
    };
    let of_rows = |buffer: Buf, rows: Rows| {
        let found = segment.shape(buffer).rows;
        if found == rows { Ok(()) } else { Err(shape("a kind of rows", found as usize, rows as usize)) }
    };
    match op {
        Op::Embed { weight, out } => {
            of_rows(*out, Rows::Tokens)?;
            equal("columns of the embedding", loaded.weight(*weight)?.columns, columns(*out))
        }
        Op::Norm { x, add, weight, epsilon: _, out } => {
            same(*x, *out)?;
            add.map_or(Ok(()), |add| same(add, *x))?;
            loaded.vector(*weight, columns(*x))
        }
        Op::Linear { x, weight, bias, out } => {
            same_rows(*x, *out)?;
            bias.map_or(Ok(()), |bias| loaded.vector(bias, columns(*out)))?;
            loaded.matrix(*weight, columns(*out), columns(*x))
        }
        Op::HeadNorm { x, weight, heads, size, epsilon: _ } => {
            at_most("heads to norm", heads.end * size, columns(*x))?;
            loaded.vector(*weight, *size)
        }
        Op::RopeKv { qkv, rope, layer, heads } => {
            of_rows(*qkv, Rows::Tokens)?;
            loaded.cached(*layer, heads)?;
            let known = segment.ropes.len();
            let rope = segment.ropes.get(*rope).ok_or_else(|| shape("a rope's index", *rope, known))?;
            at_most("elements that RoPE turns", 2 * rope.frequencies.len(), heads.size)?;
            equal("columns of queries, keys and values", columns(*qkv), heads.qkv_columns())
        }
        Op::Attend { qkv, layer, heads, scale: _, out } => {
            of_rows(*qkv, Rows::Tokens)?;
            same_rows(*qkv, *out)?;
            loaded.cached(*layer, heads)?;
            equal("columns of queries, keys and values", columns(*qkv), heads.qkv_columns())?;
            equal("columns of attention", columns(*out), heads.query * heads.size)
        }
        Op::SwiGlu { x, out } => {
            same_rows(*x, *out)?;
            equal("columns of gate and up", columns(*x), 2 * columns(*out))
        }
        Op::Add { x, out } => same(*x, *out),
        Op::Gather { x, out } => {
            of_rows(*x, Rows::Tokens)?;
            equal("columns of a buffer", columns(*x), columns(*out))
        }
        Op::Logits { x, weight } => {
            of_rows(*x, Rows::Logits)?;
            equal("columns of the head", loaded.weight(*weight)?.columns, columns(*x))
        }
        Op::Hidden { x } => of_rows(*x, Rows::Hidden),
    }
}

/// The batch is no larger than the program's, consistent in itself, and names only what is there.
pub(crate) fn check_batch(
    batch: &Batch<'_>,
    handoff: Option<&[f32]>,
    program: &Program,
    loaded: &Loaded<'_>,
) -> Result<(), DeviceError> {
    let (max, segment) = (&program.max, &program.segment);
    let (rows, sequences) = (batch.rows(), batch.sequences());
    at_most("rows of a step", rows, max.rows)?;
    at_most("sequences of a step", sequences, max.sequences)?;
    at_most("logit rows of a step", batch.logit_rows.len(), max.logit_rows)?;
    at_most("hidden rows of a step", batch.hidden_rows.len(), max.hidden_rows)?;
    at_most("columns of the block table", batch.blocks_per_sequence, max.blocks_per_sequence)?;
    equal("positions", batch.positions.len(), rows)?;
    equal("slots", batch.slots.len(), rows)?;
    equal("sequence starts", batch.seq_start.len(), sequences + 1)?;
    equal("entries of the block table", batch.blocks.len(), sequences * batch.blocks_per_sequence)?;
    equal("the first sequence's start", batch.seq_start[0] as usize, 0)?;
    equal("the last sequence's end", batch.seq_start[sequences] as usize, rows)?;
    for (bounds, context) in batch.seq_start.windows(2).zip(batch.context) {
        at_most("a sequence's start", bounds[0] as usize, bounds[1] as usize)?;
        at_most("a context", *context as usize, batch.blocks_per_sequence * BLOCK_TOKENS)?;
        for row in bounds[0] as usize..bounds[1] as usize {
            at_most("a position", batch.positions[row] as usize + 1, *context as usize)?;
        }
    }
    for row in batch.logit_rows.iter().chain(batch.hidden_rows) {
        at_most("a wanted row", *row as usize + 1, rows)?;
    }
    for op in &segment.ops {
        if let Op::Embed { weight, .. } = op {
            let vocabulary = loaded.weight(*weight)?.rows;
            batch.ids.iter().try_for_each(|id| at_most("a token id", *id as usize + 1, vocabulary))?;
        }
    }
    if let Some(kv) = loaded.kv {
        let blocks = kv.spec().blocks as usize;
        batch
            .slots
            .iter()
            .try_for_each(|slot| at_most("a slot", *slot as usize + 1, blocks * BLOCK_TOKENS))?;
        for (table, context) in batch.blocks.chunks_exact(batch.blocks_per_sequence.max(1)).zip(batch.context)
        {
            let used = &table[..(*context as usize).div_ceil(BLOCK_TOKENS)];
            used.iter().try_for_each(|block| at_most("a block", *block as usize + 1, blocks))?;
        }
    }
    let columns = segment.input.map(|input| segment.shape(input).columns);
    equal(
        "a handoff's elements",
        handoff.map_or(0, <[f32]>::len),
        columns.map_or(0, |columns| columns * rows),
    )
}
