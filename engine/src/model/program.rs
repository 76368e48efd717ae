//! From a model's numbers and tensors to an op program: Llama and its relatives.
//!
//! RMS norm, grouped-query attention with RoPE, SwiGLU. Qwen 2 adds biases to queries, keys and values, Qwen 3 norms
//! each head of queries and keys; whether a file has them is seen from its tensors.

use super::ModelError;
use super::config::ModelConfig;
use super::tensors::Tensors;
use atlas_engine_core::backend::{Backend, RawTensor};
use atlas_engine_core::program::{Buf, Heads, Op, Rope, Rows, Segment, WeightId};
use std::ops::Range;

/// Divisors of RoPE's frequencies, in GGUF files of Llama 3.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loading {
    /// So many bytes more have arrived on the last device.
    Bytes(u64),
    /// The weights of so many layers are loaded.
    Layers(u16),
}

/// Loads the weights of some layers into a backend, with the embedding before the first layer and the head after the
/// last, and says what to compute with them. `tell` hears how far loading has come.
///
/// # Errors
/// A tensor is missing or wrong, or the backend refuses one.
pub fn build(
    config: &ModelConfig,
    tensors: &Tensors,
    backend: &mut dyn Backend,
    layers: Range<u16>,
    tell: &mut dyn FnMut(Loading),
) -> Result<Segment, ModelError> {
    let mut builder = Builder { config, tensors, backend, tell, segment: Segment::default() };
    builder.segment.layers = layers.clone();
    builder.segment.ropes.push(rope(config, tensors)?);
    let (vocabulary, hidden) = (config.vocabulary, config.hidden);
    let x = builder.rows(hidden);
    let mut embedding = None;
    if layers.start == 0 {
        let weight = builder.load(&[tensors.matrix("token_embd.weight", vocabulary, hidden)?])?;
        builder.segment.push(Op::Embed { weight, out: x });
        embedding = Some(weight);
    } else {
        builder.segment.input = Some(x);
    }
    let mut add = None;
    for layer in layers.clone() {
        let attended = builder.attention(layer, x, add)?;
        add = Some(builder.feed_forward(layer, x, attended)?);
        (builder.tell)(Loading::Layers(layer + 1));
    }
    if usize::from(layers.end) == config.layers {
        builder.head(x, add, embedding)?;
    } else {
        if let Some(add) = add {
            builder.segment.push(Op::Add { x: add, out: x });
        }
        builder.segment.output = Some(x);
    }
    Ok(builder.segment)
}

/// Frequencies from the base; the model's numbers or `rope_freqs.weight` (Llama 3's scaling) have one divisor a pair.
fn rope(config: &ModelConfig, tensors: &Tensors) -> Result<Rope, ModelError> {
    let pairs = config.rope_size / 2;
    let factors = tensors.contains(ROPE_FACTORS);
    let factors = factors.then(|| tensors.values(ROPE_FACTORS, pairs)).transpose()?;
    let frequencies = (0..pairs).map(|pair| {
        let frequency = 1.0 / config.rope_base.powf(2.0 * pair as f32 / config.rope_size as f32);
        let both = [&factors, &config.rope_factors].into_iter().flatten();
        both.fold(frequency, |frequency, factors| frequency / factors[pair]) / config.rope_divisor
    });
    Ok(Rope { frequencies: frequencies.collect(), pairing: config.pairing })
}

struct Builder<'a> {
    config: &'a ModelConfig,
    tensors: &'a Tensors,
    backend: &'a mut dyn Backend,
    tell: &'a mut dyn FnMut(Loading),
    segment: Segment,
}

