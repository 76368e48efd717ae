//! What decoding should take on a card, predicted from the compiled kernels' own figures. Predictions, not
//! measurements: no kernel of this build has run on an AMD card.
//!
//! A launch takes the longer of two times, and the gap to the next one. Memory: the bytes that it moves, at the share
//! of the data sheet's bandwidth that streams reach, less where too few waves are resident to hide a load's latency.
//! Issue: one instruction a cycle and SIMD, for the instructions of the kernel's loop (`tests/isa.tsv`). Attention and
//! the small kernels count by their bytes alone. The two constants that no file of this build can tell are taken from
//! llama.cpp's published runs (`published`), and the rest of those runs is what the model is held against.

mod model;
mod published;
mod report;
mod split;

pub use model::{Llama, Mix};
pub use published::{H200, OWN, Own, PUBLISHED, Published};
pub use report::report;
pub use split::{HOST_GIGABYTES_PER_SECOND, Split, predict_split};

use model::Weight;
use std::collections::BTreeMap;

/// Share of the data sheet's bandwidth that a stream of reads gets: the additional time of llama.cpp's 8B Q4_K_M after
/// 4,096 tokens (98.6 tokens/s for 105.8), which reads 537 MB of cache more, is 778 of 960 GB/s.
const STREAM: f64 = 0.81;
/// Microseconds from the end of a launch to the data of the next: what llama.cpp's 8B Q5_K_M (100.5 tokens/s) takes
/// beyond its bytes, over its launches. Graphs may be shorter; nothing here relies on it.
const GAP_MICROSECONDS: f64 = 4.4;
/// Microseconds that a load waits under load. Assumed; it matters where few waves are resident only.
const LATENCY_MICROSECONDS: f64 = 0.8;

/// What the data sheet says of a card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardLimits {
    /// Its name.
    pub name: &'static str,
    /// The target that its kernels are compiled for.
    pub gfx_target: &'static str,
    /// Memory bandwidth in 10^9 bytes a second.
    pub gigabytes_per_second: f64,
    /// 10^12 operations a second of WMMA with f16 operands: 512 a cycle and compute unit at the boost clock.
    pub teraflops: f64,
    /// Vector units.
    pub simds: u32,
    /// The clock while computing, in GHz.
    pub gigahertz: f64,
    /// Cycles of a vector unit that an instruction of a kernel's loop takes.
    pub cycles_per_instruction: f64,
    /// Share of the bandwidth that streams get.
    pub stream: f64,
    /// Microseconds from the end of a launch to the data of the next.
    pub gap_microseconds: f64,
}

/// Radeon RX 7900 XTX.
pub const RX_7900_XTX: CardLimits = CardLimits {
    name: "RX 7900 XTX",
    gfx_target: "gfx1100",
    gigabytes_per_second: 960.0,
    teraflops: 122.8,
    simds: 192,
    gigahertz: 2.3,
    cycles_per_instruction: 1.0,
    stream: STREAM,
    gap_microseconds: GAP_MICROSECONDS,
};
/// Radeon RX 7600.
pub const RX_7600: CardLimits = CardLimits {
    name: "RX 7600",
    gfx_target: "gfx1102",
    gigabytes_per_second: 288.0,
    teraflops: 43.5,
    simds: 64,
    gigahertz: 2.25,
    cycles_per_instruction: 1.0,
    stream: STREAM,
    gap_microseconds: GAP_MICROSECONDS,
};

/// What the compiler made of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Figures {
    /// Waves that a SIMD holds.
    waves: u32,
    /// Instructions of its longest loop.
    instructions: u32,
}

fn figures(kernel: &str, target: &str) -> Option<Figures> {
    include_str!("../../../tests/isa.tsv").lines().find_map(|line| {
        let mut fields = line.split('\t');
        if (fields.next()?, fields.next()?) != (kernel, target) {
            return None;
        }
        let mut number = |skipped: usize| fields.nth(skipped)?.parse().ok();
        // vgprs, sgprs, lds, spills, waves, dot4, wmma, loop.
        Some(Figures { waves: number(4)?, instructions: number(2)? })
    })
}

/// All launches of one kernel in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The kernel.
    pub kernel: String,
    /// How often it is launched.
    pub launches: u32,
    /// Bytes that it moves.
    pub bytes: f64,
    /// Milliseconds at the data sheet's bandwidth.
    pub roofline: f64,
    /// Milliseconds predicted, with the gaps.
    pub milliseconds: f64,
    /// Waves that a SIMD holds at once.
    pub waves: u32,
}

/// A step of decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Kernel by kernel, in the order of their first launch.
    pub rows: Vec<Row>,
    /// Sequences.
    pub batch: u32,
}

impl Prediction {
    /// Milliseconds of the step.
    #[must_use]
    pub fn milliseconds(&self) -> f64 {
        self.rows.iter().map(|row| row.milliseconds).sum()
    }

    /// Tokens a second over all sequences.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        f64::from(self.batch) * 1e3 / self.milliseconds()
    }

    /// The same if memory were read at the data sheet's bandwidth and nothing else took time.
    #[must_use]
    pub fn bound(&self) -> f64 {
        f64::from(self.batch) * 1e3 / self.rows.iter().map(|row| row.roofline).sum::<f64>()
    }
}

