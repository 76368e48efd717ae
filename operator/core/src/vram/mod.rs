//! What a card offers to a model.
//!
//! The need of a model is not computed here yet: it comes from the file's header, which the engine reads first.

use atlas_crds::{GpuProfileSpec, Tier, quantity::parse_bytes};

/// Bytes that a tier may use: the card's memory less the reserve, or the tier's own cap where that is less.
/// `None` where a quantity cannot be read.
#[must_use]
pub fn available_bytes(profile: &GpuProfileSpec, tier: &Tier) -> Option<u64> {
    let card = parse_bytes(&profile.vram)?.checked_sub(parse_bytes(&profile.reserved_vram)?)?;
    match &tier.max_vram {
        None => Some(card),
        Some(cap) => parse_bytes(cap).map(|cap| cap.min(card)),
    }
}
