//! `atlas-engine bench`: how fast this machine computes a model, and how near that is to what it could.
//!
//! Tests are like llama-bench's: prefill of so many tokens, decode of so many sequences after so much context. Every
//! figure stands beside the roofline, of a processor measured in the same run, of a card by its data sheet: bytes read
//! a second for decode, multiplications a second for prefill. No tokenizer, no sampling, no HTTP. With `--turns` whoever started it says when to measure what,
//! so that two engines can be compared that take turns within seconds.

mod runner;

use crate::checkpoint::Checkpoint;
use crate::config::{Backend, Bench, Compute};
use crate::error::Fatal;
use atlas_kernels::hip::Card;
use atlas_kernels::hip::predict::CardLimits;
use atlas_kernels::{Pages, Pool, peak};
use runner::{Matrices, Runner};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

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
    /// Share of the bandwidth (decode) or of the peak of products (prefill); none on a card that is not known.
    roofline: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    weight_bytes: u64,
    #[serde(flatten)]
    peaks: Option<Peaks>,
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

/// What the device could do at best.
#[derive(Debug, Clone, Copy, Serialize)]
struct Peaks {
    read_bytes_per_second: f64,
    products_per_second: f64,
}

/// Once the model is loaded and has computed one short step.
#[derive(Debug, Serialize)]
struct Loaded {
    /// Until then, from the command's start.
    load_seconds: f64,
    weight_bytes: u64,
    kv_bytes: u64,
    peak_bytes: Option<u64>,
}

/// One turn.
#[derive(Debug, Serialize)]
struct Turn {
    seconds: f64,
    /// Bytes that have to be read, or multiplications that have to be done.
    work: f64,
    peak_bytes: Option<u64>,
}

/// Measures and reports.
///
/// # Errors
/// The file is no model that this engine serves, or the machine has no memory for it.
pub fn bench(arguments: &Bench) -> Result<String, Fatal> {
    let (path, began) = (&arguments.model, Instant::now());
    let checkpoint = Checkpoint::open(path)?;
    let tests = arguments.tests.clone().unwrap_or_else(Tests::usual).0;
    let (runner, regions) = Runner::load(&checkpoint, &arguments.compute, &tests)?;
    let matrices = Matrices::of(&checkpoint.tensors);
    let loaded = Loaded {
        load_seconds: began.elapsed().as_secs_f64(),
        weight_bytes: matrices.bytes,
        kv_bytes: runner.kv_bytes(),
        peak_bytes: peak_bytes(),
    };
    let mut session = Session { runner, matrices, tests, regions, compute: &arguments.compute };
    if arguments.turns {
        session.take_turns(&loaded)?;
        return Ok(String::new());
    }
    let report = session.report(path.display().to_string(), loaded.load_seconds)?;
    Ok(if arguments.json { json(&report) } else { table(&report) })
}

/// A loaded model and what to measure with it.
struct Session<'a> {
    runner: Runner,
    matrices: Matrices,
    tests: Vec<Test>,
    /// Which part of the cache each test has.
    regions: Vec<usize>,
    compute: &'a Compute,
}

