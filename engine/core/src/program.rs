//! Op programs: what a model computes, as data.
//!
//! An architecture is a function from its numbers to a [`Segment`]; a [`crate::backend::Backend`] compiles segments
//! once and runs them every step. Nothing here computes, and nothing here knows a device.
//!
//! # Row invariance
//! A row of every op's result is a function of its own inputs alone: how many rows, sequences or chunks a step has,
//! and how many threads share it out, changes no bit. Attention reduces over the positions of a row in partitions of
//! [`PARTITION_TOKENS`] absolute positions, partitions in ascending order. This is what makes batches, prefix hits,
//! preemption, speculation and resumed answers give the same text.
//!
//! # Shapes
//! T rows (tokens of a step), S sequences, R logit rows, H hidden rows. Activations are row-major f32.

use std::ops::Range;

/// Positions a block of the KV cache holds.
pub const BLOCK_TOKENS: usize = 16;
/// Positions that attention sums up before it goes on to the next sum; a multiple of [`BLOCK_TOKENS`].
pub const PARTITION_TOKENS: usize = 64;

/// A weight that a backend has loaded. Only backends make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// A virtual buffer of activations: an index into [`Segment::buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buf(pub u16);

/// How many rows a buffer has in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// T: one a token.
    Tokens,
    /// R: one for each wanted row of logits.
    Logits,
    /// H: one for each wanted hidden state.
    Hidden,
}

/// A buffer's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufShape {
    /// Rows in a step.
    pub rows: Rows,
    /// f32 a row.
    pub columns: usize,
}

/// Heads of an attention layer. A row of its `qkv` buffer is `[query + 2 * kv, size]`: queries, keys, values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key heads, and as many value heads; divides `query`.
    pub kv: usize,
    /// Elements a head.
    pub size: usize,
}

impl Heads {
    /// Query heads that share a key head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.query / self.kv
    }

    /// Columns of a `qkv` buffer.
    #[must_use]
    pub fn qkv_columns(&self) -> usize {
        (self.query + 2 * self.kv) * self.size
    }
}

/// Which elements of a head RoPE turns together, of n pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Elements 2i and 2i + 1, as GGUF stores Llama's rows.
    Interleaved,
    /// Elements i and n + i, as Hugging Face stores them and GGUF stores Qwen's (NeoX).
    Halves,
}

/// One model's rotary position embedding: pair i at position p turns by `p * frequencies[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians a position, all scaling applied; elements of a head beyond the pairs stay as they are.
    pub frequencies: Vec<f32>,
    /// Which elements make a pair.
    pub pairing: Pairing,
}

/// One step of a program. "In place" ops change a buffer that an earlier op wrote.
///
/// Weights are `[n, k]` with rows of k; vectors are `[n, 1]` and always F32.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `out[t] = weight[ids[t]]`, `[T, d]`.
    Embed {
        /// `[vocabulary, d]`.
        weight: WeightId,
        /// Result.
        out: Buf,
    },
    /// `x += add` in place where given, then `out = x / sqrt(mean(x^2) + epsilon) * weight`.
    Norm {
        /// Residual stream, `[_, d]`.
        x: Buf,
        /// What the layer before has to add to it.
        add: Option<Buf>,
        /// `[d, 1]`.
        weight: WeightId,
        /// Keeps the root away from 0.
        epsilon: f32,
        /// Result; another buffer than `x`.
        out: Buf,
    },
    /// `out[t] = weight x[t] + bias`.
    Linear {
        /// `[_, k]`.
        x: Buf,
        /// `[n, k]`, possibly made of several parts.
        weight: WeightId,
        /// `[n, 1]`.
        bias: Option<WeightId>,
        /// `[_, n]`.
        out: Buf,
    },
    /// RMS norm of single heads in place: of heads `heads` of each row of `x`, over the head's own elements (Qwen3).
    HeadNorm {
        /// `[T, heads of all kinds * size]`.
        x: Buf,
        /// `[size, 1]`.
        weight: WeightId,
        /// Which heads.
        heads: Range<usize>,
        /// Elements a head.
        size: usize,
        /// Keeps the root away from 0.
        epsilon: f32,
    },
    /// Turns queries and keys in place, then writes keys and values to `slots[t]` of the layer's cache.
    RopeKv {
        /// `[T, qkv_columns]`.
        qkv: Buf,
        /// Index into [`Segment::ropes`].
        rope: usize,
        /// Layer of the KV cache.
        layer: u16,
        /// Shape of a row.
        heads: Heads,
    },
    /// Causal grouped-query attention: `out[t] = softmax(scale q K^T) V` over positions `0..=positions[t]` of the
    /// row's own sequence, read through the block table.
    Attend {
        /// `[T, qkv_columns]`; only queries are read.
        qkv: Buf,
        /// Layer of the KV cache.
        layer: u16,
        /// Shape of a row.
        heads: Heads,
        /// Multiplies scores.
        scale: f32,
        /// `[T, query * size]`.
        out: Buf,
    },
    /// `out = silu(x[.., ..f]) * x[.., f..]`.
    SwiGlu {
        /// `[_, 2f]`: gate, then up.
        x: Buf,
        /// `[_, f]`.
        out: Buf,
    },
    /// `out += x` in place.
    Add {
        /// What is added.
        x: Buf,
        /// What it is added to.
        out: Buf,
    },
    /// Picks the batch's logit rows or hidden rows, whichever kind of buffer `out` is.
    Gather {
        /// `[T, d]`.
        x: Buf,
        /// `[R, d]` or `[H, d]`.
        out: Buf,
    },
    /// `StepOut::logits = weight x`, `[R, n]`.
    Logits {
        /// `[R, k]`.
        x: Buf,
        /// `[n, k]`.
        weight: WeightId,
    },
    /// `StepOut::hidden = x`, `[H, d]`.
    Hidden {
        /// `[H, d]`.
        x: Buf,
    },
}

