//! `atlas-engine bench`: how fast this machine computes a model, and how near that is to what it could.
//!
//! Tests are like llama-bench's: prefill of so many tokens, decode of so many sequences after so much context. Every
//! figure stands beside the roofline measured in the same run: bytes read a second for decode, multiplications a
//! second for prefill. No tokenizer, no sampling, no HTTP.

use crate::config::Bench;
use crate::error::Fatal;
use crate::model::{Model, ModelError, ModelShape};
use atlas_engine_core::SequenceId;
use atlas_engine_core::backend::KvType;
use atlas_engine_core::plan::{Chunk, StepPlan};
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape};
use atlas_format::Gguf;
use atlas_kernels::{BlockType, CpuBackend, MappedFile, Pages, Pool, peak};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

/// Rows of a prefill step.
const CHUNK_ROWS: usize = 512;
/// Memory that is read to measure the bandwidth: many times a last cache.
const READ_BYTES: usize = 512 << 20;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Prefill,
    Decode,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    kind: Kind,
    /// Positions that the cache holds before.
    depth: usize,
    /// Sequences that are decoded together.
    sequences: usize,
    /// Tokens of each sequence.
    tokens: usize,
}

#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    test: Test,
    seconds: f64,
    tokens_per_second: f64,
    /// Share of the bandwidth (decode) or of the dot-product peak (prefill).
    roofline: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    threads: usize,
    weight_bytes: u64,
    read_bytes_per_second: f64,
    products_per_second: f64,
    load_seconds: f64,
    peak_bytes: Option<u64>,
    tests: Vec<Measured>,
}

/// Parses the tests of a command line: JSON, so that a script can pass what it compares with.
///
/// # Errors
/// It is no list of tests.
pub fn parse_tests(text: &str) -> Result<Tests, String> {
    let tests: Vec<Test> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let empty = |test: &Test| test.sequences == 0 || test.tokens == 0;
    match tests.iter().find(|test| empty(test)) {
        Some(test) => Err(format!("{test:?} computes nothing")),
        None if tests.is_empty() => Err("no tests".to_owned()),
        None => Ok(Tests(tests)),
    }
}

/// What to measure, in order.
#[derive(Debug, Clone)]
pub struct Tests(Vec<Test>);

impl Tests {
    /// Prefill of 512 tokens, decode after 128 and 2048, and of 4 and 16 sequences.
    fn usual() -> Self {
        let prefill = Test { kind: Kind::Prefill, depth: 0, sequences: 1, tokens: 512 };
        let decode = |depth, sequences| Test { kind: Kind::Decode, depth, sequences, tokens: 16 };
        Self(vec![prefill, decode(128, 1), decode(2048, 1), decode(128, 4), decode(128, 16)])
    }
}

