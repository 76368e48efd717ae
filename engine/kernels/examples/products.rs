//! Measures the products of repacked weights against what the processor can do, in the same run.
//!
//! `cargo run -p atlas-kernels --example products -- [threads]` prints, for every type and number of rows, the rate of
//! multiplications and of weight bytes, and their share of the measured peaks. It reads 512 MiB to measure the memory.

use atlas_kernels::{Activations, BlockType, Packed, Pages, Pool, Weights, peak};
use std::time::Instant;

const TYPES: [BlockType; 9] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
    BlockType::F16,
];
/// Rows of weights for one row of activations: so many come from memory, not from a cache.
const ROWS: usize = 49_152;
/// Rows of weights for several: a product that is short, so that some repetition of it runs undisturbed.
const FEW: usize = 2048;
const COLUMNS: usize = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |threads| threads.parse())?;
    let pool = Pool::new(threads)?;
    let _awake = pool.keep_awake();
    let bandwidth = peak::read_bandwidth(&pool, &Pages::filled(512 << 20, 1)?);
    let (bytes_peak, floats_peak) = (peak::int8_products(&pool), peak::float_products(&pool));
    println!(
        "{threads} threads: {:.1} GB/s, {:.0} G int8 and {:.0} G f32 multiplications a second",
        bandwidth / 1e9,
        bytes_peak / 1e9,
        floats_peak / 1e9
    );
    println!("{:6} {:>5} {:>9} {:>8} {:>7} {:>7}", "type", "rows", "G mul/s", "GB/s", "of dots", "of read");
    for block in TYPES {
        let bytes = vec![0x11; block.row_bytes(COLUMNS).expect("whole blocks") * ROWS];
        let large = Packed::new(&pool, &[Weights::new(block, &bytes, ROWS, COLUMNS)?])?;
        let few = &bytes[..bytes.len() / ROWS * FEW];
        let small = Packed::new(&pool, &[Weights::new(block, few, FEW, COLUMNS)?])?;
        let peak = if large.operands().floats { floats_peak } else { bytes_peak };
        for rows in [1, 4, 16, 96] {
            let packed = if rows == 1 { &large } else { &small };
            let x: Vec<f32> = (0..rows * COLUMNS).map(|at| (at % 13) as f32 - 6.0).collect();
            let mut activations = Activations::new();
            activations.fill(&pool, &x, COLUMNS, packed.operands());
            let mut out = vec![0.0; rows * packed.rows()];
            let mut fastest = f64::INFINITY;
            let all = Instant::now();
            while all.elapsed().as_millis() < 200 {
                let began = Instant::now();
                packed.multiply(&pool, &activations, &mut out);
                fastest = fastest.min(began.elapsed().as_secs_f64());
            }
            let (rate, read) =
                ((rows * packed.rows() * COLUMNS) as f64 / fastest, packed.byte_count() as f64 / fastest);
            println!(
                "{:6} {rows:5} {:9.1} {:8.1} {:7.2} {:7.2}",
                format!("{block:?}"),
                rate / 1e9,
                read / 1e9,
                rate / peak,
                read / bandwidth
            );
        }
    }
    Ok(())
}
