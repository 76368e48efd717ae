//! What the clients of a fault saw, as figures. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Fault, Played, Round,
    load::{Outcome, Sample},
};

/// One line of the table, and of `summary.json`.
#[derive(Debug, Clone, Serialize)]
pub struct FaultSummary {
    /// Its id.
    pub fault: &'static str,
    /// How often it was played.
    pub rounds: usize,
    /// Median time from the fault to the next token of a request that was on the lost engine or would have gone there.
    pub p50_ms: u64,
    /// The same of the slowest hundredth.
    pub p99_ms: u64,
    /// Time to the first token beyond the fallback's own median under that load, of the slowest hundredth.
    pub excess_p99_ms: u64,
    /// Requests without an answer.
    pub lost: usize,
    /// Answers that ended early or differ from those without a fault.
    pub broken: usize,
    /// Requests on connections to a gateway that was killed; each was tried again.
    pub severed: usize,
    /// Attempts that the gateway made again.
    pub retried: u64,
    /// Breaks of streams that the other engine went on from, unseen by the client.
    pub resumed: u64,
    /// Whether the engines know how to go on with a broken stream; those that do not break it.
    pub resumes: bool,
    /// Requests over all rounds.
    pub requests: usize,
    /// Requests that the figures are of.
    pub affected: usize,
    /// The first failures, word for word.
    pub failures: Vec<String>,
}

impl FaultSummary {
    /// Computes it.
    #[must_use]
    pub fn of(fault: Fault, played: &Played) -> Self {
        let Played { rounds, samples, retried, resumed, resumes } = played;
        let mut switches: Vec<Duration> =
            rounds.iter().flat_map(|round| samples.iter().filter_map(|s| switch(fault, round, s))).collect();
        let mut excesses: Vec<Duration> =
            rounds.iter().flat_map(|round| excesses(fault, round, samples)).collect();
        let count = |wanted: fn(&Outcome) -> bool| samples.iter().filter(|s| wanted(&s.outcome)).count();
        let failures = samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Whole => None,
            Outcome::Lost(why) | Outcome::Broken(why) => Some(why.clone()),
        });
        Self {
            fault: fault.id(),
            rounds: rounds.len(),
            p50_ms: percentile(&mut switches, 0.5),
            p99_ms: percentile(&mut switches, 0.99),
            excess_p99_ms: percentile(&mut excesses, 0.99),
            lost: count(|outcome| matches!(outcome, Outcome::Lost(_))),
            broken: count(|outcome| matches!(outcome, Outcome::Broken(_))),
            severed: samples.iter().map(|sample| sample.severed as usize).sum(),
            retried: *retried,
            resumed: *resumed,
            resumes: *resumes,
            requests: samples.len(),
            affected: switches.len(),
            failures: failures.take(5).collect(),
        }
    }
}

/// From the fault to the next piece, of a request that was on its way then or came before traffic had moved.
fn switch(fault: Fault, round: &Round, sample: &Sample) -> Option<Duration> {
    let affected = meets(fault, sample) && sample.started <= round.moved && sample.ended > round.fault;
    let next = sample.pieces.iter().find(|piece| **piece >= round.fault)?;
    affected.then(|| next.duration_since(round.fault))
}

/// A lost gateway concerns those only who were connected to it.
fn meets(fault: Fault, sample: &Sample) -> bool {
    fault != Fault::GatewayKill || sample.severed > 0
}

fn excesses(fault: Fault, round: &Round, samples: &[Sample]) -> Vec<Duration> {
    let kind = |streams: bool| {
        let of_kind = samples.iter().filter(move |sample| sample.streams == streams);
        // From then on every request is served as the fallback serves it.
        let after = of_kind.clone().filter(|sample| (round.moved..round.repaired).contains(&sample.started));
        let mut usual: Vec<Duration> = after.filter_map(Sample::first_after).collect();
        let usual = Duration::from_millis(percentile(&mut usual, 0.5));
        let affected = of_kind.filter(|sample| {
            let first_after_fault: Option<&Instant> =
                sample.pieces.first().filter(|piece| **piece >= round.fault);
            meets(fault, sample) && sample.started <= round.moved && first_after_fault.is_some()
        });
        affected.filter_map(Sample::first_after).map(|first| first.saturating_sub(usual)).collect::<Vec<_>>()
    };
    [kind(false), kind(true)].concat()
}

/// Nearest rank, in milliseconds; 0 of nothing.
fn percentile(values: &mut [Duration], share: f64) -> u64 {
    values.sort_unstable();
    let rank = (share * values.len() as f64).ceil() as usize;
    let value = values.get(rank.saturating_sub(1)).copied().unwrap_or_default();
    u64::try_from(value.as_millis()).unwrap_or(u64::MAX)
}

/// The summaries as a table for people.
#[must_use]
pub fn render_table(summaries: &[FaultSummary]) -> String {
    let mut table = format!(
        "{:<13} {:>6} {:>8} {:>8} {:>8} {:>11} {:>5} {:>7} {:>8} {:>8} {:>8}",
        "fault",
        "rounds",
        "requests",
        "p50 ms",
        "p99 ms",
        "excess p99",
        "lost",
        "broken",
        "severed",
        "retried",
        "resumed"
    );
    for s in summaries {
        table.push_str(&format!(
            "\n{:<13} {:>6} {:>8} {:>8} {:>8} {:>11} {:>5} {:>7} {:>8} {:>8} {:>8}",
            s.fault,
            s.rounds,
            s.requests,
            s.p50_ms,
            s.p99_ms,
            s.excess_p99_ms,
            s.lost,
            s.broken,
            s.severed,
            s.retried,
            s.resumed
        ));
        if !s.resumes {
            table.push_str("\n    this engine does not resume streams, so those that a fault meets break");
        }
        for why in &s.failures {
            table.push_str(&format!("\n    {why}"));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_the_requests_that_the_fault_met() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let round = Round { fault: at(1_000), moved: at(1_100), repaired: at(3_000) };
        let sample = |started: u64, pieces: &[u64], tier: &str| Sample {
            started: at(started),
            pieces: pieces.iter().map(|ms| at(*ms)).collect(),
            ended: at(pieces.last().copied().unwrap_or(started)),
            streams: true,
            tier: Some(tier.into()),
            severed: 0,
            outcome: Outcome::Whole,
        };
        let samples = vec![
            sample(500, &[600, 700], "primary"),
            sample(800, &[900, 1_150, 1_200], "primary"),
            sample(950, &[1_300], "fallback"),
            sample(1_050, &[1_170], "fallback"),
            sample(1_500, &[1_550], "fallback"),
            Sample { outcome: Outcome::Lost("why".into()), ..sample(4_000, &[], "primary") },
        ];
        let played = Played { rounds: vec![round], samples, retried: 2, resumed: 1, resumes: true };
        let summary = FaultSummary::of(Fault::EngineKill, &played);
        assert_eq!((summary.affected, summary.p50_ms, summary.p99_ms), (3, 170, 300));
        assert_eq!((summary.excess_p99_ms, summary.lost, summary.broken), (300, 1, 0));
        assert!(render_table(&[summary]).contains("engine-kill"));
    }
}
