//! The figures of a run: collected in order, printed as a table, left as JSON.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use atlas_crds::model::KvCacheType;
use atlas_format::{Gguf, Parsed};
use atlas_operator_core::vram::{Card, ModelShape, OtherFile, OtherProfile, Question, Setting, plan_vram};
use serde::Serialize;

use super::operator::{Counts, Operator, mib};
use crate::support::wide_header;

/// Plans that are timed.
const PLANS: usize = 1000;

/// One line of the table.
#[derive(Serialize)]
struct Figure {
    what: String,
    value: String,
}

/// All of them.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct Figures(Vec<Figure>);

impl Figures {
    fn add(&mut self, what: impl Into<String>, value: String) {
        self.0.push(Figure { what: what.into(), value });
    }

    /// A time in seconds.
    pub fn seconds(&mut self, what: &str, time: Duration) {
        self.add(what, format!("{:.1} s", time.as_secs_f64()));
    }

    /// Reconciles, writes and requests.
    pub fn counts(&mut self, what: &str, counts: &Counts) {
        let Counts { reconciles, writes, requests } = counts;
        self.add(
            format!("{what}: reconciles of models, writes, requests"),
            format!("{reconciles}, {writes}, {requests}"),
        );
    }

    /// What an operator does that nobody asks for anything.
    pub fn idle(&mut self, counts: &Counts, seconds: u64) {
        let rate = counts.requests / seconds as f64;
        self.add(format!("writes in {seconds} idle seconds (the Lease aside)"), counts.writes.to_string());
        self.add(format!("reconciles of models in {seconds} idle seconds"), counts.reconciles.to_string());
        self.add("requests a second when idle, the Lease among them".to_owned(), format!("{rate:.2}"));
    }

    /// Memory now and at its peak.
    pub fn memory(&mut self, what: &str, operator: &Operator) -> anyhow::Result<()> {
        let (now, peak) = operator.memory()?;
        self.add(what, format!("{}, {}", mib(now), mib(peak)));
        Ok(())
    }

    /// Median and 99th percentile of a histogram of the operator.
    pub async fn busy(&mut self, what: &str, operator: &Operator, histogram: &str) -> anyhow::Result<()> {
        let text = operator.metrics().await?;
        let at = |share| {
            quantile(&text, histogram, share).map_or("unknown".to_owned(), |s| format!("{:.2} ms", s * 1e3))
        };
        self.add(format!("{what}: p50, p99"), format!("{}, {}", at(0.5), at(0.99)));
        Ok(())
    }

    /// Times the planner on a model that does not fit, with everything that advice is made from.
    pub fn plans(&mut self) {
        let header = wide_header();
        let shape = match Gguf::parse(&header) {
            Ok(Parsed::Complete(header)) => ModelShape::from_gguf(&header).ok(),
            _ => None,
        };
        let Some(shape) = shape else { return };
        let other_profiles: Vec<OtherProfile> = (0..10u64)
            .map(|i| OtherProfile { name: format!("card-{i}"), card: Card::with_available((6 + i) << 30) })
            .collect();
        let other_files: Vec<OtherFile> =
            (0..12u64).map(|i| OtherFile { name: format!("wide.Q{i}.gguf"), bytes: (2 + i) << 29 }).collect();
        let setting = Setting {
            context_tokens: 8192,
            max_batch: 4,
            kv_cache_type: KvCacheType::F16,
            offload_layers: 0,
        };
        let mut times: Vec<Duration> = (0..PLANS)
            .map(|_| {
                let began = Instant::now();
                black_box(plan_vram(black_box(&Question {
                    shape: &shape,
                    setting,
                    card: Card::with_available(5616 << 20),
                    other_profiles: &other_profiles,
                    other_files: &other_files,
                })));
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        let micros = |share: usize| times[(PLANS * share / 100).min(PLANS - 1)].as_secs_f64() * 1e6;
        self.add(
            "a plan that does not fit, with advice: p50, p99",
            format!("{:.0} µs, {:.0} µs", micros(50), micros(99)),
        );
    }

    /// Prints them.
    pub fn print(&self) {
        let width = self.0.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
        for Figure { what, value } in &self.0 {
            println!("{what:<width$}  {value}");
        }
    }
}

/// A quantile in seconds, interpolated within its bucket.
fn quantile(text: &str, histogram: &str, share: f64) -> Option<f64> {
    let prefix = format!("{histogram}_bucket{{controller=\"atlasmodel\",le=\"");
    let buckets: Vec<(f64, f64)> = text
        .lines()
        .filter_map(|line| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"}")?;
            Some((bound.parse().unwrap_or(f64::INFINITY), count.trim().parse().ok()?))
        })
        .collect();
    let wanted = buckets.last()?.1 * share;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if count >= wanted {
            let part = if count > below { (wanted - below) / (count - below) } else { 1.0 };
            return Some(if bound.is_finite() { low + (bound - low) * part } else { low });
        }
        (low, below) = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_within_the_bucket_that_holds_it() {
        let line = |bound: &str, count: u32| {
            format!("h_bucket{{controller=\"atlasmodel\",le=\"{bound}\"}} {count}\n")
        };
        let text = [line("0.001", 10), line("0.002", 90), line("+Inf", 100)].concat();
        let check = |share: f64, expected: f64| {
            let found = quantile(&text, "h", share).unwrap();
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        };
        check(0.5, 0.0015);
        check(0.05, 0.0005);
        check(0.99, 0.002);
        assert_eq!(quantile("", "h", 0.5), None);
    }
}
