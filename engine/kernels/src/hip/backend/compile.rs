//! From a segment to a program: its launches and the memory they need.

use super::inputs::{Counts, Inputs, listed_rows};
use super::lower::Compiler;
use super::{HipBackend, shape};
use crate::hip::arena::Span;
use crate::hip::attention::{Layer, PARTITION};
use crate::hip::device::Pinned;
use crate::hip::graph::Graph;
use crate::hip::kernels::HEAD_SIZES;
use crate::hip::products::{Blocks, Matrix, Output};
use atlas_engine_core::backend::DeviceError;
use atlas_engine_core::memory_plan::MemoryPlan;
use atlas_engine_core::program::{BLOCK_TOKENS, Buf, Heads, MaxShape, Op, Rows, Segment};
use std::collections::HashMap;

/// A launch, or several of one kind, whose rows are counted when the step comes.
pub enum Launch {
    Embed {
        w: Matrix,
        out: Span,
    },
    Norm {
        x: Span,
        add: Option<Span>,
        weight: Span,
        epsilon: f32,
        out: Span,
        blocks: bool,
        d: u32,
        rows: Rows,
    },
    /// q8 of an activation; `after_tiles`: only where tiles were attended, which do not write it themselves.
    Quantize {
        x: Span,
        k: u32,
        rows: Rows,
        after_tiles: bool,
    },
    Product {
        w: Matrix,
        x: Span,
        out: Output,
        rows: Rows,
    },
    /// h16 of an activation, for products of many rows with float weights.
    Halve {
        x: Span,
        k: u32,
        rows: Rows,
    },
    HeadNorm {
        x: Span,
        weight: Span,
        size: u32,
        heads: u32,
        stride: u32,
        epsilon: f32,
    },
    RopeKv {
        qkv: Span,
        rope: usize,
        halves: bool,
        layer: Layer,
    },
    Attend {
        qkv: Span,
        layer: Layer,
        scale: f32,
        out: Span,
        blocks: bool,
    },
    Swiglu {
        x: Span,
        out: Span,
        f: u32,
        rows: Rows,
        blocks: bool,
    },
    Add {
        x: Span,
        out: Span,
        columns: u32,
        rows: Rows,
    },
    Gather {
        x: Span,
        out: Span,
        d: u32,
        rows: Rows,
    },
}

/// What a step brings back.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    /// On the card.
    pub span: Span,
    /// f32 a row.
    pub columns: u32,
}

/// A compiled segment.
pub struct Program {
    pub launches: Vec<Launch>,
    pub inputs: Inputs,
    pub blocks: Blocks,
    pub halves: Blocks,
    pub partials: Span,
    pub max_partitions: u32,
    pub vocabulary: u32,
    pub input: Option<(StepResult, Pinned)>,
    pub logits: Option<StepResult>,
    pub hidden: Option<StepResult>,
    pub output: Option<StepResult>,
    pub results_host: Pinned,
    /// By the counts that the launches depend on; `None` where capturing failed.
    pub graphs: HashMap<Counts, Option<Graph>>,
    pub replayed: u64,
}

impl Program {
    pub fn replayed(&self) -> u64 {
        self.replayed
    }
}

