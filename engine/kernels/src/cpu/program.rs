//! A compiled segment: where its buffers lie, and how a step runs through its ops.

use super::attend::{Attention, Tile, tiles};
use super::kv::PagedKv;
use super::linear::Weight;
use super::ops;
use super::rows::{for_rows, three, two};
use crate::int8::Activations;
use crate::lanes::Level;
use crate::pool::Pool;
use atlas_engine_core::backend::{Batch, StepOut};
use atlas_engine_core::memory_plan::MemoryPlan;
use atlas_engine_core::program::{Buf, MaxShape, Op, Rows, Segment, WeightId};
use std::ops::Range;

/// What a program runs with.
pub(crate) struct Device<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) weights: &'a [Weight],
    /// Checked to be there where an op needs it.
    pub(crate) kv: Option<&'a mut PagedKv>,
}

/// A checked segment with the memory that its steps use.
pub(crate) struct Program {
    pub(crate) segment: Segment,
    pub(crate) max: MaxShape,
    plan: MemoryPlan,
    scratch: Vec<f32>,
    /// Sine and cosine for each rope, `[T, pairs]`: every layer turns by the same ones.
    angles: Vec<Vec<(f32, f32)>>,
    tiles: Vec<Tile>,
    activations: Activations,
    level: Level,
}

impl Program {
    /// The segment has been checked.
    pub(crate) fn new(segment: &Segment, max: &MaxShape) -> Self {
        let plan = MemoryPlan::new(segment, max);
        let angles = segment.ropes.iter().map(|rope| Vec::with_capacity(max.rows * rope.frequencies.len()));
        Self {
            scratch: vec![0.0; plan.length],
            angles: angles.collect(),
            tiles: Vec::new(),
            activations: Activations::new(),
            plan,
            segment: segment.clone(),
            max: *max,
            level: Level::detect(),
        }
    }

    pub(crate) fn byte_count(&self) -> u64 {
        let angles: usize =
            self.angles.iter().map(|angles| angles.capacity() * size_of::<(f32, f32)>()).sum();
        (self.scratch.len() * size_of::<f32>() + angles) as u64
    }

    /// Computes a step. The batch has been checked.
    pub(crate) fn run(
        &mut self,
        mut device: Device<'_>,
        batch: &Batch<'_>,
        handoff: Option<&[f32]>,
        out: &mut StepOut,
    ) {
        let _awake = device.pool.keep_awake();
        out.logits.clear();
        out.hidden.clear();
        out.handoff.clear();
        for (rope, angles) in self.segment.ropes.iter().zip(&mut self.angles) {
            ops::angles(rope, batch.positions, angles);
        }
        tiles(batch, &mut self.tiles);
        if let (Some(input), Some(handoff)) = (self.segment.input, handoff) {
            let range = self.range(input, batch);
            self.scratch[range].copy_from_slice(handoff);
        }
        for index in 0..self.segment.ops.len() {
            let op = self.segment.ops[index].clone();
            self.step(&op, &mut device, batch, out);
        }
        if let Some(output) = self.segment.output {
            out.handoff.extend_from_slice(&self.scratch[self.range(output, batch)]);
        }
    }

    /// Where a buffer's rows of this step lie.
    fn range(&self, buffer: Buf, batch: &Batch<'_>) -> Range<usize> {
        let shape = self.segment.shape(buffer);
        let rows = match shape.rows {
            Rows::Tokens => batch.rows(),
            Rows::Logits => batch.logit_rows.len(),
            Rows::Hidden => batch.hidden_rows.len(),
        };
        let offset = self.plan.offsets[usize::from(buffer.0)];
        offset..offset + rows * shape.columns
    }

    fn columns(&self, buffer: Buf) -> usize {
        self.segment.shape(buffer).columns
    }

    fn two(&mut self, read: Buf, write: Buf, batch: &Batch<'_>) -> (&[f32], &mut [f32]) {
        let (read, write) = (self.range(read, batch), self.range(write, batch));
        two(&mut self.scratch, read, write)
    }

