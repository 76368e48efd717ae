//! The small operations between matrix products, on f32 rows.

/// `out[t] = x[t] / rms(x[t]) * weight`.
///
/// # Shapes
/// `x`: `[T, d]`, `weight`: `[d]`; the result: `[T, d]`. Source: Zhang and Sennrich 2019.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let scale = 1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt();
        out.extend(row.iter().zip(weight).map(|(value, weight)| value * scale * weight));
    }
    out
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `gate = silu(gate) * up` (Shazeer 2020).
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// The inner product, summed in a fixed order of sixteen lanes that the compiler can vectorise.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x_chunks, x_rest) = x.as_chunks::<16>();
    let (y_chunks, y_rest) = y.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for lane in 0..16 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let mut half = 8;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0] + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn norm_and_gate_match_hand_computed_values() {
        let normed = rms_norm(&[3.0, 4.0, 0.0, 2.0], &[1.0, 2.0], 0.0);
        let expected = [3.0 / 12.5_f32.sqrt(), 8.0 / 12.5_f32.sqrt(), 0.0, 4.0 / 2.0_f32.sqrt()];
        for (value, expected) in normed.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{normed:?}");
        }
        let mut gate = [0.0, 1.0];
        swiglu(&mut gate, &[5.0, 2.0]);
        assert!(gate[0] == 0.0 && (gate[1] - 2.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn dot_is_the_inner_product(values in prop::collection::vec((-4.0_f32..4.0, -4.0_f32..4.0), 0..80)) {
            let (x, y): (Vec<_>, Vec<_>) = values.iter().copied().unzip();
            let exact: f64 = values.iter().map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            prop_assert!((f64::from(dot(&x, &y)) - exact).abs() < 1e-3);
        }
    }
}
