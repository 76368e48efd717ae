//! YaRN: RoPE stretched to a longer context, short waves less than long ones.
//!
//! Sources: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071),
//! sections 3.2 and 3.4. As in its authors' code, in transformers and in llama.cpp, the ramp between waves that stay and
//! waves that are stretched is linear in the pair's number, between whole numbers.

/// Turns over the original context from which on a wave stays as it is.
pub const BETA_FAST: f64 = 32.0;
/// Turns over the original context up to which a wave is stretched in full.
pub const BETA_SLOW: f64 = 1.0;

/// How a model's RoPE is stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// The longer context over the original one.
    pub factor: f64,
    /// Context that the model was trained for before it was stretched, in tokens.
    pub original_context: f64,
    /// Waves with more turns than this over the original context stay.
    pub beta_fast: f64,
    /// Waves with fewer are stretched by the whole factor.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded outwards to whole pairs, as everybody does but gpt-oss.
    pub whole_pairs: bool,
}

impl Yarn {
    /// What the frequency of each pair is divided by: 1 where it stays, the factor where it is stretched.
    ///
    /// # Shapes
    /// `[rope_size / 2]`.
    pub fn divisors(&self, base: f64, rope_size: usize) -> Vec<f32> {
        let size = rope_size as f64;
        // The pair whose wave makes so many turns over the original context.
        let pair_of = |turns: f64| {
            size * (self.original_context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
        };
        let (low, high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        let (low, high) = if self.whole_pairs { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(size - 1.0));
        let width = if high == low { 0.001 } else { high - low };
        let divisor = |pair: usize| {
            let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
            1.0 / (stretched / self.factor + (1.0 - stretched))
        };
        (0..rope_size / 2).map(|pair| divisor(pair) as f32).collect()
    }

    /// Tokens that the stretched model can tell apart.
    pub fn context(&self) -> usize {
        (self.original_context * self.factor) as usize
    }
}

/// What queries and keys are both multiplied by after their turn: `0.1 m ln(factor) + 1`.
pub fn yarn_attention(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen() -> Yarn {
        Yarn {
            factor: 4.0,
            original_context: 32_768.0,
            beta_fast: BETA_FAST,
            beta_slow: BETA_SLOW,
            whole_pairs: true,
        }
    }

    /// Section 3.2 by wavelengths: what turns more than 32 times in the original context stays, what turns less than
    /// once is stretched by the factor, and between them divisors grow.
    #[test]
    fn short_waves_stay_and_long_ones_are_stretched() {
        for (base, size, original, factor) in [
            (1e6, 128, 32_768.0, 4.0),
            (1e4, 64, 2048.0, 16.0),
            (5e5, 128, 8192.0, 8.0),
            (1e4, 80, 4096.0, 2.0),
        ] {
            let yarn = Yarn { factor, original_context: original, ..qwen() };
            let divisors = yarn.divisors(base, size);
            assert_eq!(divisors.len(), size / 2);
            for (pair, divisor) in divisors.iter().enumerate() {
                let wavelength = std::f64::consts::TAU * f64::powf(base, 2.0 * pair as f64 / size as f64);
                let (turns, divisor) = (original / wavelength, f64::from(*divisor));
                // The ramp's ends are whole pairs, so a pair at either end may be beside its wavelength's side.
                let step = f64::powf(base, 2.0 / size as f64);
                if turns > 32.0 * step {
                    assert_eq!(divisor, 1.0, "pair {pair} of {size}");
                } else if turns < 1.0 / step {
                    assert_eq!(divisor, factor, "pair {pair} of {size}");
                } else {
                    assert!((1.0..=factor).contains(&divisor), "pair {pair} of {size}: {divisor}");
                }
            }
            assert!(divisors.is_sorted(), "{divisors:?}");
        }
    }

    /// The ramp of Qwen2.5 with a factor of 4, worked out by hand: 32 turns are pair 23.6, one turn is pair 39.7.
    #[test]
    fn the_ramp_is_linear_in_the_pair() {
        let divisors = qwen().divisors(1e6, 128);
        assert_eq!((divisors[23], divisors[40], divisors[63]), (1.0, 4.0, 4.0));
        for pair in 24..40_u8 {
            let stretched = f64::from(pair - 23) / 17.0;
            let expected = 1.0 / (stretched * 0.25 + 1.0 - stretched);
            assert!((f64::from(divisors[usize::from(pair)]) - expected).abs() < 1e-6, "{pair}");
        }
        let exact = Yarn { whole_pairs: false, ..qwen() }.divisors(1e6, 128);
        let stretched = (24.0 - 23.5964) / (39.6508 - 23.5964);
        assert!(
            (f64::from(exact[24]) - 1.0 / (stretched * 0.25 + 1.0 - stretched)).abs() < 1e-4,
            "{}",
            exact[24]
        );
        assert_eq!(qwen().context(), 131_072);
    }

    #[test]
    fn attention_is_sharpened_with_the_factor() {
        assert_eq!((yarn_attention(1.0, 1.0), yarn_attention(0.5, 1.0)), (1.0, 1.0));
        // sqrt(1/t) = 0.1 ln(s) + 1, equation 22.
        assert!((yarn_attention(4.0, 1.0) - 1.138_629_436).abs() < 1e-9);
        assert!((yarn_attention(40.0, 0.707) - 1.260_803_8).abs() < 1e-6);
    }
}
