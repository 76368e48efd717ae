//! Whether a model fits a card, with how much to spare, and how far context and batch could go.

use serde::Serialize;

use super::{
    Advice, ModelShape, Need, OtherFile, OtherProfile, Setting,
    advice::advise,
    estimate::{RUNTIME_BYTES, estimate},
};

/// Largest batch that the API takes.
const MAX_BATCH: u64 = 256;
/// Largest context that the API takes.
const MAX_CONTEXT: u64 = 1 << 20;
/// A plan that leaves less than this share of the card is tight.
const TIGHT_SHARE: u64 = 10;

/// What a card offers to one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Bytes that may be used: memory less reserve, or the tier's cap.
    pub available: u64,
    /// What the runtime takes of them.
    pub runtime: u64,
}

impl Card {
    /// A card on which nothing was measured: with the runtime's estimated share.
    #[must_use]
    pub const fn with_available(available: u64) -> Self {
        Self { available, runtime: RUNTIME_BYTES }
    }
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The model.
    pub shape: &'a ModelShape,
    /// What the tier asks of it.
    pub setting: Setting,
    /// The tier's card.
    pub card: Card,
    /// Other profiles of the cluster, for advice.
    pub other_profiles: &'a [OtherProfile],
    /// Other quantizations beside the file, for advice; empty where nobody looked.
    pub other_files: &'a [OtherFile],
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VramPlan {
    /// The terms.
    #[serde(flatten)]
    pub need: Need,
    /// Activations and runtime together.
    pub overhead: u64,
    /// Sum of all terms.
    pub required: u64,
    /// What the card offers.
    pub available: u64,
    /// Whether it fits.
    pub fits: bool,
    /// Whether it fits with less than a tenth of the card left.
    pub tight: bool,
    /// Whether it relies on what is experimental: layers on the CPU.
    pub experimental: bool,
    /// Largest context in tokens that fits at this batch; 0 where none does.
    pub max_context_tokens: u64,
    /// Largest batch that fits at this context; 0 where none does.
    // Beside a tier's own maxBatch in one JSON object, a name of its own.
    #[serde(rename = "largestBatch")]
    pub max_batch: u64,
    /// Single changes that make it fit, the cheapest first; empty where it fits.
    pub advice: Vec<Advice>,
}

/// Plans a model on a card.
#[must_use]
pub fn plan_vram(question: &Question<'_>) -> VramPlan {
    let Question { shape, setting, card, .. } = question;
    let need = estimate(shape, setting, card.runtime);
    let required = need.required();
    let fits = required <= card.available;
    VramPlan {
        need,
        overhead: need.overhead(),
        required,
        available: card.available,
        fits,
        tight: fits && card.available - required < card.available / TIGHT_SHARE,
        experimental: setting.offload_layers > 0,
        max_context_tokens: max_context(shape, setting, *card),
        max_batch: max_batch(shape, setting, *card),
        advice: if fits { Vec::new() } else { advise(question) },
    }
}

/// Whether a setting fits.
pub fn fits(shape: &ModelShape, setting: &Setting, card: Card) -> bool {
    estimate(shape, setting, card.runtime).required() <= card.available
}

/// Largest context that fits, up to what the model was trained for or the tier asks for.
pub fn max_context(shape: &ModelShape, setting: &Setting, card: Card) -> u64 {
    let limit = shape.trained_context.max(setting.context_tokens).min(MAX_CONTEXT);
    largest(limit, |context_tokens| fits(shape, &Setting { context_tokens, ..*setting }, card))
}

/// Largest batch that fits.
pub fn max_batch(shape: &ModelShape, setting: &Setting, card: Card) -> u64 {
    largest(MAX_BATCH, |max_batch| fits(shape, &Setting { max_batch, ..*setting }, card))
}

/// Largest number from 1 to `limit` that holds, where every smaller one holds too; 0 where none does.
pub fn largest(limit: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}