impl Op {
    /// The buffers that the op reads, those changed in place included.
    #[must_use]
    pub fn reads(&self) -> [Option<Buf>; 2] {
        match self {
            Self::Embed { .. } => [None, None],
            Self::Norm { x, add, .. } => [Some(*x), *add],
            Self::Add { x, out } => [Some(*x), Some(*out)],
            Self::Linear { x, .. }
            | Self::HeadNorm { x, .. }
            | Self::SwiGlu { x, .. }
            | Self::Gather { x, .. }
            | Self::Logits { x, .. }
            | Self::Hidden { x } => [Some(*x), None],
            Self::RopeKv { qkv, .. } | Self::Attend { qkv, .. } => [Some(*qkv), None],
        }
    }

    /// The buffer that the op writes anew.
    #[must_use]
    pub fn writes(&self) -> Option<Buf> {
        match self {
            Self::Embed { out, .. }
            | Self::Norm { out, .. }
            | Self::Linear { out, .. }
            | Self::Attend { out, .. }
            | Self::SwiGlu { out, .. }
            | Self::Gather { out, .. } => Some(*out),
            Self::HeadNorm { .. }
            | Self::RopeKv { .. }
            | Self::Add { .. }
            | Self::Logits { .. }
            | Self::Hidden { .. } => None,
        }
    }
}

/// The part of a model that one device runs: consecutive layers, with the embedding or the head where it has them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segment {
    /// Layers of the KV cache that its ops touch.
    pub layers: Range<u16>,
    /// Shapes of the buffers; each is written anew by one op, or is `input`.
    pub buffers: Vec<BufShape>,
    /// Rotary embeddings that its ops name.
    pub ropes: Vec<Rope>,
    /// In order.
    pub ops: Vec<Op>,
    /// `[T, d]`: filled from another segment's handoff; `None` where the segment begins with token ids.
    pub input: Option<Buf>,
    /// `[T, d]`: handed to the next segment; `None` where the segment ends with logits.
    pub output: Option<Buf>,
}

impl Segment {
    /// Adds a buffer.
    ///
    /// # Panics
    /// A segment has 65,536 buffers, which is beyond thousands of layers.
    pub fn buffer(&mut self, rows: Rows, columns: usize) -> Buf {
        let index = u16::try_from(self.buffers.len()).expect("fewer buffers than 65536");
        self.buffers.push(BufShape { rows, columns });
        Buf(index)
    }

    /// Adds an op.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// The shape of a buffer of this segment.
    #[must_use]
    pub fn shape(&self, buffer: Buf) -> BufShape {
        self.buffers[usize::from(buffer.0)]
    }
}

/// The largest step that a compiled program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxShape {
    /// T.
    pub rows: usize,
    /// S.
    pub sequences: usize,
    /// R.
    pub logit_rows: usize,
    /// H.
    pub hidden_rows: usize,
    /// Columns of the block table.
    pub blocks_per_sequence: usize,
}

impl MaxShape {
    pub(crate) fn rows_of(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.rows,
            Rows::Logits => self.logit_rows,
            Rows::Hidden => self.hidden_rows,
        }
    }
}