/// Measures and reports.
///
/// # Errors
/// The file is no model that this engine serves, or the machine has no memory for it.
pub fn bench(arguments: &Bench) -> Result<String, Fatal> {
    let path = &arguments.model;
    let file = MappedFile::open(path).map_err(|source| Fatal::Open { path: path.clone(), source })?;
    let (file, began) = (Arc::new(file), Instant::now());
    let header = Gguf::parse_file(&file).map_err(ModelError::from)?;
    let tests = arguments.tests.clone().unwrap_or_else(Tests::usual).0;
    let threads = arguments.thread_count();
    let mut runner = Runner::load(&header, &file, threads, &tests)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let block_bytes = runner.model.config().kv_spec(KvType::F16, 1).block_bytes().unwrap_or(0);
    let kv_bytes_per_token = block_bytes / BLOCK_TOKENS as u64;
    let mut seconds = Vec::with_capacity(tests.len());
    for test in &tests {
        seconds.push(runner.measure(test)?);
    }
    let peak_bytes = peak_bytes();
    drop(runner);
    let matrices = Matrices::of(&header);
    let pool = Pool::new(threads).map_err(|source| Fatal::System { what: "starting threads", source })?;
    let _awake = pool.keep_awake();
    let memory =
        Pages::filled(READ_BYTES, 1).map_err(|source| Fatal::System { what: "taking memory", source })?;
    let read_bytes_per_second = peak::read_bandwidth(&pool, &memory);
    let products_per_second =
        if matrices.floats { peak::float_products(&pool) } else { peak::int8_products(&pool) };
    let measured = tests.iter().zip(seconds).map(|(test, seconds)| {
        let tokens = (test.sequences * test.tokens) as f64;
        let roofline = match test.kind {
            Kind::Prefill => matrices.elements as f64 * tokens / seconds / products_per_second,
            Kind::Decode => {
                let context = (test.depth + test.tokens / 2) as u64 * test.sequences as u64;
                let read = matrices.bytes + context * kv_bytes_per_token;
                read as f64 * test.tokens as f64 / seconds / read_bytes_per_second
            }
        };
        Measured { test: *test, seconds, tokens_per_second: tokens / seconds, roofline }
    });
    let report = Report {
        model: path.display().to_string(),
        threads,
        weight_bytes: matrices.bytes,
        read_bytes_per_second,
        products_per_second,
        load_seconds,
        peak_bytes,
        tests: measured.collect(),
    };
    Ok(if arguments.json { json(&report) } else { table(&report) })
}

fn json(report: &Report) -> String {
    let text = serde_json::to_string_pretty(report).expect("numbers and texts are JSON");
    format!("{text}\n")
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{}, {} threads, {:.0} MiB of weights, {:.1} GB/s, {:.0} G multiplications a second, loaded in {:.2} s\n",
        report.model,
        report.threads,
        report.weight_bytes as f64 / f64::from(1 << 20),
        report.read_bytes_per_second / 1e9,
        report.products_per_second / 1e9,
        report.load_seconds
    );
    let _ = writeln!(
        text,
        "{:8} {:>6} {:>9} {:>7} {:>10} {:>9}",
        "test", "depth", "sequences", "tokens", "tokens/s", "roofline"
    );
    for Measured { test, seconds: _, tokens_per_second, roofline } in &report.tests {
        let kind = match test.kind {
            Kind::Prefill => "prefill",
            Kind::Decode => "decode",
        };
        let Test { depth, sequences, tokens, .. } = test;
        let _ = writeln!(
            text,
            "{kind:8} {depth:6} {sequences:9} {tokens:7} {tokens_per_second:10.1} {roofline:9.2}"
        );
    }
    text
}

/// The weights that every token is multiplied with.
struct Matrices {
    elements: u64,
    bytes: u64,
    /// Whether they are floats, which are multiplied as such.
    floats: bool,
}

impl Matrices {
    fn of(header: &Gguf) -> Self {
        let tied = !header.tensors().iter().any(|tensor| tensor.name == "output.weight");
        let mut all = Self { elements: 0, bytes: 0, floats: false };
        for tensor in header.tensors() {
            let counted = tensor.shape.len() == 2 && (tied || tensor.name != "token_embd.weight");
            if let (true, Some(range)) = (counted, tensor.byte_range()) {
                all.elements += tensor.shape.iter().product::<u64>();
                all.bytes += range.end - range.start;
                all.floats |=
                    BlockType::from_ggml(tensor.tensor_type.number()).is_some_and(BlockType::is_float);
            }
        }
        all
    }
}

/// The largest resident set of this process so far.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

struct Runner {
    model: Model,
    blocks_per_sequence: usize,
    vocabulary: u32,
}

