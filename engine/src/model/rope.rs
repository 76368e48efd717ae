//! Rotary position embedding on interleaved pairs, as GGUF stores Llama's query and key rows.

use super::config::ModelConfig;

/// The angles' frequencies of one model.
pub struct Rope {
    /// Radians a position for each pair.
    frequencies: Vec<f32>,
    head_size: usize,
}

impl Rope {
    /// Frequencies from the base; `factors` are `rope_freqs.weight` (Llama 3's scaling), one divisor a pair.
    pub fn new(config: &ModelConfig, factors: Option<&[f32]>) -> Self {
        let frequencies = (0..config.rope_size / 2).map(|pair| {
            let frequency = 1.0 / config.rope_base.powf(2.0 * pair as f32 / config.rope_size as f32);
            let factor = factors.and_then(|factors| factors.get(pair)).copied().unwrap_or(1.0);
            frequency / factor / config.rope_divisor
        });
        Self { frequencies: frequencies.collect(), head_size: config.head_size }
    }

    /// Sine and cosine of each pair at one position.
    pub fn angles(&self, position: usize) -> Vec<(f32, f32)> {
        self.frequencies.iter().map(|frequency| (position as f32 * frequency).sin_cos()).collect()
    }

    /// Turns every head of a row in place.
    ///
    /// # Shapes
    /// `row`: `[heads * head_size]`; elements beyond the RoPE dimensions stay.
    pub fn turn(&self, row: &mut [f32], angles: &[(f32, f32)]) {
        for head in row.chunks_exact_mut(self.head_size) {
            let (pairs, _) = head.as_chunks_mut::<2>();
            for ([x, y], (sin, cos)) in pairs.iter_mut().zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}
