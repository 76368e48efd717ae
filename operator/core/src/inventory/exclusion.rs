//! Nodes whose card is not the one that their labels say: the engine found out, and the node is left alone for a while.
//!
//! Only nodes with one kind of card are excluded; on a node with several, another pod may well get the right one.

use std::collections::BTreeSet;

use atlas_crds::profile::ExcludedNode;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{FaultReport, whole_seconds};

/// How long a node is left alone after the first wrong card; twice as long after each further one.
const FIRST_SECONDS: i64 = 600;
/// Longest time without another try.
const LONGEST_SECONDS: i64 = 86_400;

/// An engine that ended because of its card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongCard {
    /// Where it ran.
    pub node: String,
    /// When it ended.
    pub at: Timestamp,
    /// What it said.
    pub message: String,
}

/// What engines found on a profile's nodes.
#[derive(Debug, Clone, Default)]
pub struct CardReports {
    /// Engines that ended because of their card.
    pub wrong: Vec<WrongCard>,
    /// Nodes on which an engine of the profile is ready.
    pub confirmed: BTreeSet<String>,
    /// Nodes that carry the profile's kind of card alone.
    pub unmixed: BTreeSet<String>,
    /// Engines that ended because their card failed.
    pub faults: Vec<FaultReport>,
    /// Nodes that carry the profile's kind of card, or may.
    pub carrying: BTreeSet<String>,
}

/// Brings the exclusions up to date. An expired one stays as history until it has been quiet for as long as it lasted.
#[must_use]
pub fn update_exclusions(
    before: &[ExcludedNode],
    reports: &CardReports,
    now: Timestamp,
) -> Vec<ExcludedNode> {
    let known = |name: &str| reports.unmixed.contains(name) && !reports.confirmed.contains(name);
    let mut now_excluded: Vec<ExcludedNode> =
        before.iter().filter(|node| known(&node.name)).cloned().collect();
    for wrong in reports.wrong.iter().filter(|wrong| known(&wrong.node)) {
        let at = whole_seconds(wrong.at);
        match now_excluded.iter_mut().find(|node| node.name == wrong.node) {
            Some(node) if at <= node.since.0 => {}
            Some(node) => {
                node.failures = node.failures.saturating_add(1);
                node.since = Time(at);
                node.until = Time(after(at, node.failures));
                node.message.clone_from(&wrong.message);
            }
            None => now_excluded.push(ExcludedNode {
                name: wrong.node.clone(),
                active: true,
                failures: 1,
                since: Time(at),
                until: Time(after(at, 1)),
                message: wrong.message.clone(),
            }),
        }
    }
    now_excluded.retain(|node| {
        let lasted = node.until.0.duration_since(node.since.0);
        now.duration_since(node.until.0) < lasted
    });
    for node in &mut now_excluded {
        node.active = now < node.until.0;
    }
    now_excluded.sort_by(|a, b| a.name.cmp(&b.name));
    now_excluded
}

fn after(at: Timestamp, failures: i32) -> Timestamp {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(16);
    let seconds = (FIRST_SECONDS << doublings).min(LONGEST_SECONDS);
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reports(wrong: &[i64], confirmed: bool, unmixed: bool) -> CardReports {
        let here = |yes: bool| yes.then(|| "n1".to_owned()).into_iter().collect();
        CardReports {
            wrong: wrong
                .iter()
                .map(|second| WrongCard { node: "n1".into(), at: at(*second), message: format!("m{second}") })
                .collect(),
            confirmed: here(confirmed),
            unmixed: here(unmixed),
            ..CardReports::default()
        }
    }

    /// Failures, end and whether it holds; `None` where nothing is excluded.
    fn step(
        before: &[ExcludedNode],
        reports: &CardReports,
        now: i64,
    ) -> (Vec<ExcludedNode>, Option<(i32, i64, bool)>) {
        let next = update_exclusions(before, reports, at(now));
        let short = next.first().map(|node| (node.failures, node.until.0.as_second(), node.active));
        (next, short)
    }

    #[test]
    fn a_wrong_card_excludes_its_node_longer_each_time_and_a_right_one_ends_it() {
        let (first, short) = step(&[], &reports(&[1000], false, true), 1000);
        assert_eq!(short, Some((1, 1600, true)));
        // The same end seen again, from a pod that is still there, counts once.
        assert_eq!(step(&first, &reports(&[1000], false, true), 1200).0, first);
        let (expired, short) = step(&first, &reports(&[1000], false, true), 1600);
        assert_eq!(short, Some((1, 1600, false)));
        let (second, short) = step(&expired, &reports(&[1000, 1700], false, true), 1700);
        assert_eq!((short, second[0].message.as_str()), (Some((2, 2900, true)), "m1700"));
        assert_eq!(step(&second, &reports(&[], true, true), 1800).1, None);
        assert_eq!(step(&second, &reports(&[], false, false), 1800).1, None);
        // Quiet for as long as it lasted: forgotten.
        assert_eq!(step(&second, &reports(&[], false, true), 4099).1, Some((2, 2900, false)));
        assert_eq!(step(&second, &reports(&[], false, true), 4100).1, None);
    }

    #[test]
    fn a_mixed_node_is_never_excluded_and_no_exclusion_lasts_longer_than_a_day() {
        assert_eq!(step(&[], &reports(&[1000], false, false), 1000).1, None);
        let mut excluded = Vec::new();
        let mut now = 1000;
        for _ in 0..20 {
            let (next, short) = step(&excluded, &reports(&[now], false, true), now);
            let (_, until, _) = short.unwrap();
            assert!(until - now <= LONGEST_SECONDS, "{until} {now}");
            (excluded, now) = (next, until + 1);
        }
        assert_eq!(excluded[0].failures, 20);
    }
}