    fn step(&mut self, op: &Op, device: &mut Device<'_>, batch: &Batch<'_>, out: &mut StepOut) {
        let (pool, weights) = (device.pool, device.weights);
        let weight_of = |id: &WeightId| &weights[id.0 as usize];
        let vector_of = |id: &WeightId| weight_of(id).vector().expect("checked when it was compiled");
        match op {
            Op::Embed { weight, out } => {
                let (weight, range) = (weight_of(weight), self.range(*out, batch));
                for_rows(pool, &mut self.scratch[range], weight.columns, &|row, out| {
                    weight.row(batch.ids[row] as usize, out);
                });
            }
            Op::Norm { x, add, weight, epsilon, out } => {
                let addend = add.map_or(0..0, |add| self.range(add, batch));
                let (x, out) = (self.range(*x, batch), self.range(*out, batch));
                let (addend, x, out) = three(&mut self.scratch, addend, x, out);
                let addend = add.is_some().then_some(addend);
                ops::norm(pool, x, addend, vector_of(weight), *epsilon, out);
            }
            Op::Linear { x, weight, bias, out } => {
                let (read, write) = (self.range(*x, batch), self.range(*out, batch));
                let (x, out) = two(&mut self.scratch, read, write);
                weight_of(weight).multiply(pool, &mut self.activations, x, out);
                if let Some(bias) = bias {
                    ops::add_to_rows(vector_of(bias), out);
                }
            }
            Op::HeadNorm { x, weight, heads, size: _, epsilon } => {
                let (range, columns) = (self.range(*x, batch), self.columns(*x));
                let weight = vector_of(weight);
                ops::head_norm(pool, &mut self.scratch[range], columns, heads.clone(), weight, *epsilon);
            }
            Op::RopeKv { qkv, rope, layer, heads } => {
                let range = self.range(*qkv, batch);
                let qkv = &mut self.scratch[range];
                ops::rope(pool, &self.segment.ropes[*rope], &self.angles[*rope], heads, qkv);
                let kv = device.kv.as_mut().expect("checked when it was compiled");
                let layer = usize::from(*layer - kv.spec().layers.start);
                kv.write_rows(pool, layer, heads, qkv, batch.slots);
            }
            Op::Attend { qkv, layer, heads, scale, out } => {
                let cache: &PagedKv = device.kv.as_ref().expect("checked when it was compiled");
                let layer = usize::from(*layer - cache.spec().layers.start);
                let (read, write) = (self.range(*qkv, batch), self.range(*out, batch));
                let (qkv, out) = two(&mut self.scratch, read, write);
                let (heads, scale, tiles) = (*heads, *scale, &self.tiles);
                Attention { qkv, heads, scale, cache, layer, batch, tiles }.run(pool, self.level, out);
            }
            Op::SwiGlu { x, out } => {
                let columns = self.columns(*out);
                let (x, out) = self.two(*x, *out, batch);
                ops::swiglu(pool, x, columns, out);
            }
            Op::Add { x, out } => {
                let (x, out) = self.two(*x, *out, batch);
                ops::add(x, out);
            }
            Op::Gather { x, out } => {
                let columns = self.columns(*x);
                let rows = match self.segment.shape(*out).rows {
                    Rows::Hidden => batch.hidden_rows,
                    Rows::Logits | Rows::Tokens => batch.logit_rows,
                };
                let (x, out) = self.two(*x, *out, batch);
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(columns)) {
                    out.copy_from_slice(&x[*row as usize * columns..][..columns]);
                }
            }
            Op::Logits { x, weight } => {
                let (x, weight) = (&self.scratch[self.range(*x, batch)], weight_of(weight));
                out.logits.resize(batch.logit_rows.len() * weight.rows, 0.0);
                weight.multiply(pool, &mut self.activations, x, &mut out.logits);
            }
            Op::Hidden { x } => out.hidden.extend_from_slice(&self.scratch[self.range(*x, batch)]),
        }
    }
}
