//! A model's numbers, read from GGUF metadata and checked against each other.

use super::ModelError;
use super::rope::{BETA_FAST, BETA_SLOW, Yarn, yarn_attention};
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
    /// Divisors of RoPE's frequencies, one a pair (YaRN, Llama 3's scaling), where the model's numbers ask for them.
    pub rope_factors: Option<Vec<f32>>,
    /// What queries and keys are both multiplied by after RoPE (YaRN); 1 where there is none.
    pub rope_attention: f32,
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
        let rope_base = header.f32(&name("rope.freq_base"))?.unwrap_or(10_000.0);
        let trained_context = number("context_length")?;
        let yarn = yarn(header, architecture, trained_context)?;
        if yarn.is_some() {
            check_whole_heads(rope_size, head_size)?;
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
            rope_base,
            rope_divisor: rope_divisor(header, architecture)?,
            rope_factors: yarn.map(|(yarn, _)| yarn.divisors(rope_base.into(), rope_size)),
            rope_attention: yarn.map_or(1.0, |(_, attention)| attention as f32),
            norm_epsilon: header.f32(&name("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            vocabulary: usize::try_from(vocabulary).unwrap_or(usize::MAX),
            // Files name the original context or the stretched one.
            trained_context: yarn.map_or(0, |(yarn, _)| yarn.context()).max(trained_context),
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
        Some("none" | "yarn") => Ok(1.0),
        Some(other) => Err(unsupported(
            &name("scaling.type"),
            other,
            "linear scaling, yarn and rope_freqs.weight are built",
        )),
    }
}

/// YaRN's numbers, and what queries and keys are multiplied by.
fn yarn(header: &Gguf, architecture: &str, trained: usize) -> Result<Option<(Yarn, f64)>, ModelError> {
    let name = |key: &str| format!("{architecture}.rope.scaling.{key}");
    if header.str(&name("type"))? != Some("yarn") {
        return Ok(None);
    }
    let number = |key: &str| header.f32(&name(key)).map(|value| value.map(f64::from));
    // Variants of other architectures, which change the formula.
    for (key, plain) in [("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)] {
        if let Some(value) = number(key)?.filter(|value| *value != plain) {
            return Err(unsupported(&name(key), &value.to_string(), "yarn without it is built"));
        }
    }
    let positive = |key: &str, value: Option<f64>, default: f64| match value.unwrap_or(default) {
        value if value > 0.0 && value.is_finite() => Ok(value),
        value => Err(unsupported(&name(key), &value.to_string(), "it must be above 0")),
    };
    let original = header.u32(&name("original_context_length"))?.map(f64::from);
    let yarn = Yarn {
        factor: positive("factor", number("factor")?, 1.0)?,
        original_context: positive("original_context_length", original, trained as f64)?,
        beta_fast: positive("yarn_beta_fast", number("yarn_beta_fast")?, BETA_FAST)?,
        beta_slow: positive("yarn_beta_slow", number("yarn_beta_slow")?, BETA_SLOW)?,
        whole_pairs: true,
    };
    let more = positive("attn_factor", number("attn_factor")?, 1.0)?;
    Ok(Some((yarn, yarn_attention(yarn.factor, 1.0) * more)))
}

/// The attention factor is part of attention's scale, which only whole heads allow.
///
/// # Errors
/// RoPE turns a part of each head.
pub fn check_whole_heads(rope_size: usize, head_size: usize) -> Result<(), ModelError> {
    if rope_size == head_size {
        return Ok(());
    }
    Err(inconsistent("number of RoPE dimensions with yarn", rope_size, "head size", head_size))
}

fn unsupported(key: &str, value: &str, reason: &'static str) -> ModelError {
    ModelError::Unsupported { key: key.to_owned(), value: value.to_owned(), reason }
}

fn inconsistent(what: &'static str, found: usize, other: &'static str, expected: usize) -> ModelError {
    ModelError::Inconsistent { what, found: found as u64, other, expected: expected as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_format::{HeaderWriter, Parsed};

    /// The number of the type of floats in GGUF.
    const F32: u32 = 6;

    fn read(scaling: &[(&str, f32)], kind: &str, head_size: u32) -> Result<ModelConfig, ModelError> {
        let mut header = HeaderWriter::default()
            .text("general.architecture", "qwen2")
            .text("qwen2.rope.scaling.type", kind)
            .number("qwen2.block_count", 2)
            .number("qwen2.context_length", 32_768)
            .number("qwen2.embedding_length", 512)
            .number("qwen2.feed_forward_length", 64)
            .number("qwen2.attention.head_count", 4)
            .number("qwen2.attention.key_length", head_size)
            .number("qwen2.rope.dimension_count", 128)
            .number("qwen2.rope.scaling.original_context_length", 32_768)
            .raw("qwen2.rope.freq_base", F32, &1e6_f32.to_le_bytes());
        for (key, value) in scaling {
            header = header.raw(&format!("qwen2.rope.scaling.{key}"), F32, &value.to_le_bytes());
        }
        let bytes = header.tensor("token_embd.weight", &[512, 10], 0).finish();
        let Parsed::Complete(header) = Gguf::parse(&bytes).unwrap() else { panic!("the header is whole") };
        ModelConfig::from_gguf(&header)
    }

    #[test]
    fn yarn_of_a_gguf_file_is_that_of_its_folder() {
        let config = read(&[("factor", 4.0)], "yarn", 128).unwrap();
        let factors = config.rope_factors.unwrap();
        assert_eq!((factors.len(), factors[23], factors[40]), (64, 1.0, 4.0));
        assert!((config.rope_attention - 1.138_629_4).abs() < 1e-6, "{}", config.rope_attention);
        assert_eq!((config.trained_context, config.rope_divisor), (131_072, 1.0));
        let more = read(&[("factor", 4.0), ("attn_factor", 2.0)], "yarn", 128).unwrap();
        assert_eq!(more.rope_attention, 2.0 * config.rope_attention);
        let steeper = read(&[("factor", 4.0), ("yarn_beta_fast", 64.0)], "yarn", 128).unwrap();
        assert!(steeper.rope_factors.unwrap()[22] > 1.0);
        let none = read(&[("factor", 4.0)], "none", 128).unwrap();
        assert_eq!((none.rope_factors, none.rope_attention, none.trained_context), (None, 1.0, 32_768));
    }

    #[test]
    fn yarn_that_would_be_computed_wrongly_is_refused() {
        for (scaling, head_size, expected) in [
            (("yarn_log_multiplier", 0.1), 128, "yarn_log_multiplier\" to 0.1"),
            (("yarn_ext_factor", 0.5), 128, "yarn_ext_factor\" to 0.5"),
            (("factor", -1.0), 128, "scaling.factor\" to -1"),
            (("factor", 4.0), 256, "RoPE dimensions with yarn is 128"),
        ] {
            let message = read(&[scaling], "yarn", head_size).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
