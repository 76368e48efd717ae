//! What a planner needs to know of a model: bytes of weights by layer, and the width of its KV cache.

use std::collections::BTreeMap;

use atlas_format::{Gguf, MetadataError, Value};
use serde_json::Value as Json;

/// Why a header cannot be planned with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A key is missing or of another kind.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A key holds what no model has.
    #[error("{key} is {found}, expected {expected}")]
    Number {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What is expected.
        expected: &'static str,
    },
    /// A tensor of a type whose size nobody knows.
    #[error("tensor {name:?} has the unknown {tensor_type}: its size cannot be planned")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        tensor_type: String,
    },
    /// Others keep another cache, or none, so that no figure of theirs would be right.
    #[error(
        "its architecture is {found:?}, and Atlas' engine serves {}: use a model of one of these",
        known.join(", ")
    )]
    Architecture {
        /// `general.architecture`, or `model_type` of `config.json`.
        found: String,
        /// Those that are served in this form of model.
        known: &'static [&'static str],
    },
    /// A mixture of experts, which the engine does not serve.
    #[error(
        "it is a mixture of {experts} experts, which Atlas' engine does not serve: use a model without experts"
    )]
    Experts {
        /// How many there are.
        experts: u32,
    },
    /// One part of a model that is split over several files.
    #[error("the file is part {part} of {parts}: merge the parts into one GGUF file")]
    Split {
        /// Which part it is, counted from 1.
        part: u32,
        /// How many there are.
        parts: u32,
    },
}

/// Architectures that the engine serves, as `general.architecture` of a GGUF file names them.
pub const GGUF_ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// The same as `model_type` of a `config.json` names them.
pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn served(found: &str, known: &'static [&'static str]) -> Result<(), ShapeError> {
    let architecture = || ShapeError::Architecture { found: found.to_owned(), known };
    known.contains(&found).then_some(()).ok_or_else(architecture)
}

/// One transformer layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerShape {
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Elements of a token's keys in the KV cache.
    pub key_elements: u64,
    /// Elements of a token's values in the KV cache.
    pub value_elements: u64,
}

/// A model as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    /// Architecture, such as `llama`.
    pub architecture: String,
    /// Name of the quantization, such as `Q4_K_M`, where the header tells.
    pub quantization: Option<String>,
    /// Number of weights.
    pub parameters: u64,
    /// The layers in order.
    pub layers: Vec<LayerShape>,
    /// Bytes of the weights that belong to no layer: embeddings, output head, norms.
    pub other_weight_bytes: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the feed-forward layer; the widest where layers differ.
    pub feed_forward: u64,
    /// Elements of a token's queries; the widest layer's.
    pub query_elements: u64,
    /// Whether its heads are whole blocks of 32, as a Q8_0 KV cache keeps them.
    pub takes_q8_cache: bool,
    /// Size of the vocabulary.
    pub vocabulary: u64,
    /// Context that the model was trained for, in tokens.
    pub trained_context: u64,
    /// Bytes of weights by tensor type.
    pub bytes_by_type: BTreeMap<String, u64>,
}

