//! The products against candle's dequantization and against the scalar reference, over random shapes.

use super::*;
use crate::blocks::BlockType;
use crate::pool::Pool;
use crate::product::Weights;
use crate::testing::{Numbers, quantized};
use atlas_engine_core::backend::SharedBytes;
use std::sync::Arc;

/// Every type that can be repacked.
const TYPES: [BlockType; 11] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::F32,
];

fn activations(x: &[f32], columns: usize, operands: Operands) -> Activations {
    let mut activations = Activations::new();
    activations.fill(&Pool::new(2).unwrap(), x, columns, operands);
    activations
}

/// The activations as the kernels see them.
fn as_quantized(x: &[f32]) -> Vec<f32> {
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        group
            .iter()
            .map(move |value| (value * (127.0 / largest)).round_ties_even() * scale)
            .collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(group).collect()
}

#[test]
fn repacked_rows_read_as_candle_reads_them() {
    let pool = Pool::new(2).unwrap();
    for block in TYPES {
        for rows in [1, 16, 45] {
            let (bytes, expected) = quantized(block, &Numbers(block.ggml().into()).list(rows * 512));
            let weights = Weights::new(block, &bytes, rows, 512).unwrap();
            let packed = Packed::new(&pool, &[weights]).unwrap();
            let mut out = vec![0.0; 512];
            for row in 0..rows {
                packed.row(row, &mut out);
                for (value, expected) in out.iter().zip(&expected[row * 512..]) {
                    assert!((value - expected).abs() < 1e-6, "{block:?} {row}: {value} {expected}");
                }
            }
        }
    }
}

#[test]
fn repacked_weights_take_the_files_bits() {
    let pool = Pool::new(1).unwrap();
    for block in TYPES {
        let bytes = vec![0; block.row_bytes(512).unwrap() * 64];
        let packed = Packed::new(&pool, &[Weights::new(block, &bytes, 64, 512).unwrap()]).unwrap();
        assert_eq!(packed.byte_count(), bytes.len(), "{block:?}");
    }
}

#[test]
fn products_match_the_definition_and_depend_neither_on_company_nor_on_the_instruction_set() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    let mut numbers = Numbers(3);
    for block in TYPES {
        let (elements, _) = block.size();
        // 18 groups of 32 are SmolLM2's 576 columns.
        let shapes = [(1, 1, 1), (7, 2, 3), (64, 3, 9), (33, 18, 23)];
        for (rows, blocks, count) in shapes {
            let columns = if elements == 1 { blocks * 37 } else { blocks * elements };
            let (bytes, values) = quantized(block, &numbers.list(rows * columns));
            let weights = Weights::new(block, &bytes, rows, columns).unwrap();
            let x = numbers.list(count * columns);
            let mut reference: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let packed = Packed::on(isa, &pools[1], &[weights]).unwrap();
                let seen = if packed.operands().int8 { as_quantized(&x) } else { x.clone() };
                let mut out = vec![f32::NAN; count * rows];
                packed.multiply(&pools[1], &activations(&x, columns, packed.operands()), &mut out);
                for (at, out) in out.iter().enumerate() {
                    let (x, w) = (&seen[at / rows * columns..], &values[at % rows * columns..][..columns]);
                    let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let difference = (f64::from(*out) - expected).abs();
                    assert!(difference < 2e-4, "{isa:?} {block:?} {rows} x {columns}: {out} {expected}");
                }
                for (x, out) in x.chunks(columns).zip(out.chunks(rows)) {
                    let mut alone = vec![f32::NAN; rows];
                    packed.multiply(&pools[0], &activations(x, columns, packed.operands()), &mut alone);
                    assert_eq!(alone, out, "{isa:?} {block:?}: a row alone and in company");
                }
                let reference = reference.get_or_insert_with(|| out.clone());
                assert_eq!(*reference, out, "{isa:?} {block:?} against the scalar reference");
            }
        }
    }
}

#[test]
fn rows_in_a_file_give_bit_by_bit_what_panels_give() {
    let pool = Pool::new(3).unwrap();
    let mut numbers = Numbers(11);
    for block in TYPES {
        for (rows, columns, count) in [(1, 256, 1), (32, 512, 3), (77, 768, 140), (200, 2048, 1)] {
            let (bytes, _) = quantized(block, &numbers.list(rows * columns));
            // What lies around the matrix is nobody's.
            let around = [vec![255; 7], bytes, vec![255; 9]].concat();
            let bytes = SharedBytes::new(Arc::new(around.clone()), 7..around.len() - 9).unwrap();
            let x = numbers.list(count * columns);
            for isa in Isa::available() {
                let parts = [(block, bytes.clone(), rows)];
                let mut packed = Packed::deferred_on(isa, columns, &parts).unwrap();
                let x = activations(&x, columns, packed.operands());
                let results = |packed: &Packed| {
                    let mut out = vec![f32::NAN; count * rows];
                    packed.multiply(&pool, &x, &mut out);
                    let mut row = vec![f32::NAN; columns];
                    packed.row(rows - 1, &mut row);
                    (out, row)
                };
                let before = results(&packed);
                assert!(!packed.is_settled());
                packed.settle(&pool).unwrap();
                assert!(packed.is_settled());
                let bits = |(out, row): &(Vec<f32>, Vec<f32>)| -> Vec<u32> {
                    out.iter().chain(row).map(|value| value.to_bits()).collect()
                };
                assert_eq!(bits(&before), bits(&results(&packed)), "{isa:?} {block:?} {rows} x {columns}");
                let eager = Packed::on(isa, &pool, &[Weights::new(block, &bytes, rows, columns).unwrap()]);
                assert_eq!(bits(&before), bits(&results(&eager.unwrap())), "{isa:?} {block:?}");
            }
        }
    }
}

