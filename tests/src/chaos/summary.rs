//! What the clients of a fault saw, as figures. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Fault, Played, Round,
    cluster::{CLUSTER, PLAIN},
    load::{Outcome, Sample},
};

/// One line of the table, and of `summary.json`.
#[derive(Debug, Clone, Serialize)]
pub struct FaultSummary {
    /// Its id.
    pub fault: &'static str,
    /// Where it was played: `loopback`, `cluster`, or `plain` for Kubernetes without the operator.
    pub place: &'static str,
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
    /// Connections that were lost with the gateway behind them, or the engine where there is no gateway; each was followed
    /// by another try.
    pub severed: usize,
    /// Time from the fault to the next token of those, where they are in no percentile; the slowest hundredth.
    pub severed_p99_ms: u64,
    /// Connections that nobody accepted, each followed by another one.
    pub unaccepted: usize,
    /// For how long after a fault new requests still met it: lost, broken, severed or not accepted at first; the longest.
    pub troubled_until_ms: u64,
    /// Attempts that the gateway made again.
    pub retried: u64,
    /// Breaks of streams that the other engine went on from, unseen by the client.
    pub resumed: u64,
    /// Gateways that a controller held to be lost and deleted; more than were lost are false alarms.
    pub gateways_deleted: u64,
    /// Gateways that were lost with their node.
    pub gateways_lost: u64,
    /// Whether the engines know how to go on with a broken stream; those that do not break it.
    pub resumes: bool,
    /// Requests over all rounds.
    pub requests: usize,
    /// Requests that the figures are of.
    pub affected: usize,
    /// The slowest of these.
    pub slowest: Vec<Slow>,
    /// The first failures, word for word.
    pub failures: Vec<String>,
}

/// Requests that are told apart.
const SLOWEST: usize = 10;

/// A request that waited for long, and the trace under which gateways and engines log it at debug level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slow {
    /// From the fault to its next token.
    pub switch_ms: u64,
    /// From the fault to the request; below 0 where it was under way.
    pub sent_ms: i64,
    /// Whether it was a stream.
    pub streams: bool,
    /// Pieces that its client had before the fault.
    pub pieces_before: usize,
    /// Its trace.
    pub trace_id: String,
}

impl Slow {
    fn of(round: &Round, sample: &Sample, switch: Duration) -> Self {
        let millis = |from: Instant, to: Instant| {
            i64::try_from(to.duration_since(from).as_millis()).unwrap_or(i64::MAX)
        };
        Self {
            switch_ms: whole_millis(switch),
            sent_ms: millis(round.fault, sample.started) - millis(sample.started, round.fault),
            streams: sample.streams,
            pieces_before: sample.pieces.iter().filter(|piece| **piece < round.fault).count(),
            trace_id: format!("{:032x}", sample.trace),
        }
    }
}