impl ModelShape {
    /// Bytes of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.weight_bytes).sum::<u64>() + self.other_weight_bytes
    }

    /// Reads a GGUF header.
    ///
    /// # Errors
    ///
    /// A number is missing or impossible, a tensor's size is unknown, or the file is one part of several.
    pub fn from_gguf(header: &Gguf) -> Result<Self, ShapeError> {
        if let Some(parts) = header.u32("split.count")?.filter(|parts| *parts > 1) {
            let part = header.u32("split.no")?.unwrap_or(0).saturating_add(1);
            return Err(ShapeError::Split { part, parts });
        }
        let architecture = header.require_str("general.architecture")?.to_owned();
        served(&architecture, &GGUF_ARCHITECTURES)?;
        let key = |name: &str| format!("{architecture}.{name}");
        if let Some(experts) = header.u32(&key("expert_count"))?.filter(|experts| *experts > 0) {
            return Err(ShapeError::Experts { experts });
        }
        let layer_count = bounded(&key("block_count"), header.require_u32(&key("block_count"))?, MAX_LAYERS)?;
        let hidden =
            bounded(&key("embedding_length"), header.require_u32(&key("embedding_length"))?, MAX_WIDTH)?;
        let heads = per_layer(header, &key("attention.head_count"), layer_count)?
            .ok_or_else(|| MetadataError::Missing { key: key("attention.head_count") })?;
        let kv_heads =
            per_layer(header, &key("attention.head_count_kv"), layer_count)?.unwrap_or_else(|| heads.clone());
        let widest = heads.iter().copied().max().unwrap_or(0).max(1);
        let head_size = |name: &str, default: u64| {
            header.u32(&key(name))?.map_or(Ok(default), |size| bounded(&key(name), size, MAX_WIDTH))
        };
        let key_size = head_size("attention.key_length", hidden / widest)?;
        let value_size = head_size("attention.value_length", key_size)?;
        let feed_forward = per_layer(header, &key("feed_forward_length"), layer_count)?.unwrap_or_default();
        let mut layers: Vec<LayerShape> = kv_heads
            .iter()
            .map(|kv| LayerShape {
                weight_bytes: 0,
                key_elements: kv * key_size,
                value_elements: kv * value_size,
            })
            .collect();
        let mut other_weight_bytes = 0_u64;
        let mut parameters = 0_u64;
        let mut bytes_by_type = BTreeMap::new();
        for tensor in header.tensors() {
            let bytes = tensor.byte_count.ok_or_else(|| ShapeError::TensorType {
                name: tensor.name.clone(),
                tensor_type: tensor.tensor_type.to_string(),
            })?;
            let total: &mut u64 = bytes_by_type.entry(tensor.tensor_type.to_string()).or_default();
            *total = total.saturating_add(bytes);
            parameters = parameters.saturating_add(tensor.element_count());
            match layer_of(&tensor.name, "blk.").and_then(|index| layers.get_mut(index)) {
                Some(layer) => layer.weight_bytes = layer.weight_bytes.saturating_add(bytes),
                None => other_weight_bytes = other_weight_bytes.saturating_add(bytes),
            }
        }
        let embedding = header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight");
        let vocabulary = match embedding.and_then(|tensor| tensor.shape.get(1)) {
            Some(rows) => *rows,
            None => u64::from(header.u32(&key("vocab_size"))?.unwrap_or(0)),
        };
        Ok(Self {
            quantization: header.quantization()?.map(str::to_owned),
            parameters,
            layers,
            other_weight_bytes,
            hidden,
            feed_forward: feed_forward.iter().copied().max().unwrap_or(0),
            query_elements: widest * key_size,
            takes_q8_cache: key_size % 32 == 0 && value_size % 32 == 0,
            vocabulary: vocabulary.min(MAX_WIDTH),
            trained_context: stretched_context(
                u64::from(header.require_u32(&key("context_length"))?),
                header.str(&key("rope.scaling.type"))?,
                header.u32(&key("rope.scaling.original_context_length"))?.map(u64::from),
                header.f32(&key("rope.scaling.factor"))?.map(f64::from),
            ),
            bytes_by_type,
            architecture,
        })
    }

    /// Reads a Hugging Face `config.json` beside the bytes of weights that the safetensors header or index gives.
    ///
    /// # Errors
    ///
    /// A number is missing or impossible.
    pub fn from_config(config: &Json, bytes_by_type: BTreeMap<String, u64>) -> Result<Self, ShapeError> {
        let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or("unknown");
        served(model_type, &MODEL_TYPES)?;
        let optional = |key: &str, limit: u64| match config.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if number > 0 && number <= limit => Ok(Some(number)),
                _ => Err(ShapeError::Number {
                    key: format!("config.json: {key}"),
                    found: value.to_string(),
                    expected: "a whole number above 0 that a model can have",
                }),
            },
        };
        let number = |key: &str, limit: u64| {
            let missing = || MetadataError::Missing { key: format!("config.json: {key}") };
            optional(key, limit)?.ok_or_else(missing).map_err(ShapeError::from)
        };
        let scaling = |key: &str| {
            let places = ["rope_scaling", "rope_parameters"].into_iter();
            places.filter_map(|place| config.get(place)).find_map(|scaling| scaling.get(key))
        };
        let layer_count = number("num_hidden_layers", MAX_LAYERS)?;
        let hidden = number("hidden_size", MAX_WIDTH)?;
        let heads = number("num_attention_heads", MAX_WIDTH)?;
        let kv_heads = optional("num_key_value_heads", MAX_WIDTH)?.unwrap_or(heads);
        let head_size = optional("head_dim", MAX_WIDTH)?.unwrap_or((hidden / heads).max(1));
        let feed_forward = number("intermediate_size", MAX_WIDTH)?;
        let vocabulary = number("vocab_size", MAX_WIDTH)?;
        let total: u64 = bytes_by_type.values().sum();
        // A layer's share of the bytes is its share of the weights: the index gives the sum alone.
        let per_layer =
            hidden * head_size * (2 * heads + 2 * kv_heads) + 3 * hidden * feed_forward + 2 * hidden;
        let tied = config.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false);
        let others = hidden * vocabulary * if tied { 1 } else { 2 } + hidden;
        let parameters = per_layer * layer_count + others;
        let share = u128::from(total) * u128::from(per_layer) / u128::from(parameters.max(1));
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        let linear = per_layer - 2 * hidden;
        let (quantization, layer_bytes, other_bytes) = match repacked(config) {
            // What the engine makes of it: blocks for the products, 16 bits for embedding and head, f32 for norms.
            Some((name, elements, bytes)) => (
                Some(name.to_owned()),
                linear.div_ceil(elements).saturating_mul(bytes).saturating_add(8 * hidden),
                2 * (others - hidden) + 4 * hidden,
            ),
            None => (None, share, total.saturating_sub(share.saturating_mul(layer_count))),
        };
        let layer = LayerShape {
            weight_bytes: layer_bytes,
            key_elements: kv_heads * head_size,
            value_elements: kv_heads * head_size,
        };
        Ok(Self {
            architecture: model_type.to_owned(),
            quantization,
            parameters,
            layers: vec![layer; usize::try_from(layer_count).unwrap_or(0)],
            other_weight_bytes: other_bytes,
            hidden,
            feed_forward,
            query_elements: heads * head_size,
            takes_q8_cache: head_size % 32 == 0,
            vocabulary,
            trained_context: stretched_context(
                number("max_position_embeddings", u64::from(u32::MAX))?,
                scaling("rope_type").or_else(|| scaling("type")).and_then(Json::as_str),
                scaling("original_max_position_embeddings").and_then(Json::as_u64),
                scaling("factor").and_then(Json::as_f64),
            ),
            bytes_by_type,
        })
    }
}

