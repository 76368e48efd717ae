//! A model's numbers, read from GGUF metadata and checked against each other.

use super::ModelError;
use atlas_engine_core::backend::{KvSpec, KvType};
use atlas_engine_core::program::Pairing;
use atlas_format::Gguf;

/// Architectures that are served, by their name in GGUF, with how they pair elements for RoPE.
const ARCHITECTURES: [(&str, Pairing); 3] =
    [("llama", Pairing::Interleaved), ("qwen2", Pairing::Halves), ("qwen3", Pairing::Halves)];

/// What the forward pass needs to know. Sizes count elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `general.name`, or the architecture.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Elements of a head that RoPE turns.
    pub rope_size: usize,
    /// Which elements of a head RoPE turns together.
    pub pairing: Pairing,
    /// RoPE's base.
    pub rope_base: f32,
    /// Positions are divided by this (linear RoPE scaling); 1 where there is none.
    pub rope_divisor: f32,
    /// Epsilon of the RMS norms.
    pub norm_epsilon: f32,
    /// Vocabulary.
    pub vocabulary: usize,
    /// Context that the model was trained for.
    pub trained_context: usize,
}

impl ModelConfig {
    /// Reads the numbers of a model.
    ///
    /// # Errors
    /// Another architecture, missing keys, or numbers that contradict each other.
    pub fn from_gguf(header: &Gguf) -> Result<Self, ModelError> {
        let architecture = header.require_str("general.architecture")?;
        let known = ARCHITECTURES.iter().find(|(name, _)| *name == architecture);
        let &(architecture, pairing) =
            known.ok_or_else(|| ModelError::Architecture { found: architecture.to_owned() })?;
        let name = |key: &str| format!("{architecture}.{key}");
        let number = |key: &str| header.require_u32(&name(key)).map(|value| value as usize);
        let optional = |key: &str| header.u32(&name(key)).map(|value| value.map(|value| value as usize));
        if let Some(experts) = optional("expert_count")?.filter(|experts| *experts > 0) {
            let reason = "mixtures of experts are not built yet";
            return Err(unsupported(&name("expert_count"), &experts.to_string(), reason));
        }
        let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let kv_heads = optional("attention.head_count_kv")?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(inconsistent("number of heads", heads, "number of key heads", kv_heads));
        }
        let head_size = optional("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(value_size) = optional("attention.value_length")?.filter(|size| *size != head_size) {
            return Err(inconsistent("value length", value_size, "key length", head_size));
        }
        let rope_size = optional("rope.dimension_count")?.unwrap_or(head_size);
        if rope_size == 0 || rope_size > head_size || !rope_size.is_multiple_of(2) {
            return Err(inconsistent("number of RoPE dimensions", rope_size, "head size", head_size));
        }
        // The embedding's rows are the vocabulary; vocab_size is optional and may be padded otherwise.
        let embedding = header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight");
        let vocabulary = embedding.and_then(|tensor| tensor.shape.get(1)).copied();
        let vocabulary =
            vocabulary.ok_or_else(|| ModelError::MissingTensor { name: "token_embd.weight".into() })?;
        Ok(Self {
            name: header.str("general.name")?.unwrap_or(architecture).to_owned(),
            pairing,
            layers: number("block_count")?,
            hidden,
            feed_forward: number("feed_forward_length")?,
            heads,
            kv_heads,
            head_size,
            rope_size,
            rope_base: header.f32(&name("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_divisor: rope_divisor(header, architecture)?,
            norm_epsilon: header.f32(&name("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            vocabulary: usize::try_from(vocabulary).unwrap_or(usize::MAX),
            trained_context: number("context_length")?,
        })
    }

    /// The KV cache of all layers.
    pub fn kv_spec(&self, kv_type: KvType, blocks: u32) -> KvSpec {
        let layers = 0..u16::try_from(self.layers).unwrap_or(u16::MAX);
        KvSpec { layers, kv_heads: self.kv_heads, head_size: self.head_size, kv_type, blocks }
    }
}

/// Llama 3's scaling is a tensor, `rope_freqs.weight`, and not covered by these keys.
fn rope_divisor(header: &Gguf, architecture: &str) -> Result<f32, ModelError> {
    let name = |key: &str| format!("{architecture}.rope.{key}");
    let factor = header.f32(&name("scaling.factor"))?.filter(|factor| *factor > 0.0);
    match header.str(&name("scaling.type"))? {
        Some("linear") => Ok(factor.unwrap_or(1.0)),
        None => Ok(header.f32(&name("scale_linear"))?.filter(|factor| *factor > 0.0).unwrap_or(1.0)),
        Some("none") => Ok(1.0),
        Some(other) => Err(unsupported(
            &name("scaling.type"),
            other,
            "only linear scaling and rope_freqs.weight are built",
        )),
    }
}

fn unsupported(key: &str, value: &str, reason: &'static str) -> ModelError {
    ModelError::Unsupported { key: key.to_owned(), value: value.to_owned(), reason }
}

fn inconsistent(what: &'static str, found: usize, other: &'static str, expected: usize) -> ModelError {
    ModelError::Inconsistent { what, found: found as u64, other, expected: expected as u64 }
}
