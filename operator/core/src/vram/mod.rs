//! How much memory of a card a model needs, what fits, and what to change where it does not.
//!
//! The numbers come from the model's own header, never from its name; nothing here reads a file or asks a card.
//! What a card really uses beyond that (the runtime's share) is a constant until engines have measured it.

mod advice;
mod calibration;
mod estimate;
mod plan;
mod reported;
mod safetensors;
mod shape;
mod speed;

pub use advice::{Advice, Change, OtherFile, OtherProfile};
pub use atlas_format::SafetensorsError;
pub use calibration::{
    Calibrations, LOWER_AFTER, MAX_RUNTIME_BYTES, MIN_RUNTIME_BYTES, Measured, RUNTIME_STEP_BYTES, calibrate,
};
pub use estimate::{Need, RUNTIME_BYTES, Setting, estimate};
pub use plan::{Card, Question, VramPlan, plan_vram};
pub use safetensors::{read_index_bytes, read_safetensors_header};
pub use shape::{GGUF_ARCHITECTURES, LayerShape, MODEL_TYPES, ModelShape, ShapeError};
pub use speed::{HOST_BYTES_PER_SECOND, card_bytes_per_second, expected_tokens_per_second};

use atlas_crds::{GpuProfileSpec, Tier, quantity::parse_bytes};

/// Bytes that a tier may use: the card's memory less the reserve, or the tier's own cap where that is less.
/// `None` where a quantity cannot be read.
#[must_use]
pub fn available_bytes(profile: &GpuProfileSpec, tier: &Tier) -> Option<u64> {
    let card = profile_bytes(profile)?;
    match &tier.max_vram {
        None => Some(card),
        Some(cap) => parse_bytes(cap).map(|cap| cap.min(card)),
    }
}

/// Bytes of a card that models may use: its memory less the reserve.
#[must_use]
pub fn profile_bytes(profile: &GpuProfileSpec) -> Option<u64> {
    parse_bytes(&profile.vram)?.checked_sub(parse_bytes(&profile.reserved_vram)?)
}

/// Bytes as whole MiB, rounded up as everywhere that people read them: too much is safer than too little.
#[must_use]
pub fn whole_mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Bytes as people read them beside a card's memory: whole MiB, with thousands apart.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    let digits = whole_mebibytes(bytes).to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + " MiB"
}