/// The context after YaRN's stretching, as engines serve it: files name the original one or the stretched one.
fn stretched_context(trained: u64, scaling: Option<&str>, original: Option<u64>, factor: Option<f64>) -> u64 {
    match (scaling, factor) {
        (Some("yarn"), Some(factor)) if factor > 1.0 => {
            // A float that is out of range becomes the nearest number.
            let stretched = (original.unwrap_or(trained) as f64 * factor) as u64;
            trained.max(stretched.min(u64::from(u32::MAX)))
        }
        _ => trained,
    }
}

/// More layers than any model has.
pub(super) const MAX_LAYERS: u64 = 4096;
/// Wider than any model; it keeps every product within 64 bits.
pub(super) const MAX_WIDTH: u64 = 1 << 20;

fn bounded(key: &str, value: u32, limit: u64) -> Result<u64, ShapeError> {
    let number = u64::from(value);
    if number == 0 || number > limit {
        return Err(ShapeError::Number {
            key: key.to_owned(),
            found: value.to_string(),
            expected: "a number above 0 that a model can have",
        });
    }
    Ok(number)
}

/// A number that stands once for every layer, or once for all.
fn per_layer(header: &Gguf, key: &str, layers: u64) -> Result<Option<Vec<u64>>, ShapeError> {
    let count = usize::try_from(layers).unwrap_or(0);
    let in_bounds = |value: u64| {
        if value > MAX_WIDTH {
            Err(ShapeError::Number {
                key: key.to_owned(),
                found: value.to_string(),
                expected: "a number that a model can have",
            })
        } else {
            Ok(value)
        }
    };
    match header.value(key) {
        None => Ok(None),
        Some(Value::Array(_)) => {
            let values = header.u32s(key)?.unwrap_or_default();
            if values.len() != count {
                return Err(ShapeError::Number {
                    key: key.to_owned(),
                    found: format!("{} values", values.len()),
                    expected: "one value a layer",
                });
            }
            values.into_iter().map(|value| in_bounds(u64::from(value))).collect::<Result<_, _>>().map(Some)
        }
        Some(_) => {
            let value = in_bounds(u64::from(header.require_u32(key)?))?;
            Ok(Some(vec![value; count]))
        }
    }
}

/// Name, elements and bytes of the blocks that the engine keeps quantized folders in (engine/kernels/hip/formats.h).
fn repacked(config: &Json) -> Option<(&'static str, u64, u64)> {
    let settings = config.get("quantization_config")?;
    let text = |key: &str| settings.get(key).and_then(Json::as_str);
    let group = ["group_size", "q_group_size"].iter().find_map(|key| settings.get(*key)?.as_i64());
    // Groups that are no multiple of 128 lie in blocks of 32.
    let small = group.is_some_and(|group| group > 0 && group % 128 != 0);
    let (elements, bytes) = if small { (32, 20) } else { (128, 68) };
    match (text("quant_method")?, text("bnb_4bit_quant_type")) {
        ("awq", _) => Some(("AWQ", elements, bytes)),
        ("gptq", _) => Some(("GPTQ", elements, bytes)),
        ("bitsandbytes", Some("nf4")) => Some(("NF4", 64, 36)),
        _ => None,
    }
}

/// The layer in a tensor's name, such as `blk.7.attn_q.weight`.
fn layer_of(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}