impl Builder<'_> {
    fn load(&mut self, parts: &[RawTensor]) -> Result<WeightId, ModelError> {
        Ok(self.backend.load_telling(parts, &mut |bytes| (self.tell)(Loading::Bytes(bytes)))?)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<WeightId, ModelError> {
        let vector = self.tensors.vector(name, length)?;
        self.load(&[vector])
    }

    fn rows(&mut self, columns: usize) -> Buf {
        self.segment.buffer(Rows::Tokens, columns)
    }

    fn norm(&mut self, name: &str, x: Buf, add: Option<Buf>) -> Result<Buf, ModelError> {
        let weight = self.vector(name, self.config.hidden)?;
        let shape = self.segment.shape(x);
        let out = self.segment.buffer(shape.rows, shape.columns);
        self.segment.push(Op::Norm { x, add, weight, epsilon: self.config.norm_epsilon, out });
        Ok(out)
    }

    fn linear(&mut self, x: Buf, parts: &[RawTensor], bias: Option<WeightId>) -> Result<Buf, ModelError> {
        let out = self.rows(parts.iter().map(|part| part.rows).sum());
        let weight = self.load(parts)?;
        self.segment.push(Op::Linear { x, weight, bias, out });
        Ok(out)
    }

    /// Attention of a layer after `x += add`; its result is still to be added to `x`.
    fn attention(&mut self, layer: u16, x: Buf, add: Option<Buf>) -> Result<Buf, ModelError> {
        let (tensors, hidden) = (self.tensors, self.config.hidden);
        let ModelConfig { heads: query, kv_heads: kv, head_size: size, norm_epsilon: epsilon, .. } =
            *self.config;
        let heads = Heads { query, kv, size };
        let name = |part: &str| format!("blk.{layer}.{part}");
        let normed = self.norm(&name("attn_norm.weight"), x, add)?;
        let parts = [("attn_q", query * size), ("attn_k", kv * size), ("attn_v", kv * size)];
        let weights =
            parts.map(|(part, rows)| tensors.matrix(&name(&format!("{part}.weight")), rows, hidden));
        let [q, k, v] = weights;
        let bias = tensors.contains(&name("attn_q.bias")).then(|| {
            let [q, k, v] = parts.map(|(part, rows)| tensors.vector(&name(&format!("{part}.bias")), rows));
            self.load(&[q?, k?, v?])
        });
        let bias = bias.transpose()?;
        let qkv = self.linear(normed, &[q?, k?, v?], bias)?;
        for (part, heads) in [("attn_q_norm.weight", 0..query), ("attn_k_norm.weight", query..query + kv)] {
            if tensors.contains(&name(part)) {
                let weight = self.vector(&name(part), size)?;
                self.segment.push(Op::HeadNorm { x: qkv, weight, heads, size, epsilon });
            }
        }
        self.segment.push(Op::RopeKv { qkv, rope: 0, layer, heads });
        let attended = self.rows(query * size);
        // Queries times keys have the factor twice, wherever it is multiplied in.
        let scale = self.config.rope_attention.powi(2) / (size as f32).sqrt();
        self.segment.push(Op::Attend { qkv, layer, heads, scale, out: attended });
        let output = tensors.matrix(&name("attn_output.weight"), hidden, query * size)?;
        self.linear(attended, &[output], None)
    }

    /// The feed-forward part of a layer after `x += add`; its result is still to be added to `x`.
    fn feed_forward(&mut self, layer: u16, x: Buf, add: Buf) -> Result<Buf, ModelError> {
        let ModelConfig { hidden, feed_forward: width, .. } = *self.config;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let normed = self.norm(&name("ffn_norm"), x, Some(add))?;
        let [gate, up] = ["ffn_gate", "ffn_up"].map(|part| self.tensors.matrix(&name(part), width, hidden));
        let gate_up = self.linear(normed, &[gate?, up?], None)?;
        let gated = self.rows(width);
        self.segment.push(Op::SwiGlu { x: gate_up, out: gated });
        let down = self.tensors.matrix(&name("ffn_down"), hidden, width)?;
        self.linear(gated, &[down], None)
    }

    /// Logits of the rows that want them, and normed hidden states of those that want these.
    fn head(&mut self, x: Buf, add: Option<Buf>, embedding: Option<WeightId>) -> Result<(), ModelError> {
        let ModelConfig { hidden, vocabulary, norm_epsilon: epsilon, .. } = *self.config;
        if let Some(add) = add {
            self.segment.push(Op::Add { x: add, out: x });
        }
        let weight = self.vector("output_norm.weight", hidden)?;
        // Small models use the embedding twice.
        let own = self.tensors.contains("output.weight");
        let output = match embedding.filter(|_| !own) {
            Some(embedding) => embedding,
            None => {
                let name = if own { "output.weight" } else { "token_embd.weight" };
                let output = self.tensors.matrix(name, vocabulary, hidden)?;
                self.load(&[output])?
            }
        };
        for rows in [Rows::Logits, Rows::Hidden] {
            let [wanted, normed] = [hidden, hidden].map(|columns| self.segment.buffer(rows, columns));
            self.segment.push(Op::Gather { x, out: wanted });
            self.segment.push(Op::Norm { x: wanted, add: None, weight, epsilon, out: normed });
            self.segment.push(match rows {
                Rows::Hidden => Op::Hidden { x: normed },
                Rows::Logits | Rows::Tokens => Op::Logits { x: normed, weight: output },
            });
        }
        Ok(())
    }
}
