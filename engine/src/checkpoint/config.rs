//! A model's numbers from Hugging Face's `config.json`.
//!
//! Sources: the configuration classes of transformers for Llama, Mistral, Qwen 2 and Qwen 3, and its
//! `modeling_rope_utils.py` for what `rope_scaling` means.

use super::CheckpointError;
use super::quantized::Method;
use crate::model::{BETA_FAST, BETA_SLOW, ModelConfig, ModelError, Yarn, check_whole_heads, yarn_attention};
use atlas_engine_core::program::Pairing;
use serde_json::Value;

/// More than any model has of anything, and nothing overflows with it.
const MAX_NUMBER: u64 = 1 << 24;
const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// What `config.json` says.
#[derive(Debug)]
pub struct Described {
    /// `model_type`.
    pub model_type: String,
    /// The numbers.
    pub config: ModelConfig,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// How the matrices are quantized.
    pub method: Method,
}

/// Reads `config.json`; `name` is what the model is called.
///
/// # Errors
/// Another architecture, missing keys, or settings that this engine would compute wrongly.
pub fn read(json: &Value, name: String) -> Result<Described, CheckpointError> {
    let keys = Keys(json);
    let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !MODEL_TYPES.contains(&model_type.as_str()) {
        return Err(CheckpointError::Architecture { found: model_type });
    }
    keys.only("hidden_act", &["silu"], "the feed-forward part is built for SwiGLU")?;
    if let Some(value) = keys.0.get("compression_config").filter(|value| !value.is_null()) {
        return Err(unsupported("compression_config", value, "AWQ, GPTQ and NF4 are built; use a GGUF file"));
    }
    let method = Method::read(json)?;
    let (hidden, heads) = (keys.number("hidden_size")?, keys.number("num_attention_heads")?);
    let kv_heads = keys.optional("num_key_value_heads")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(inconsistent("number of heads", heads, "number of key heads", kv_heads));
    }
    let head_size = keys.optional("head_dim")?.unwrap_or(hidden / heads);
    let partial = keys.float("partial_rotary_factor")?.unwrap_or(1.0);
    let rope_size = (head_size as f64 * partial) as usize;
    if rope_size == 0 || rope_size > head_size || !rope_size.is_multiple_of(2) {
        return Err(inconsistent("number of RoPE dimensions", rope_size, "head size", head_size));
    }
    let trained = keys.number("max_position_embeddings")?;
    let rope = Rope::read(&keys, rope_size, trained)?;
    if rope.attention != 1.0 {
        check_whole_heads(rope_size, head_size)?;
    }
    let trained = rope.context.unwrap_or(trained);
    let config = ModelConfig {
        name,
        layers: keys.number("num_hidden_layers")?,
        hidden,
        feed_forward: keys.number("intermediate_size")?,
        heads,
        kv_heads,
        head_size,
        rope_size,
        // These files keep queries and keys in halves; GGUF files of Llama have their rows permuted instead.
        pairing: Pairing::Halves,
        rope_base: rope.base,
        rope_divisor: rope.divisor,
        rope_factors: rope.factors,
        rope_attention: rope.attention as f32,
        norm_epsilon: keys.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        vocabulary: keys.number("vocab_size")?,
        // Within its window, attention with a sliding window is attention.
        trained_context: sliding_window(&keys, &model_type)?.map_or(trained, |window| window.min(trained)),
    };
    let tied = json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    Ok(Described { model_type, config, tied, method })
}

/// Mistral's window counts where it is set, Qwen's where it is switched on.
fn sliding_window(keys: &Keys<'_>, model_type: &str) -> Result<Option<usize>, CheckpointError> {
    let off = keys.0.get("use_sliding_window").and_then(Value::as_bool);
    if off == Some(false) || (off.is_none() && model_type.starts_with("qwen")) {
        return Ok(None);
    }
    keys.optional("sliding_window")
}

struct Rope {
    base: f32,
    divisor: f32,
    factors: Option<Vec<f32>>,
    attention: f64,
    /// The stretched context, where scaling tells it.
    context: Option<usize>,
}

