//! The products against candle, over every type, instruction set and random shape.

use super::*;
use crate::testing::{Numbers, quantized};

#[test]
fn every_type_reads_as_candle_reads_it() {
    for block in BlockType::ALL {
        let (bytes, expected) = quantized(block, &Numbers(block.ggml().into()).list(1024));
        let mut out = vec![0.0; 512];
        let weights = Weights::new(block, &bytes, 2, 512).unwrap();
        for row in 0..2 {
            weights.row(row, &mut out);
            for (value, expected) in out.iter().zip(&expected[row * 512..]) {
                assert!((value - expected).abs() < 1e-6, "{block:?}: {value} {expected}");
            }
        }
    }
}

#[test]
fn halves_cover_every_kind_of_number() {
    for (bits, expected) in [
        (0x3c00_u16, 1.0),
        (0xc000, -2.0),
        (0x0001, 2.0_f32.powi(-24)),
        (0x7bff, 65504.0),
        (0x0400, 2.0_f32.powi(-14)),
        (0x7c00, f32::INFINITY),
    ] {
        let mut out = [0.0];
        dequantize(BlockType::F16, &bits.to_le_bytes(), &mut out);
        assert_eq!(out, [expected], "{bits:x}");
    }
}

#[test]
fn products_match_the_definition_on_every_level_and_do_not_depend_on_company() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    let mut numbers = Numbers(3);
    for block in BlockType::ALL {
        let (elements, _) = block.size();
        for (rows, blocks, count) in [(1, 1, 1), (7, 2, 3), (64, 3, 9), (130, 9, 6)] {
            // Types of one element a block also get lengths that are no whole number of lanes.
            let columns = if elements == 1 { blocks * 37 } else { blocks * elements };
            let (bytes, values) = quantized(block, &numbers.list(rows * columns));
            let weights = Weights::new(block, &bytes, rows, columns).unwrap();
            let x = numbers.list(count * columns);
            for level in Level::available() {
                let mut out = vec![f32::NAN; count * rows];
                weights.multiply_on(level, &pools[1], &x, &mut out, rows, 0);
                for (at, out) in out.iter().enumerate() {
                    let (x, w) =
                        (&x[at / rows * columns..][..columns], &values[at % rows * columns..][..columns]);
                    let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let difference = (f64::from(*out) - expected).abs();
                    assert!(difference < 1e-4, "{level:?} {block:?} {rows} x {columns}: {out} {expected}");
                }
                for (x, out) in x.chunks(columns).zip(out.chunks(rows)) {
                    let mut alone = vec![f32::NAN; rows];
                    weights.multiply_on(level, &pools[0], x, &mut alone, rows, 0);
                    assert_eq!(alone, out, "{level:?} {block:?}: a row alone and in company");
                }
            }
        }
    }
}

#[test]
fn bytes_of_another_shape_are_refused() {
    let bytes = [0; 20 * 6];
    assert!(Weights::new(BlockType::Q4_1, &bytes, 3, 64).is_ok());
    for (rows, columns) in [(3, 32), (4, 64), (3, 40), (usize::MAX, 64), (0, 0)] {
        assert!(Weights::new(BlockType::Q4_1, &bytes, rows, columns).is_err(), "{rows} x {columns}");
    }
}