impl FaultSummary {
    /// Computes it.
    #[must_use]
    pub fn of(fault: Fault, place: &'static str, played: &Played) -> Self {
        let Played { rounds, samples, retried, resumed, deleted, gateways_lost, resumes } = played;
        let meets = Meets::of(fault, place);
        let met = rounds
            .iter()
            .flat_map(|round| samples.iter().filter_map(move |s| Some((round, s, switch(meets, round, s)?))));
        let mut met: Vec<(&Round, &Sample, Duration)> = met.collect();
        met.sort_by_key(|(_, _, switch)| std::cmp::Reverse(*switch));
        let slowest =
            met.iter().take(SLOWEST).map(|(round, sample, switch)| Slow::of(round, sample, *switch));
        let mut switches: Vec<Duration> = met.iter().map(|(_, _, switch)| *switch).collect();
        let severed = |sample: &&Sample| sample.severed > 0 && !meets.concerns(sample);
        let mut apart: Vec<Duration> = rounds
            .iter()
            .flat_map(|round| {
                samples.iter().filter(severed).filter_map(|sample| switch(Meets::All, round, sample))
            })
            .collect();
        let mut excesses: Vec<Duration> =
            rounds.iter().flat_map(|round| excesses(meets, round, samples)).collect();
        let troubled = rounds.iter().flat_map(|round| {
            let of_round = samples.iter().filter(|s| is_troubled(s) && s.started <= round.repaired);
            of_round.filter_map(|s| s.started.checked_duration_since(round.fault))
        });
        let count = |wanted: fn(&Outcome) -> bool| samples.iter().filter(|s| wanted(&s.outcome)).count();
        let failures = samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Whole => None,
            Outcome::Lost(why) | Outcome::Broken(why) => Some(why.clone()),
        });
        Self {
            fault: fault.id(),
            place,
            rounds: rounds.len(),
            p50_ms: percentile(&mut switches, 0.5),
            p99_ms: percentile(&mut switches, 0.99),
            excess_p99_ms: percentile(&mut excesses, 0.99),
            lost: count(|outcome| matches!(outcome, Outcome::Lost(_))),
            broken: count(|outcome| matches!(outcome, Outcome::Broken(_))),
            severed: samples.iter().map(|sample| sample.severed as usize).sum(),
            severed_p99_ms: percentile(&mut apart, 0.99),
            unaccepted: samples.iter().map(|sample| sample.unaccepted as usize).sum(),
            troubled_until_ms: whole_millis(troubled.max().unwrap_or_default()),
            retried: *retried,
            resumed: *resumed,
            gateways_deleted: *deleted,
            gateways_lost: *gateways_lost,
            resumes: *resumes,
            requests: samples.len(),
            affected: switches.len(),
            slowest: slowest.collect(),
            failures: failures.take(5).collect(),
        }
    }
}

/// Which requests a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    /// Every one: all of them were on the lost engine or would have gone there.
    All,
    /// Only those whose connection was lost or not accepted: the others were elsewhere.
    Troubled,
    /// All but those on the lost gateway's own connections, which count apart.
    NotSevered,
    /// None ought to: every one that was under way or came while it was watched, from the fault or its own beginning on.
    None,
}

impl Meets {
    fn of(fault: Fault, place: &str) -> Self {
        match fault {
            // Without the operator, connections are spread over both engines all the time.
            _ if place == PLAIN => Self::Troubled,
            Fault::GatewayKill => Self::Troubled,
            Fault::ControllerKill => Self::None,
            _ if fault.takes_a_node() && place == CLUSTER => Self::NotSevered,
            _ => Self::All,
        }
    }

    fn concerns(self, sample: &Sample) -> bool {
        match self {
            Self::All | Self::None => true,
            Self::Troubled => is_troubled(sample),
            Self::NotSevered => sample.severed == 0,
        }
    }
}

fn is_troubled(sample: &Sample) -> bool {
    sample.severed > 0 || sample.unaccepted > 0 || sample.outcome != Outcome::Whole
}

/// From the fault to the next piece, of a request that was on its way then or came before traffic had moved.
fn switch(meets: Meets, round: &Round, sample: &Sample) -> Option<Duration> {
    let affected = meets.concerns(sample) && sample.started <= round.moved && sample.ended > round.fault;
    let next = sample.pieces.iter().find(|piece| **piece >= round.fault)?;
    let since = if meets == Meets::None { round.fault.max(sample.started) } else { round.fault };
    affected.then(|| next.duration_since(since))
}

fn excesses(meets: Meets, round: &Round, samples: &[Sample]) -> Vec<Duration> {
    let kind = |streams: bool| {
        let of_kind = samples.iter().filter(move |sample| sample.streams == streams);
        // From then on every request is served as the fallback serves it.
        let after = of_kind.clone().filter(|sample| (round.moved..round.repaired).contains(&sample.started));
        let mut usual: Vec<Duration> = after.filter_map(Sample::first_after).collect();
        let usual = Duration::from_millis(percentile(&mut usual, 0.5));
        let affected = of_kind.filter(|sample| {
            let first_after_fault: Option<&Instant> =
                sample.pieces.first().filter(|piece| **piece >= round.fault);
            meets.concerns(sample) && sample.started <= round.moved && first_after_fault.is_some()
        });
        affected.filter_map(Sample::first_after).map(|first| first.saturating_sub(usual)).collect::<Vec<_>>()
    };
    [kind(false), kind(true)].concat()
}

