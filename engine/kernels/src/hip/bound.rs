//! What decoding cannot be faster than: every token reads all weights and the sequence's cache once.
//!
//! A bound, not a prediction: the fraction of it that kernels reach has to be measured on a card, and none has been.

/// What a step of decoding reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decode {
    /// The card's memory bandwidth in 10^9 bytes a second.
    pub gigabytes_per_second: f64,
    /// Bytes of weights.
    pub weight_bytes: f64,
    /// Bytes of the KV cache a position, over all layers.
    pub kv_bytes_per_position: f64,
    /// Positions of each sequence.
    pub context: f64,
    /// Sequences decoded together.
    pub batch: f64,
}

impl Decode {
    /// Tokens a second over all sequences, at most.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        let Self { gigabytes_per_second, weight_bytes, kv_bytes_per_position, context, batch } = *self;
        batch * gigabytes_per_second * 1e9 / (weight_bytes + batch * context * kv_bytes_per_position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/hardware.md: CodeLlama 13B and Mistral 7B in Q4_K_M with f16 caches.
    #[test]
    fn bounds_are_those_of_the_document() {
        let xtx = |context, batch| Decode {
            gigabytes_per_second: 960.0,
            weight_bytes: 7.866e9,
            kv_bytes_per_position: 40.0 * 40.0 * 128.0 * 4.0,
            context,
            batch,
        };
        let small = Decode {
            gigabytes_per_second: 288.0,
            weight_bytes: 4.368e9,
            kv_bytes_per_position: 32.0 * 8.0 * 128.0 * 4.0,
            context: 512.0,
            batch: 1.0,
        };
        for (decode, expected) in [
            (xtx(512.0, 1.0), 116.0),
            (xtx(512.0, 4.0), 402.0),
            (xtx(4096.0, 1.0), 86.0),
            (xtx(4096.0, 4.0), 180.0),
            (small, 65.0),
        ] {
            let found = decode.tokens_per_second();
            assert!((found - expected).abs() < 0.6, "{decode:?}: {found}");
        }
    }
}
