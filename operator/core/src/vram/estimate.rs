//! The memory of one card that a model needs at a context and a batch.
//!
//! weights + KV cache + activations + runtime. Every term grows with what it depends on, so that a search for the
//! largest context or batch may halve.

use atlas_crds::model::KvCacheType;
use serde::Serialize;

use super::ModelShape;

/// What the runtime takes beside the model: context, code objects, streams, staging buffers.
///
/// An estimate, not a measurement: no card has been at hand. What engines measure takes its place, by gfx target
/// ([`super::Calibrations`]). 184 MiB leaves the activations of a 70B model room
/// within the 400 MiB that the hardware guide's tables allow for all overhead.
pub const RUNTIME_BYTES: u64 = 184 << 20;
/// Tokens of prompts that one step computes at most; activations are as large as a step.
const STEP_TOKENS: u64 = 512;
/// Elements of a Q8_0 block.
const Q8_0_ELEMENTS: u64 = 32;
/// Bytes of a Q8_0 block: a 16-bit scale and 32 signed bytes.
const Q8_0_BYTES: u64 = 34;

/// What a tier asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Context window in tokens.
    pub context_tokens: u64,
    /// Sequences at once, each with the whole window.
    pub max_batch: u64,
    /// Type of the KV cache's elements.
    pub kv_cache_type: KvCacheType,
    /// Layers that stay on the CPU, with their share of the KV cache.
    pub offload_layers: u64,
}

/// The terms of a card's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    /// Weights on the card.
    pub weights: u64,
    /// KV cache at the full context and batch.
    pub kv_cache: u64,
    /// Intermediate values of one step, and its logits.
    pub activations: u64,
    /// The runtime's own share.
    pub runtime: u64,
}

impl Need {
    /// Activations and runtime.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        self.activations.saturating_add(self.runtime)
    }

    /// The sum of all terms.
    #[must_use]
    pub fn required(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.overhead())
    }
}

/// Computes what a model needs on one card.
#[must_use]
pub fn estimate(shape: &ModelShape, setting: &Setting, runtime_bytes: u64) -> Need {
    let offloaded = usize::try_from(setting.offload_layers).unwrap_or(usize::MAX);
    // The processor takes the first ones, and the embedding too, which is counted here all the same.
    let layers = shape.layers.iter().skip(offloaded);
    let mut weights = shape.other_weight_bytes;
    let mut token_bytes = 0_u64;
    for layer in layers {
        weights = weights.saturating_add(layer.weight_bytes);
        let row = |elements| kv_row_bytes(elements, setting.kv_cache_type);
        token_bytes = token_bytes.saturating_add(row(layer.key_elements) + row(layer.value_elements));
    }
    let tokens = setting.context_tokens.saturating_mul(setting.max_batch);
    Need {
        weights,
        kv_cache: token_bytes.saturating_mul(tokens),
        activations: activation_bytes(shape, setting),
        runtime: runtime_bytes,
    }
}

/// Bytes of one token's keys or values in one layer.
fn kv_row_bytes(elements: u64, kv_cache_type: KvCacheType) -> u64 {
    match kv_cache_type {
        KvCacheType::F16 => 2 * elements,
        KvCacheType::Q8_0 => elements.div_ceil(Q8_0_ELEMENTS) * Q8_0_BYTES,
    }
}

/// Bytes of a step's intermediate values in f32.
///
/// # Shapes
///
/// A row holds the residual stream, its norm, the sum that replaces it and the attention's output projection (4 x
/// hidden), queries and attention output (2 x query elements), one layer's new keys and values, and gate and up of the
/// feed-forward layer (2 x feed_forward). Attention scores are never stored whole. Logits are for the last row of each
/// sequence.
fn activation_bytes(shape: &ModelShape, setting: &Setting) -> u64 {
    let kv = shape.layers.iter().map(|layer| layer.key_elements + layer.value_elements).max().unwrap_or(0);
    let row = 4 * shape.hidden + 2 * shape.query_elements + kv + 2 * shape.feed_forward;
    let rows = setting.context_tokens.min(STEP_TOKENS).saturating_add(setting.max_batch);
    let logits = setting.max_batch.saturating_mul(shape.vocabulary);
    row.saturating_mul(rows).saturating_add(logits).saturating_mul(4)
}