/// Nearest rank, in milliseconds; 0 of nothing.
fn percentile(values: &mut [Duration], share: f64) -> u64 {
    values.sort_unstable();
    let rank = (share * values.len() as f64).ceil() as usize;
    whole_millis(values.get(rank.saturating_sub(1)).copied().unwrap_or_default())
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The summaries as a table for people.
#[must_use]
pub fn render_table(summaries: &[FaultSummary]) -> String {
    let heads = [
        "rounds",
        "requests",
        "p50 ms",
        "p99 ms",
        "excess p99",
        "until ms",
        "lost",
        "broken",
        "severed",
        "their p99",
        "unaccepted",
        "retried",
        "resumed",
        "deleted",
        "of lost",
    ];
    let mut table = format!("{:<16} {:<9}", "fault", "place");
    for head in heads {
        table.push_str(&format!(" {head:>9}"));
    }
    for s in summaries {
        table.push_str(&format!("\n{:<16} {:<9}", s.fault, s.place));
        let counts =
            [s.rounds as u64, s.requests as u64, s.p50_ms, s.p99_ms, s.excess_p99_ms, s.troubled_until_ms];
        let failed =
            [s.lost as u64, s.broken as u64, s.severed as u64, s.severed_p99_ms, s.unaccepted as u64];
        let unseen = [s.retried, s.resumed, s.gateways_deleted, s.gateways_lost];
        for value in counts.into_iter().chain(failed).chain(unseen) {
            table.push_str(&format!(" {value:>9}"));
        }
        if !s.resumes {
            table.push_str(
                "\n    nothing goes on with broken streams here, so those that a fault meets break",
            );
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
            trace: u128::from(started),
            started: at(started),
            pieces: pieces.iter().map(|ms| at(*ms)).collect(),
            ended: at(pieces.last().copied().unwrap_or(started)),
            streams: true,
            tier: Some(tier.into()),
            severed: 0,
            unaccepted: 0,
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
        let played = Played {
            rounds: vec![round],
            samples,
            retried: 2,
            resumed: 1,
            deleted: 0,
            gateways_lost: 0,
            resumes: true,
        };
        let summary = FaultSummary::of(Fault::EngineKill, "loopback", &played);
        assert_eq!((summary.affected, summary.p50_ms, summary.p99_ms), (3, 170, 300));
        assert_eq!((summary.excess_p99_ms, summary.lost, summary.broken), (300, 1, 0));
        let slowest: Vec<(u64, i64, usize)> =
            summary.slowest.iter().map(|slow| (slow.switch_ms, slow.sent_ms, slow.pieces_before)).collect();
        assert_eq!(slowest, [(300, -50, 0), (170, 50, 0), (150, -200, 1)]);
        assert!(render_table(&[summary]).contains("engine-kill"));

        // A request on a lost gateway's own connection counts apart; one that was not accepted at first counts whole.
        let mut played = played;
        played.samples[1].severed = 1;
        played.samples[2].unaccepted = 2;
        let summary = FaultSummary::of(Fault::NodeKill, "cluster", &played);
        assert_eq!((summary.affected, summary.severed, summary.unaccepted), (2, 1, 2));
        assert_eq!(summary.severed_p99_ms, 150, "what is in no percentile has one of its own");
        let frozen = FaultSummary::of(Fault::NodeFreeze, "loopback", &played);
        assert_eq!(
            (frozen.affected, frozen.severed_p99_ms),
            (3, 0),
            "nothing is apart where no gateway can be lost"
        );
        assert_eq!((summary.p99_ms, summary.troubled_until_ms), (300, 0));
        // Of plain Kubernetes only what met the fault counts, since half of the requests go elsewhere.
        played.samples[3].unaccepted = 1;
        let summary = FaultSummary::of(Fault::NodeKill, PLAIN, &played);
        assert_eq!((summary.affected, summary.troubled_until_ms), (3, 50));
    }
}
