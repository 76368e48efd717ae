//! From samples to figures. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::client::Sample;

/// Median and slow end of a duration, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Millis {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// Figures of one concurrency.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelReport {
    /// Requests at once.
    pub concurrency: usize,
    /// Answers that came whole.
    pub answered: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Why the first of these failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    /// Tokens a second over all requests.
    pub tokens_per_second: f64,
    /// Time to the first token.
    pub first_token_millis: Option<Millis>,
    /// Time between tokens.
    pub inter_token_millis: Option<Millis>,
    /// Time to the whole answer.
    pub answer_millis: Option<Millis>,
    /// Answers by tier, where the gateway says.
    pub tiers: BTreeMap<String, usize>,
}

impl LevelReport {
    /// Figures of what a level brought.
    pub fn of(concurrency: usize, elapsed: Duration, samples: Vec<Result<Sample, String>>) -> Self {
        let first_failure = samples.iter().find_map(|sample| sample.as_ref().err().cloned());
        let failed = samples.iter().filter(|sample| sample.is_err()).count();
        let whole: Vec<Sample> = samples.into_iter().flatten().collect();
        let tokens: u64 = whole.iter().map(|sample| sample.tokens).sum();
        let mut tiers = BTreeMap::new();
        for tier in whole.iter().filter_map(|sample| sample.tier.clone()) {
            *tiers.entry(tier).or_default() += 1;
        }
        Self {
            concurrency,
            answered: whole.len(),
            failed,
            first_failure,
            tokens_per_second: tokens as f64 / elapsed.as_secs_f64().max(1e-9),
            first_token_millis: millis(whole.iter().map(|sample| sample.first_token)),
            inter_token_millis: millis(whole.iter().flat_map(|sample| sample.gaps.iter().copied())),
            answer_millis: millis(whole.iter().map(|sample| sample.total)),
            tiers,
        }
    }
}

fn millis(durations: impl Iterator<Item = Duration>) -> Option<Millis> {
    let mut all: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1000.0).collect();
    all.sort_by(f64::total_cmp);
    Some(Millis { p50: percentile(&all, 50)?, p95: percentile(&all, 95)? })
}

/// Nearest rank of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn figures_are_of_whole_answers_alone() {
        let sample = |first: u64, gap: u64, tokens: u64| {
            Ok(Sample {
                first_token: Duration::from_millis(first),
                gaps: vec![Duration::from_millis(gap); 3],
                total: Duration::from_millis(first + 3 * gap),
                tokens,
                tier: Some("primary".into()),
            })
        };
        let samples = vec![sample(100, 10, 4), sample(300, 30, 4), Err("429".into()), sample(200, 20, 4)];
        let report = LevelReport::of(2, Duration::from_secs(2), samples);
        assert_eq!((report.answered, report.failed, report.first_failure.as_deref()), (3, 1, Some("429")));
        assert_eq!(report.tokens_per_second, 6.0);
        assert_eq!(report.first_token_millis, Some(Millis { p50: 200.0, p95: 300.0 }));
        assert_eq!(report.inter_token_millis, Some(Millis { p50: 20.0, p95: 30.0 }));
        assert_eq!(report.tiers, [("primary".to_owned(), 3)].into());
    }

    #[test]
    fn nothing_answered_is_no_division_by_zero() {
        let report = LevelReport::of(1, Duration::ZERO, vec![Err("refused".into())]);
        assert_eq!((report.answered, report.tokens_per_second, report.answer_millis), (0, 0.0, None));
    }
}