/// Bytes of a small matrix that look random, with scales that are small numbers; needs no quantizer, so that Miri gets
/// through it.
fn any_matrix(block: BlockType, rows: usize, columns: usize) -> Vec<u8> {
    let (_, size) = block.size();
    let scales: &[usize] = match block {
        BlockType::Q6K => &[208],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::F16 | BlockType::Bf16 | BlockType::F32 => &[],
        _ => &[0],
    };
    if block.is_float() {
        // Bytes of 0x3c to 0x3d begin numbers around 1 in all three types.
        return (0..block.row_bytes(columns).unwrap() * rows).map(|at| 0x3c + (at % 7 / 6) as u8).collect();
    }
    let mut bytes: Vec<u8> = (0..block.row_bytes(columns).unwrap() * rows)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        for at in scales {
            block[*at..at + 2].copy_from_slice(&0x2c03_u16.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn small_matrices_of_any_bytes_give_their_definition_from_rows_and_from_panels() {
    let pool = Pool::new(2).unwrap();
    let (rows, columns) = (35, 256);
    let x = Numbers(4).list(3 * columns);
    for block in TYPES {
        let bytes = any_matrix(block, rows, columns);
        let range = 0..bytes.len();
        let bytes = SharedBytes::new(Arc::new(bytes), range).unwrap();
        for isa in Isa::available() {
            let mut packed = Packed::deferred_on(isa, columns, &[(block, bytes.clone(), rows)]).unwrap();
            let made = activations(&x, columns, packed.operands());
            let seen = if packed.operands().int8 { as_quantized(&x) } else { x.clone() };
            let mut results = Vec::new();
            for _ in 0..2 {
                let mut out = vec![f32::NAN; 3 * rows];
                packed.multiply(&pool, &made, &mut out);
                results.push(out);
                packed.settle(&pool).unwrap();
            }
            assert_eq!(results[0], results[1], "{isa:?} {block:?}");
            let mut row = vec![0.0; columns];
            for at in [0, 31, 34] {
                Weights::new(block, &bytes, rows, columns).unwrap().row(at, &mut row);
                for (x, out) in seen.chunks(columns).zip(results[0].chunks(rows)) {
                    let exact: f64 = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let size: f64 = x.iter().zip(&row).map(|(x, w)| f64::from(x * w).abs()).sum();
                    let error = (f64::from(out[at]) - exact).abs();
                    assert!(error <= 1e-5 * size, "{isa:?} {block:?}: {} {exact}", out[at]);
                }
            }
        }
    }
}

#[test]
fn parts_of_several_types_are_one_matrix() {
    let pool = Pool::new(2).unwrap();
    let mut numbers = Numbers(5);
    let parts = [(BlockType::Q4K, 40), (BlockType::Q6K, 33), (BlockType::F16, 5)];
    let stored: Vec<_> =
        parts.iter().map(|(block, rows)| quantized(*block, &numbers.list(rows * 512)).0).collect();
    let weights: Vec<_> = parts
        .iter()
        .zip(&stored)
        .map(|((block, rows), bytes)| Weights::new(*block, bytes, *rows, 512).unwrap())
        .collect();
    let whole = Packed::new(&pool, &weights).unwrap();
    let x = activations(&numbers.list(7 * 512), 512, whole.operands());
    let mut out = vec![f32::NAN; 7 * 78];
    whole.multiply(&pool, &x, &mut out);
    let (mut first, mut row) = (0, vec![0.0; 512]);
    for weights in weights {
        let rows = weights.rows();
        let part = Packed::new(&pool, &[weights]).unwrap();
        let mut alone = vec![f32::NAN; 7 * rows];
        part.multiply(&pool, &x, &mut alone);
        for (out, alone) in out.chunks(78).zip(alone.chunks(rows)) {
            assert_eq!(&out[first..first + rows], alone);
        }
        let mut expected = vec![0.0; 512];
        part.row(rows - 1, &mut expected);
        whole.row(first + rows - 1, &mut row);
        assert_eq!(row, expected);
        first += rows;
    }
}

#[test]
fn what_cannot_be_one_matrix_is_refused() {
    let pool = Pool::new(1).unwrap();
    let bytes = [0; 144 * 4];
    let four = Weights::new(BlockType::Q4K, &bytes[..144], 1, 256).unwrap();
    let wide = Weights::new(BlockType::Q4K, &bytes[..288], 1, 512).unwrap();
    let two = Weights::new(BlockType::Q2K, &bytes[..84], 1, 256).unwrap();
    assert!(matches!(
        Packed::new(&pool, &[four, wide]),
        Err(PackError::Columns { found: 512, expected: 256 })
    ));
    let short = SharedBytes::new(Arc::new(bytes.to_vec()), 0..143).unwrap();
    assert!(matches!(Packed::deferred(256, &[(BlockType::Q4K, short, 1)]), Err(PackError::Shape(_))));
    assert!(matches!(Packed::new(&pool, &[two]), Err(PackError::Type { block: BlockType::Q2K })));
}
