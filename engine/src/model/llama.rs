//! The Llama architecture: RMS norm, grouped-query attention with RoPE, SwiGLU.

use super::ModelError;
use super::attention::{Row, attend_rows};
use super::config::ModelConfig;
use super::kv::SequenceKv;
use super::math::{add, rms_norm, swiglu};
use super::rope::Rope;
use super::weights::{Matrix, Tensors};
use atlas_engine_core::{SequenceId, StepPlan};
use atlas_format::Gguf;
use atlas_kernels::{MappedFile, Pool};
use std::collections::HashMap;
use std::sync::Arc;

struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    attention_output: Matrix,
    feed_forward_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A loaded model with the KV caches of the sequences that run on it.
pub struct Llama {
    config: ModelConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// `None` where the embedding serves as output too.
    output: Option<Matrix>,
    rope: Rope,
    kv: HashMap<SequenceId, SequenceKv>,
    pool: Pool,
}

impl Llama {
    /// Finds the weights in a mapped file, which stays mapped, and starts the threads that compute with them.
    ///
    /// # Errors
    /// The architecture is another one, a tensor is missing or wrong, or a thread cannot be started.
    pub fn load(header: &Gguf, file: &Arc<MappedFile>, threads: usize) -> Result<Self, ModelError> {
        let config = ModelConfig::from_gguf(header)?;
        let tensors = Tensors::new(header, file);
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let layers = (0..config.layers)
            .map(|index| Layer::load(&tensors, &config, index))
            .collect::<Result<_, _>>()?;
        let output = tensors.contains("output.weight");
        let output = output.then(|| tensors.matrix("output.weight", vocabulary, hidden)).transpose()?;
        let factors = tensors.contains("rope_freqs.weight");
        let factors =
            factors.then(|| tensors.vector("rope_freqs.weight", config.rope_size / 2)).transpose()?;
        Ok(Self {
            embedding: tensors.matrix("token_embd.weight", vocabulary, hidden)?,
            layers,
            output_norm: tensors.vector("output_norm.weight", hidden)?,
            output,
            rope: Rope::new(&config, factors.as_deref()),
            kv: HashMap::new(),
            pool: Pool::new(threads)?,
            config,
        })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of weights in the file.
    pub fn weight_bytes(&self) -> usize {
        let of_layer = |layer: &Layer| {
            let Layer {
                query,
                key,
                value,
                attention_output,
                gate,
                up,
                down,
                attention_norm: _,
                feed_forward_norm: _,
            } = layer;
            [query, key, value, attention_output, gate, up, down]
                .map(Matrix::byte_count)
                .iter()
                .sum::<usize>()
        };
        let output = self.output.as_ref().map_or(0, Matrix::byte_count);
        self.embedding.byte_count() + output + self.layers.iter().map(of_layer).sum::<usize>()
    }

    /// Forgets a sequence's keys and values.
    pub fn release(&mut self, sequence: SequenceId) {
        self.kv.remove(&sequence);
    }

    /// Computes a step: the logits of each chunk that wants them, in the plan's order.
    ///
    /// # Shapes
    /// T rows, one a token of the plan; each result has one logit a vocabulary entry.
    ///
    /// # Errors
    /// None for a model that loaded.
    pub fn forward(&mut self, plan: &StepPlan) -> Result<Vec<Vec<f32>>, ModelError> {
        let tokens: Vec<u32> = plan.chunks.iter().flat_map(|chunk| chunk.tokens.iter().copied()).collect();
        let places: Vec<(SequenceId, usize)> = plan
            .chunks
            .iter()
            .flat_map(|chunk| (0..chunk.tokens.len()).map(|index| (chunk.sequence, chunk.start + index)))
            .collect();
        for (sequence, _) in &places {
            self.kv.entry(*sequence).or_insert_with(|| SequenceKv::new(&self.config));
        }
        let angles: Vec<_> = places.iter().map(|(_, position)| self.rope.angles(*position)).collect();
        let (pool, epsilon) = (&self.pool, self.config.norm_epsilon);
        let mut x = self.embedding.rows(&tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, epsilon);
            let (mut queries, mut keys) =
                (layer.query.apply(pool, &normed)?, layer.key.apply(pool, &normed)?);
            let values = layer.value.apply(pool, &normed)?;
            let (query_size, kv_size) = (queries.len() / tokens.len(), keys.len() / tokens.len());
            for (row, angles) in queries.chunks_exact_mut(query_size).zip(&angles) {
                self.rope.turn(row, angles);
            }
            let kv_rows = keys.chunks_exact_mut(kv_size).zip(values.chunks_exact(kv_size));
            for (((key, value), angles), (sequence, position)) in kv_rows.zip(&angles).zip(&places) {
                self.rope.turn(key, angles);
                if let Some(kv) = self.kv.get_mut(sequence) {
                    kv.write(index, *position, key, value);
                }
            }
            let rows: Vec<Row<'_>> = places
                .iter()
                .filter_map(|(sequence, position)| {
                    self.kv.get(sequence).map(|kv| Row { kv, position: *position })
                })
                .collect();
            let attended = attend_rows(pool, &self.config, index, &queries, &rows);
            add(&mut x, &layer.attention_output.apply(pool, &attended)?);
            let normed = rms_norm(&x, &layer.feed_forward_norm, epsilon);
            let mut gate = layer.gate.apply(pool, &normed)?;
            swiglu(&mut gate, &layer.up.apply(pool, &normed)?);
            add(&mut x, &layer.down.apply(pool, &gate)?);
        }
        self.logits(plan, &x)
    }

    /// Logits of the last row of each chunk that wants them.
    fn logits(&self, plan: &StepPlan, x: &[f32]) -> Result<Vec<Vec<f32>>, ModelError> {
        let hidden = self.config.hidden;
        let mut wanted = Vec::new();
        let mut end = 0;
        for chunk in &plan.chunks {
            end += chunk.tokens.len() * hidden;
            if chunk.wants_logits {
                wanted.extend_from_slice(&x[end - hidden..end]);
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let normed = rms_norm(&wanted, &self.output_norm, self.config.norm_epsilon);
        let logits = self.output.as_ref().unwrap_or(&self.embedding).apply(&self.pool, &normed)?;
        Ok(logits.chunks_exact(self.config.vocabulary).map(<[f32]>::to_vec).collect())
    }
}

impl Layer {
    fn load(tensors: &Tensors<'_>, config: &ModelConfig, index: usize) -> Result<Self, ModelError> {
        let ModelConfig { hidden, feed_forward, heads, kv_heads, head_size, .. } = *config;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let matrix = |part: &str, rows, columns| tensors.matrix(&name(part), rows, columns);
        Ok(Self {
            attention_norm: tensors.vector(&name("attn_norm"), hidden)?,
            query: matrix("attn_q", heads * head_size, hidden)?,
            key: matrix("attn_k", kv_heads * head_size, hidden)?,
            value: matrix("attn_v", kv_heads * head_size, hidden)?,
            attention_output: matrix("attn_output", hidden, heads * head_size)?,
            feed_forward_norm: tensors.vector(&name("ffn_norm"), hidden)?,
            gate: matrix("ffn_gate", feed_forward, hidden)?,
            up: matrix("ffn_up", feed_forward, hidden)?,
            down: matrix("ffn_down", hidden, feed_forward)?,
        })
    }
}