impl HipBackend {
    pub(super) fn compile_segment(
        &mut self,
        segment: &Segment,
        max: &MaxShape,
    ) -> Result<Program, DeviceError> {
        let before = self.arena.left();
        let plan = MemoryPlan::new(segment, max);
        let scratch = self.arena.take("activations", plan.length as u64 * 4)?;
        let mut compiler = Compiler {
            segment,
            weights: &self.weights,
            offsets: plan.offsets,
            scratch,
            launches: Vec::new(),
            quantized: None,
            halved: None,
        };
        let (mut logits, mut hidden) = (None, None);
        let mut vocabulary = u32::MAX;
        let mut heads = None;
        for (at, op) in segment.ops.iter().enumerate() {
            match op {
                Op::Embed { weight, out } => {
                    let w = compiler.single(*weight)?;
                    vocabulary = vocabulary.min(w.n);
                    compiler.expect_columns("embedded columns", *out, w.k as usize)?;
                    let out = compiler.span(*out);
                    compiler.launches.push(Launch::Embed { w, out });
                }
                Op::Logits { x, weight } => {
                    let (n, _) = compiler.matrix(*weight)?;
                    let bytes = max.logit_rows as u64 * u64::from(n) * 4;
                    let span = self.arena.take("logits", bytes)?;
                    compiler.product(*x, *weight, None, span, n)?;
                    logits = Some(StepResult { span, columns: n });
                }
                Op::Hidden { x } => {
                    let columns = segment.shape(*x).columns as u32;
                    hidden = Some(StepResult { span: compiler.span(*x), columns });
                }
                Op::RopeKv { layer, heads: of, .. } | Op::Attend { layer, heads: of, .. } => {
                    let layer = self.kv.as_ref().map(|kv| attention_layer(kv, *layer, of));
                    let layer = layer.ok_or(shape("KV caches", 0, 1))??;
                    heads = Some(*of);
                    compiler.attention(at, op, layer)?;
                }
                other => compiler.plain(at, other)?,
            }
        }
        let launches = std::mem::take(&mut compiler.launches);
        let widest = |which: fn(&Launch) -> Option<u32>| launches.iter().filter_map(which).max().unwrap_or(0);
        let k = u64::from(widest(|launch| match launch {
            Launch::Product { w, .. } => Some(w.k),
            _ => None,
        }));
        let whole = |buffer: Buf| StepResult {
            span: compiler.span(buffer),
            columns: segment.shape(buffer).columns as u32,
        };
        let (input, output) = (segment.input.map(whole), segment.output.map(whole));
        let rows = max.rows.max(max.logit_rows) as u64;
        let blocks = Blocks {
            elements: self.arena.take("quantized activations", rows * k)?,
            scales: self.arena.take("quantized activations", rows * k / 32 * 8)?,
        };
        let halves = Blocks {
            elements: self.arena.take("half activations", rows * k * 2)?,
            scales: self.arena.take("half activations", rows * k / 32 * 8)?,
        };
        let max_partitions = (max.blocks_per_sequence * BLOCK_TOKENS).div_ceil(PARTITION as usize) as u32;
        let partials = heads.map_or(0, |heads: Heads| {
            listed_rows(max) as u64
                * heads.query as u64
                * u64::from(max_partitions)
                * (heads.size as u64 + 2)
                * 4
        });
        let partials = self.arena.take("partial sums of attention", partials)?;
        let inputs = Inputs::new(&mut self.device, &mut self.arena, max, &segment.ropes)?;
        let bytes_of = |result: &Option<StepResult>, rows: usize| {
            result.map_or(0, |result| rows * result.columns as usize * 4)
        };
        let results = bytes_of(&logits, max.logit_rows)
            + bytes_of(&hidden, max.hidden_rows)
            + bytes_of(&output, max.rows);
        let results_host = self.device.allocate_pinned(results)?;
        let input = match input {
            Some(result) => Some((result, self.device.allocate_pinned(bytes_of(&input, max.rows))?)),
            None => None,
        };
        self.memory.scratch += before - self.arena.left();
        Ok(Program {
            launches,
            inputs,
            blocks,
            halves,
            partials,
            max_partitions,
            vocabulary,
            input,
            logits,
            hidden,
            output,
            results_host,
            graphs: HashMap::new(),
            replayed: 0,
        })
    }
}

fn attention_layer(kv: &super::Kv, layer: u16, heads: &Heads) -> Result<Layer, DeviceError> {
    let spec = &kv.spec;
    for (what, found, expected) in
        [("key heads", heads.kv, spec.kv_heads), ("elements of a head", heads.size, spec.head_size)]
    {
        if found != expected {
            return Err(shape(what, found, expected));
        }
    }
    if !HEAD_SIZES.contains(&heads.size) {
        return Err(shape("elements of a head (32, 64, 80, 96, 128 and 256 have kernels)", heads.size, 256));
    }
    if heads.kv == 0 || !heads.query.is_multiple_of(heads.kv) {
        return Err(shape("query heads", heads.query, heads.kv));
    }
    let planes = kv.plane(layer, false).zip(kv.plane(layer, true));
    let (keys, values) = planes.ok_or(shape(
        "a layer of the KV cache",
        layer.into(),
        usize::from(spec.layers.end).max(1) - 1,
    ))?;
    Ok(Layer {
        cache: kv.cache,
        keys,
        values,
        blocks: spec.blocks,
        query_heads: heads.query as u32,
        kv_heads: heads.kv as u32,
        size: heads.size as u32,
    })
}