impl Runner {
    fn load(
        header: &Gguf,
        file: &Arc<MappedFile>,
        threads: usize,
        tests: &[Test],
    ) -> Result<Self, ModelError> {
        let most = |of: &dyn Fn(&Test) -> usize| tests.iter().map(of).max().unwrap_or(1);
        let blocks_of = |test: &Test| (test.depth + test.tokens + 1).div_ceil(BLOCK_TOKENS);
        let sequences = most(&|test| test.sequences);
        let blocks_per_sequence = most(&blocks_of);
        let blocks = most(&|test| blocks_of(test) * test.sequences);
        let max = MaxShape {
            rows: CHUNK_ROWS.max(sequences),
            sequences,
            logit_rows: sequences,
            hidden_rows: 0,
            blocks_per_sequence,
        };
        let shape =
            ModelShape { kv_type: KvType::F16, blocks: u32::try_from(blocks).unwrap_or(u32::MAX), max };
        let backend = CpuBackend::new(threads).map_err(ModelError::from)?;
        let model = Model::load(header, file, Box::new(backend), &shape)?;
        let vocabulary = u32::try_from(model.config().vocabulary).unwrap_or(u32::MAX);
        Ok(Self { model, blocks_per_sequence, vocabulary })
    }

    /// Seconds of one test.
    fn measure(&mut self, test: &Test) -> Result<f64, ModelError> {
        let blocks = (test.depth + test.tokens + 1).div_ceil(BLOCK_TOKENS);
        debug_assert!(blocks <= self.blocks_per_sequence);
        // Touches every weight, so that no page is first touched while it is measured.
        self.step(blocks, &[(0, 0, 32, true)])?;
        match test.kind {
            Kind::Prefill => {
                let began = Instant::now();
                self.prefill(blocks, 0, test.tokens)?;
                Ok(began.elapsed().as_secs_f64())
            }
            Kind::Decode => {
                for sequence in 0..test.sequences {
                    self.prefill(blocks, sequence, test.depth)?;
                }
                let mut decode = |position| {
                    let rows: Vec<_> =
                        (0..test.sequences).map(|sequence| (sequence, position, 1, true)).collect();
                    self.step(blocks, &rows)
                };
                decode(test.depth)?;
                let began = Instant::now();
                for token in 1..=test.tokens {
                    decode(test.depth + token)?;
                }
                Ok(began.elapsed().as_secs_f64())
            }
        }
    }

    fn prefill(&mut self, blocks: usize, sequence: usize, count: usize) -> Result<(), ModelError> {
        for first in (0..count).step_by(CHUNK_ROWS) {
            let rows = CHUNK_ROWS.min(count - first);
            self.step(blocks, &[(sequence, first, rows, first + rows == count)])?;
        }
        Ok(())
    }

    /// One step of (sequence, first position, tokens, whether the last one's logits are wanted).
    fn step(&mut self, blocks: usize, parts: &[(usize, usize, usize, bool)]) -> Result<(), ModelError> {
        let chunk = |(sequence, start, count, wanted): &(usize, usize, usize, bool)| {
            let token = |position: usize| {
                (position as u32 * 7919 + *sequence as u32 * 31) % (self.vocabulary - 1) + 1
            };
            let used = (start + count).div_ceil(BLOCK_TOKENS);
            Chunk {
                sequence: SequenceId(*sequence as u64),
                start: *start,
                tokens: (*start..start + count).map(token).collect(),
                drafted: 0,
                logit_rows: usize::from(*wanted),
                hidden_rows: 0,
                blocks: (0..used).map(|index| (sequence * blocks + index) as u32).collect(),
            }
        };
        let plan = StepPlan { copies: Vec::new(), chunks: parts.iter().map(chunk).collect() };
        self.model.run(&plan).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_read_from_json_and_refused_where_they_compute_nothing() {
        let test =
            |tokens| format!(r#"{{"kind": "decode", "depth": 5, "sequences": 2, "tokens": {tokens}}}"#);
        let read = parse_tests(&format!("[{}]", test(3))).unwrap();
        assert_eq!(read.0, [Test { kind: Kind::Decode, depth: 5, sequences: 2, tokens: 3 }]);
        for refused in ["", "[]", "{}", r#"[{"kind": "train"}]"#, &format!("[{}, {}]", test(1), test(0))] {
            assert!(parse_tests(refused).is_err(), "{refused}");
        }
    }
}