impl Rope {
    /// `rope_theta` and `rope_scaling`, which newer files join to `rope_parameters`.
    fn read(keys: &Keys<'_>, rope_size: usize, trained: usize) -> Result<Self, CheckpointError> {
        let set = |key: &'static str| Some((key, keys.0.get(key).filter(|value| value.is_object())?));
        let (place, scaling) = match set("rope_scaling").or_else(|| set("rope_parameters")) {
            Some((key, value)) => (key, Keys(value)),
            None => ("rope_scaling", Keys(&Value::Null)),
        };
        let base = keys.float("rope_theta")?.or(scaling.float("rope_theta")?).unwrap_or(10_000.0);
        if base <= 0.0 {
            return Err(wrong("rope_theta", &base.into(), "a number above 0"));
        }
        let plain = Self { base: base as f32, divisor: 1.0, factors: None, attention: 1.0, context: None };
        let kind = scaling.0.get("rope_type").or_else(|| scaling.0.get("type"));
        let factor = || scaling.positive("factor");
        match kind.unwrap_or(&Value::Null) {
            Value::Null => Ok(plain),
            Value::String(kind) if kind == "default" => Ok(plain),
            Value::String(kind) if kind == "linear" => Ok(Self { divisor: factor()? as f32, ..plain }),
            Value::String(kind) if kind == "llama3" => {
                let scale = Llama3 {
                    factor: factor()?,
                    low: scaling.positive("low_freq_factor")?,
                    high: scaling.positive("high_freq_factor")?,
                    trained: scaling.positive("original_max_position_embeddings")?,
                };
                let pairs = (0..rope_size / 2).map(|pair| base.powf(-2.0 * pair as f64 / rope_size as f64));
                let factors = pairs.map(|frequency| scale.divisor(frequency) as f32).collect();
                Ok(Self { factors: Some(factors), ..plain })
            }
            Value::String(kind) if kind == "yarn" => {
                let (yarn, attention) = read_yarn(&scaling, trained)?;
                let factors = Some(yarn.divisors(base, rope_size));
                Ok(Self { factors, attention, context: Some(yarn.context().max(trained)), ..plain })
            }
            other => {
                let reason =
                    "linear, llama3 and yarn are built; without the key, the model serves its first context";
                Err(unsupported(place, other, reason))
            }
        }
    }
}

/// YaRN's numbers, and what queries and keys are multiplied by: the file's own figure, or what follows from the factor.
fn read_yarn(scaling: &Keys<'_>, trained: usize) -> Result<(Yarn, f64), CheckpointError> {
    let or = |key: &str, default: f64| match scaling.float(key)? {
        None => Ok(default),
        Some(_) => scaling.positive(key),
    };
    let yarn = Yarn {
        factor: scaling.positive("factor")?,
        original_context: or("original_max_position_embeddings", trained as f64)?,
        beta_fast: or("beta_fast", BETA_FAST)?,
        beta_slow: or("beta_slow", BETA_SLOW)?,
        whole_pairs: scaling.0.get("truncate").and_then(Value::as_bool) != Some(false),
    };
    let follows = match (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?) {
        (m, all) if m > 0.0 && all > 0.0 => yarn_attention(yarn.factor, m) / yarn_attention(yarn.factor, all),
        _ => yarn_attention(yarn.factor, 1.0),
    };
    Ok((yarn, or("attention_factor", follows)?))
}

/// Llama 3's scaling: long waves are stretched, short ones stay, those between are mixed.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    trained: f64,
}

impl Llama3 {
    /// What a frequency in radians a position is divided by.
    fn divisor(&self, frequency: f64) -> f64 {
        let turns = self.trained * frequency / std::f64::consts::TAU;
        if turns > self.high {
            1.0
        } else if turns < self.low {
            self.factor
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        }
    }
}

/// Typed access to a JSON object.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn optional(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number @ 1..=MAX_NUMBER) => Ok(Some(number as usize)),
                _ => Err(wrong(key, value, "a whole number above 0 that a model can have")),
            },
        }
    }

    fn number(&self, key: &str) -> Result<usize, CheckpointError> {
        let missing = || wrong(key, &Value::Null, "a whole number above 0");
        self.optional(key)?.ok_or_else(missing)
    }

    fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(key, value, "a number")),
        }
    }

    fn positive(&self, key: &str) -> Result<f64, CheckpointError> {
        let found = self.float(key)?.filter(|number| *number > 0.0);
        found.ok_or_else(|| wrong(key, self.0.get(key).unwrap_or(&Value::Null), "a number above 0"))
    }

    fn only(&self, key: &str, allowed: &[&str], reason: &'static str) -> Result<(), CheckpointError> {
        match self.0.get(key) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|value| allowed.contains(&value)) => Ok(()),
            Some(value) => Err(unsupported(key, value, reason)),
        }
    }
}

fn wrong(key: &str, found: &Value, expected: &'static str) -> CheckpointError {
    let found = if found.is_null() { "nothing".to_owned() } else { found.to_string() };
    CheckpointError::Key { key: key.to_owned(), found, expected }
}

fn unsupported(key: &str, value: &Value, reason: &'static str) -> CheckpointError {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    ModelError::Unsupported { key: key.to_owned(), value, reason }.into()
}

fn inconsistent(what: &'static str, found: usize, other: &'static str, expected: usize) -> CheckpointError {
    ModelError::Inconsistent { what, found: found as u64, other, expected: expected as u64 }.into()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
