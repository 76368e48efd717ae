//! What a card's memory lets an engine reach at best, so that a slow one can be told from a busy one.
//!
//! A token of one sequence reads every weight once, so the memory's bandwidth bounds it; kernels reach a part of that.

/// Bandwidth of cards that have a sample profile, in bytes a second, by product name. Source: AMD's product pages.
const BANDWIDTHS: [(&str, u64); 8] = [
    ("Radeon RX 7900 XTX", 960_000_000_000),
    ("Radeon RX 7900 XT", 800_000_000_000),
    ("Radeon RX 7900 GRE", 576_000_000_000),
    ("Radeon RX 7800 XT", 624_000_000_000),
    ("Radeon RX 7700 XT", 432_000_000_000),
    ("Radeon RX 7600 XT", 288_000_000_000),
    ("Radeon RX 7600", 288_000_000_000),
    ("Radeon PRO W7900", 864_000_000_000),
];
/// Part of the bandwidth that decoding one sequence reaches, in hundredths. Source: runs of llama.cpp with an 8B in
/// Q4_K_M on an RX 7900 XTX, 105 tokens a second (ggml-org/llama.cpp pull request 26284).
const REACHED_PERCENT: u64 = 54;

/// Seconds that a step over these weights should take on a card of this name; `None` for a card that is not known.
#[must_use]
pub fn expected_step_seconds(product: &str, weight_bytes: u64) -> Option<f64> {
    let (_, bandwidth) = BANDWIDTHS.iter().find(|(name, _)| *name == product)?;
    let reached = bandwidth / 100 * REACHED_PERCENT;
    Some(weight_bytes as f64 / reached as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_as_long_as_its_weights_need_from_memory() {
        let tokens = |product: &str, bytes| expected_step_seconds(product, bytes).map(|s| (1.0 / s) as u64);
        // The run that the share is from: 4.92 GB of weights.
        assert_eq!(tokens("Radeon RX 7900 XTX", 4_920_000_000), Some(105));
        assert_eq!(tokens("Radeon RX 7600", 4_370_000_000), Some(35));
        assert_eq!(tokens("Radeon RX 9999", 1), None);
    }
}