impl Session<'_> {
    /// Seconds of a test.
    fn measure(&mut self, index: usize) -> Result<f64, Fatal> {
        Ok(self.runner.measure(&self.tests[index], self.regions[index])?)
    }

    /// What a test cannot do without: bytes to read for decode, multiplications for prefill.
    fn work(&self, test: &Test) -> f64 {
        match test.kind {
            Kind::Prefill => self.matrices.elements as f64 * (test.tokens * test.sequences) as f64,
            Kind::Decode => {
                let context = (test.depth + test.tokens / 2) as u64 * test.sequences as u64;
                let read = self.matrices.bytes + context * self.runner.kv_bytes_per_token();
                read as f64 * test.tokens as f64
            }
        }
    }

    /// What the device can do at best: a processor now, a card by its data sheet, if it is one of those that are known.
    fn peaks(&self) -> Result<Option<Peaks>, Fatal> {
        if self.compute.backend == Backend::Hip {
            let card = Card::find(&self.compute.hip.system_root)?;
            return Ok(CardLimits::of(&card.gfx_target, card.vram_bytes).map(|limits| Peaks {
                read_bytes_per_second: limits.gigabytes_per_second * 1e9,
                products_per_second: limits.teraflops * 1e12 / 2.0,
            }));
        }
        let pool = Pool::new(self.compute.thread_count());
        let pool = pool.map_err(|source| Fatal::System { what: "starting threads", source })?;
        let _awake = pool.keep_awake();
        let memory =
            Pages::filled(READ_BYTES, 1).map_err(|source| Fatal::System { what: "taking memory", source })?;
        let peaks = Peaks {
            read_bytes_per_second: peak::read_bandwidth(&pool, &memory),
            products_per_second: if self.matrices.floats {
                peak::float_products(&pool)
            } else {
                peak::int8_products(&pool)
            },
        };
        drop(memory);
        // So that this memory does not show in later peaks; where the system refuses, it does.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Ok(Some(peaks))
    }

    /// Every test once.
    fn report(&mut self, model: String, load_seconds: f64) -> Result<Report, Fatal> {
        self.runner.settle()?;
        let seconds =
            (0..self.tests.len()).map(|index| self.measure(index)).collect::<Result<Vec<_>, _>>()?;
        // Measuring the bandwidth takes memory of its own.
        let peak_bytes = peak_bytes();
        let peaks = self.peaks()?;
        let measured = self.tests.iter().zip(seconds).map(|(test, seconds)| {
            let best = peaks.map(|peaks| match test.kind {
                Kind::Prefill => peaks.products_per_second,
                Kind::Decode => peaks.read_bytes_per_second,
            });
            let tokens_per_second = (test.sequences * test.tokens) as f64 / seconds;
            let roofline = best.map(|best| self.work(test) / seconds / best);
            Measured { test: *test, seconds, tokens_per_second, roofline }
        });
        Ok(Report {
            model,
            device: match self.compute.backend {
                Backend::Cpu => format!("{} threads", self.compute.thread_count()),
                Backend::Hip => "the card".to_owned(),
            },
            weight_bytes: self.matrices.bytes,
            peaks,
            load_seconds,
            peak_bytes,
            tests: measured.collect(),
        })
    }

    /// Answers each line of standard input, the index of a test or `peaks`, by a line of JSON, until there is no more.
    fn take_turns(&mut self, loaded: &Loaded) -> Result<(), Fatal> {
        say(loaded)?;
        self.runner.settle()?;
        for line in std::io::stdin().lines() {
            let line = line.map_err(|source| Fatal::System { what: "reading standard input", source })?;
            match line.trim().parse::<usize>().ok().filter(|index| *index < self.tests.len()) {
                Some(index) => {
                    let seconds = self.measure(index)?;
                    let work = self.work(&self.tests[index]);
                    say(&Turn { seconds, work, peak_bytes: peak_bytes() })?;
                }
                None if line.trim() == "peaks" => say(&self.peaks()?)?,
                None => {
                    let tests = self.tests.len();
                    let reason = format!("{line:?} is neither \"peaks\" nor a test's index below {tests}");
                    let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
                    return Err(Fatal::System { what: "reading whose turn it is", source });
                }
            }
        }
        Ok(())
    }
}

/// Prints a line of JSON.
fn say(answer: &impl Serialize) -> Result<(), Fatal> {
    let text = serde_json::to_string(answer).expect("numbers and texts are JSON");
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|source| Fatal::System { what: "printing", source })
}

fn json(report: &Report) -> String {
    let text = serde_json::to_string_pretty(report).expect("numbers and texts are JSON");
    format!("{text}\n")
}

fn table(report: &Report) -> String {
    let peaks = report.peaks.map(|Peaks { read_bytes_per_second, products_per_second }| {
        let (bytes, products) = (read_bytes_per_second / 1e9, products_per_second / 1e9);
        format!(", {bytes:.1} GB/s, {products:.0} G multiplications a second")
    });
    let mut text = format!(
        "{}, {}, {:.0} MiB of weights{}, loaded in {:.2} s\n",
        report.model,
        report.device,
        report.weight_bytes as f64 / f64::from(1 << 20),
        peaks.unwrap_or_default(),
        report.load_seconds
    );
    // Writing to a string does not fail.
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
        let roofline = roofline.map_or_else(|| "unknown".to_owned(), |share| format!("{share:.2}"));
        let _ = writeln!(
            text,
            "{kind:8} {depth:6} {sequences:9} {tokens:7} {tokens_per_second:10.1} {roofline:>9}"
        );
    }
    text
}

/// The largest resident set of this process so far.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
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
