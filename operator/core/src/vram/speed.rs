//! How fast one sequence should be answered when layers are the processor's, before anything is fetched.
//!
//! Every token reads every weight once, so the time is that of the bytes: at the share of the card's bandwidth that
//! streams were seen to reach, and at what a machine's memory usually gives. A prediction, not a measurement; the
//! engine has the same model with its kernels' figures (engine/kernels/src/hip/predict) and says the same at its start.

use super::{ModelShape, Setting};

/// Share of the data sheet's bandwidth that streams reach, from published runs on an RX 7900 XTX.
const STREAM: f64 = 0.81;
/// Bytes a second that a machine's memory gives to products: two channels of DDR5-5600 are assumed.
pub const HOST_BYTES_PER_SECOND: f64 = 50e9;
/// Seconds of a layer's ten launches beyond their bytes.
const LAYER_GAP_SECONDS: f64 = 44e-6;

/// Bandwidth by the data sheets in 10^9 bytes a second, longer names first.
const CARDS: [(&str, f64); 8] = [
    ("7900 XTX", 960.0),
    ("7900 XT", 800.0),
    ("7900 GRE", 576.0),
    ("7800 XT", 624.0),
    ("7700 XT", 432.0),
    ("7600 XT", 288.0),
    ("7600", 288.0),
    ("W7900", 864.0),
];

/// Bytes a second of a card's memory by its product's name; `None` for cards that are not known.
#[must_use]
pub fn card_bytes_per_second(product: &str) -> Option<f64> {
    CARDS.iter().find(|(name, _)| product.contains(name)).map(|(_, gigabytes)| gigabytes * 1e9)
}

/// Tokens a second of one sequence with little context. The embedding counts as read, though only a row of it is.
#[must_use]
pub fn expected_tokens_per_second(shape: &ModelShape, setting: &Setting, card_bytes_per_second: f64) -> f64 {
    let offloaded = usize::try_from(setting.offload_layers).unwrap_or(usize::MAX).min(shape.layers.len());
    let (host, card) = shape.layers.split_at(offloaded);
    let bytes =
        |layers: &[super::LayerShape]| layers.iter().map(|layer| layer.weight_bytes as f64).sum::<f64>();
    let on_card = bytes(card) + shape.other_weight_bytes as f64;
    let seconds = bytes(host) / HOST_BYTES_PER_SECOND
        + on_card / (card_bytes_per_second * STREAM)
        + card.len() as f64 * LAYER_GAP_SECONDS;
    1.0 / seconds.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_apart_by_their_products_names() {
        for (product, expected) in [
            ("Radeon RX 7900 XTX", Some(960e9)),
            ("Radeon RX 7900 XT", Some(800e9)),
            ("Radeon RX 7600", Some(288e9)),
            ("Radeon PRO W7900", Some(864e9)),
            ("Instinct MI300X", None),
        ] {
            assert_eq!(card_bytes_per_second(product), expected, "{product}");
        }
    }
}
