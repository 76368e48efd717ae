//! What to change so that a model fits, one change at a time, the cheapest first.
//!
//! Cheapest means least lost: context, then batch, then the KV cache's type, then the quantization, then layers on the
//! CPU; another card comes last, since it has to be there.

use std::fmt;

use atlas_crds::model::KvCacheType;
use serde::Serialize;

use super::{
    Question, Setting,
    estimate::estimate,
    mebibytes,
    plan::{Card, fits, largest, max_batch, max_context},
};

/// Contexts are advised in steps of this many tokens; less than one step is no advice.
const CONTEXT_STEP: u64 = 256;

/// The smallest other cards that hold the model are enough to choose from.
const MAX_PROFILES: usize = 2;

/// Bits a weight of the usual quantizations, largest first: means over a whole 8B model, so sizes from them are
/// estimates (llama.cpp's documentation of its quantize tool lists them).
const BITS_PER_WEIGHT: &[(&str, f64)] = &[
    ("Q8_0", 8.51),
    ("Q6_K", 6.57),
    ("Q5_K_M", 5.71),
    ("Q5_K_S", 5.58),
    ("Q4_K_M", 4.90),
    ("Q4_K_S", 4.67),
    ("Q3_K_M", 4.00),
    ("Q3_K_S", 3.65),
    ("Q2_K", 3.17),
];

/// A profile that the model could move to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherProfile {
    /// Its name.
    pub name: String,
    /// Its card.
    pub card: Card,
}

/// Another file of the same repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Change {
    /// A smaller window.
    ContextTokens {
        /// As it is.
        from: u64,
        /// As it fits.
        to: u64,
    },
    /// Fewer sequences at once.
    MaxBatch {
        /// As it is.
        from: u64,
        /// As it fits.
        to: u64,
    },
    /// A KV cache of half the size.
    KvCacheTypeQ8,
    /// A smaller file of the same model.
    Quantization {
        /// Its name: a file, or the name of a quantization where nobody looked for files.
        name: String,
        /// Bytes of its weights.
        bytes: u64,
        /// Whether the bytes are those of a file that is there, and no estimate.
        exact: bool,
    },
    /// Layers on the CPU.
    CpuOffloadLayers {
        /// As it is.
        from: u64,
        /// As it fits.
        to: u64,
    },
    /// Another card.
    GpuProfile {
        /// Its profile.
        name: String,
    },
}

/// A change that makes the model fit, and what it needs then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// Bytes that are needed then.
    pub required: u64,
    /// Whether it is experimental.
    pub experimental: bool,
    /// The change in words.
    pub text: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ContextTokens { from, to } => write!(f, "contextTokens {from} -> {to}"),
            Self::MaxBatch { from, to } => write!(f, "maxBatch {from} -> {to}"),
            Self::KvCacheTypeQ8 => f.write_str("kvCacheType F16 -> Q8_0"),
            Self::Quantization { name, bytes, exact: true } => {
                write!(f, "the file {name} ({})", mebibytes(*bytes))
            }
            Self::Quantization { name, bytes, exact: false } => {
                write!(f, "a {name} file of the model (about {})", mebibytes(*bytes))
            }
            Self::CpuOffloadLayers { from, to } => {
                write!(f, "cpuOffloadLayers {from} -> {to} (experimental, several times slower)")
            }
            Self::GpuProfile { name } => write!(f, "gpuProfile {name}"),
        }
    }
}

/// Every single change that makes the model fit.
pub fn advise(question: &Question<'_>) -> Vec<Advice> {
    let Question { shape, setting, card, other_profiles, .. } = question;
    let mut all = Vec::new();
    let mut add = |change: Change, setting: Setting, card: Card, weights: Option<u64>| {
        let mut need = estimate(shape, &setting, card.runtime);
        need.weights = weights.unwrap_or(need.weights);
        let experimental = matches!(change, Change::CpuOffloadLayers { .. });
        all.push(Advice { text: change.to_string(), change, required: need.required(), experimental });
    };
    let context = max_context(shape, setting, *card) / CONTEXT_STEP * CONTEXT_STEP;
    if context > 0 && context < setting.context_tokens {
        let change = Change::ContextTokens { from: setting.context_tokens, to: context };
        add(change, Setting { context_tokens: context, ..*setting }, *card, None);
    }
    let batch = max_batch(shape, setting, *card);
    if batch > 0 && batch < setting.max_batch {
        let change = Change::MaxBatch { from: setting.max_batch, to: batch };
        add(change, Setting { max_batch: batch, ..*setting }, *card, None);
    }
    let q8 = Setting { kv_cache_type: KvCacheType::Q8_0, ..*setting };
    if setting.kv_cache_type == KvCacheType::F16 && shape.takes_q8_cache && fits(shape, &q8, *card) {
        add(Change::KvCacheTypeQ8, q8, *card, None);
    }
    if let Some((change, bytes)) = smaller_file(question) {
        add(change, *setting, *card, Some(bytes));
    }
    // Fewest layers that leave enough of the card: the sizes fall with every layer.
    let layers = shape.layers.len() as u64;
    let on_card = largest(layers.saturating_sub(setting.offload_layers), |on_card| {
        fits(shape, &Setting { offload_layers: layers - on_card, ..*setting }, *card)
    });
    if on_card > 0 && layers - on_card > setting.offload_layers {
        let change = Change::CpuOffloadLayers { from: setting.offload_layers, to: layers - on_card };
        add(change, Setting { offload_layers: layers - on_card, ..*setting }, *card, None);
    }
    let mut cards: Vec<_> = other_profiles.iter().filter(|other| fits(shape, setting, other.card)).collect();
    cards.sort_by_key(|other| other.card.available);
    for other in cards.into_iter().take(MAX_PROFILES) {
        add(Change::GpuProfile { name: other.name.clone() }, *setting, other.card, None);
    }
    all
}

/// The largest smaller file that fits: one that is there, or the size that a usual quantization would have.
fn smaller_file(question: &Question<'_>) -> Option<(Change, u64)> {
    let Question { shape, setting, card, other_files, .. } = question;
    if setting.offload_layers > 0 {
        return None;
    }
    let mut rest = estimate(shape, setting, card.runtime);
    let present = rest.weights;
    rest.weights = 0;
    let room = card.available.checked_sub(rest.required())?;
    let fitting = |bytes: u64| bytes < present && bytes <= room;
    if !other_files.is_empty() {
        let best = other_files.iter().filter(|file| fitting(file.bytes)).max_by_key(|file| file.bytes)?;
        let change = Change::Quantization { name: best.name.clone(), bytes: best.bytes, exact: true };
        return Some((change, best.bytes));
    }
    BITS_PER_WEIGHT
        .iter()
        .filter(|(name, _)| Some(*name) != shape.quantization.as_deref())
        .map(|(name, bits)| (*name, (shape.parameters as f64 * bits / 8.0) as u64))
        .find(|(_, bytes)| fitting(*bytes))
        .map(|(name, bytes)| (Change::Quantization { name: name.to_owned(), bytes, exact: false }, bytes))
}