/// One launch: what it moves and issues.
struct Launch {
    kernel: String,
    bytes: f64,
    /// Waves of the grid.
    waves: f64,
    /// Passes of a wave through the kernel's loop; 0 where bytes alone count.
    passes: f64,
    /// Bytes that a wave has under way at once.
    in_flight: f64,
}

/// Tokens of the matrix-vector variants, and the rows of weights that one of their waves has; `hip/matvec.hip`.
const VARIANTS: [u32; 4] = [1, 2, 4, 8];
const WAVE_ROWS: u32 = 2;

fn matvec(weight: &Weight, batch: u32) -> Launch {
    let tokens = VARIANTS.into_iter().find(|most| batch <= *most).unwrap_or(8);
    let piece = weight.format.bytes(32);
    let waves = f64::from(weight.rows.div_ceil(WAVE_ROWS));
    // A lane takes every 32nd piece of 32 weights.
    let passes = (f64::from(weight.columns) / 1024.0).ceil();
    let moved = f64::from(batch) * f64::from(weight.columns + 4 * weight.rows);
    Launch {
        kernel: format!("matvec_{}_{tokens}", weight.format.name()),
        bytes: weight.bytes() + moved,
        waves,
        passes,
        in_flight: f64::from(WAVE_ROWS) * 32.0 * piece,
    }
}

fn small(kernel: &str, bytes: f64) -> Launch {
    Launch { kernel: kernel.to_owned(), bytes, waves: 0.0, passes: 0.0, in_flight: 0.0 }
}

/// The launches of a decode step as `backend/lower.rs` makes them: weights of one format that stand together are one.
fn launches(model: &Llama, context: u32, batch: u32) -> Vec<Launch> {
    let t = f64::from(batch);
    let (hidden, feed) = (f64::from(model.hidden), f64::from(model.feed_forward));
    let qkv = f64::from(model.qkv_rows());
    let attended = f64::from(model.heads * model.head_size);
    let partitions = f64::from(context.div_ceil(64));
    let partials = t * f64::from(model.heads) * partitions * f64::from(model.head_size + 2) * 4.0;
    let group = model.heads / model.kv_heads;
    let attend = format!("attend_f16_{}", [1, 4, 8].into_iter().find(|most| group <= *most).unwrap_or(8));
    let norm = || small("rms_norm", t * hidden * 17.0);
    let mut all = vec![small("embed_q4_k", t * hidden * 4.6)];
    for layer in 0..model.layers {
        all.push(norm());
        all.extend(model.qkv(layer).iter().map(|weight| matvec(weight, batch)));
        all.push(small("rope_kv_f16", t * qkv * 8.0));
        all.push(small(&attend, t * f64::from(context) * model.cache_bytes_per_layer() + partials));
        all.push(small("merge", partials + t * attended));
        all.push(matvec(&model.output(), batch));
        all.push(norm());
        all.push(matvec(&model.gate_up(), batch));
        all.push(small("swiglu", t * feed * 9.0));
        all.push(matvec(&model.down(layer), batch));
    }
    all.push(small("add", t * hidden * 12.0));
    all.push(small("gather", t * hidden * 8.0));
    all.push(norm());
    all.push(matvec(&model.head(), batch));
    all
}

/// Predicts a decode step of `batch` sequences, each with this context.
#[must_use]
pub fn predict(card: &CardLimits, model: &Llama, context: u32, batch: u32) -> Prediction {
    let mut order: Vec<Row> = Vec::new();
    let mut known = BTreeMap::new();
    for launch in launches(model, context, batch) {
        let Figures { waves, instructions } =
            figures(&launch.kernel, card.gfx_target).unwrap_or(Figures { waves: 16, instructions: 0 });
        let simds = f64::from(card.simds);
        let resident = (launch.waves / simds).min(f64::from(waves)) * simds;
        let needed = card.gigabytes_per_second * 1e3 * LATENCY_MICROSECONDS;
        let hidden = if launch.passes > 0.0 { (resident * launch.in_flight / needed).min(1.0) } else { 1.0 };
        let roofline = launch.bytes / card.gigabytes_per_second / 1e6;
        let issued = launch.waves * launch.passes * f64::from(instructions);
        let issue = issued * card.cycles_per_instruction / (simds * card.gigahertz * 1e6);
        let milliseconds = (roofline / (card.stream * hidden)).max(issue) + card.gap_microseconds / 1e3;
        let at = *known.entry(launch.kernel.clone()).or_insert_with(|| {
            let kernel = launch.kernel.clone();
            order.push(Row { kernel, launches: 0, bytes: 0.0, roofline: 0.0, milliseconds: 0.0, waves });
            order.len() - 1
        });
        let row: &mut Row = &mut order[at];
        row.launches += 1;
        row.bytes += launch.bytes;
        row.roofline += roofline;
        row.milliseconds += milliseconds;
    }
    Prediction { rows: order, batch }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
