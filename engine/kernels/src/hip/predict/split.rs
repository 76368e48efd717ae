//! How fast one sequence is answered when the processor computes the first layers: their bytes come from the machine's
//! memory, and every token waits for them.

use super::{CardLimits, Llama, RX_7600, RX_7900_XTX, predict};

/// 10^9 bytes a second that the machine's memory gives to products. Assumed: two channels of DDR5-5600 have 90, and
/// processors that unpack weights on the way get some 0.55 of it. Machines differ; the figures scale with it.
pub const HOST_GIGABYTES_PER_SECOND: f64 = 50.0;
/// Launches of a layer, as `launches` lists them.
const LAUNCHES_PER_LAYER: f64 = 10.0;

/// What a token reads, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// Bytes of weights on the card.
    pub card_bytes: u64,
    /// Layers on the card.
    pub card_layers: usize,
    /// Bytes of weights of the processor's layers.
    pub host_bytes: u64,
}

impl CardLimits {
    /// The data sheet of a card that the driver describes so; `None` for cards that are not known.
    #[must_use]
    pub fn of(gfx_target: &str, vram_bytes: u64) -> Option<Self> {
        match (gfx_target, vram_bytes >> 30) {
            ("gfx1100", 23..=24) => Some(RX_7900_XTX),
            // With 8 or 16 GB, the memory is equally wide.
            ("gfx1102", 7..=16) => Some(RX_7600),
            _ => None,
        }
    }
}

impl Split {
    /// Tokens a second of one sequence with little context.
    #[must_use]
    pub fn tokens_per_second(&self, card: &CardLimits) -> f64 {
        let card_ms = self.card_bytes as f64 / (card.gigabytes_per_second * card.stream) / 1e6;
        let gaps_ms = self.card_layers as f64 * LAUNCHES_PER_LAYER * card.gap_microseconds / 1e3;
        1e3 / (card_ms + gaps_ms + self.host_bytes as f64 / HOST_GIGABYTES_PER_SECOND / 1e6)
    }
}

/// Tokens a second of a model whose first layers are the processor's, kernel by kernel on the card.
#[must_use]
pub fn predict_split(card: &CardLimits, model: &Llama, context: u32, host_layers: u32) -> f64 {
    let on_card = Llama { layers: model.layers.saturating_sub(host_layers), ..*model };
    let cache = model.cache_bytes_per_layer() * f64::from(context);
    let host_bytes: f64 = (0..host_layers).map(|layer| model.layer_bytes(layer) + cache).sum();
    let host_ms = host_bytes / HOST_GIGABYTES_PER_SECOND / 1e6;
    1e3 / (predict(card, &on_card, context, 1).milliseconds() + host_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The planner says the same of these two (operator/core/src/vram/speed.rs).
    #[test]
    fn a_34b_is_read_by_the_card_and_a_70b_waits_for_the_machines_memory() {
        for (model, host_layers, low, high) in [(Llama::B34, 0, 28.0, 40.0), (Llama::B70, 42, 1.9, 2.4)] {
            let host_bytes: f64 = (0..host_layers).map(|layer| model.layer_bytes(layer)).sum();
            let split = Split {
                card_bytes: (model.read_bytes() - host_bytes) as u64,
                card_layers: (model.layers - host_layers) as usize,
                host_bytes: host_bytes as u64,
            };
            for found in
                [predict_split(&RX_7900_XTX, &model, 512, host_layers), split.tokens_per_second(&RX_7900_XTX)]
            {
                assert!((low..high).contains(&found), "{}: {found}", model.name);
            }
        }
    }

    #[test]
    fn a_card_is_known_by_its_target_and_memory_or_not_at_all() {
        let name = |target, bytes: u64| CardLimits::of(target, bytes).map(|card| card.name);
        assert_eq!(name("gfx1100", 24560 << 20), Some("RX 7900 XTX"));
        assert_eq!(name("gfx1100", 20464 << 20), None);
        assert_eq!(name("gfx1102", 8176 << 20), Some("RX 7600"));
        assert_eq!(name("gfx942", 24560 << 20), None);
    }
}
