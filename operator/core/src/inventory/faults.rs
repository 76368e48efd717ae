//! Cards that failed: once is forgiven, since a card comes back from most resets; again within the hour, and the node
//! takes no pods of the card's profile for a while, longer each time.
//!
//! What is known lies in the profile's status, so it outlives the operator. Nothing here tells one card of a node from
//! another to the scheduler, which cannot be told: where a card is marked, its node's cards of that kind are left alone.

use std::collections::BTreeSet;

use atlas_crds::profile::{CardError, CardFault};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::whole_seconds;

/// How long a fault counts against the next one.
const WINDOW_SECONDS: i64 = 3600;
/// How long a card is left alone after its second fault; twice as long after each further one.
const FIRST_SECONDS: i64 = 600;
/// Longest time without another try.
const LONGEST_SECONDS: i64 = 86_400;

/// An engine that ended because its card failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultReport {
    /// Where it ran.
    pub node: String,
    /// How it failed; `None` where no card was there at all, which alone says nothing about a card.
    pub error: Option<CardError>,
    /// When it ended.
    pub at: Timestamp,
    /// What it said.
    pub message: String,
}

/// Brings the faults of a profile's cards up to date; `nodes` are those that carry the card.
#[must_use]
pub fn update_faults(
    before: &[CardFault],
    reports: &[FaultReport],
    nodes: &BTreeSet<String>,
    now: Timestamp,
) -> Vec<CardFault> {
    let mut faults: Vec<CardFault> =
        before.iter().filter(|fault| nodes.contains(&fault.node)).cloned().collect();
    let mut reports: Vec<&FaultReport> = reports.iter().filter(|r| nodes.contains(&r.node)).collect();
    reports.sort_by_key(|report| report.at);
    for report in reports {
        let at = whole_seconds(report.at);
        if now.duration_since(at) >= SignedDuration::from_secs(WINDOW_SECONDS) {
            continue;
        }
        faults.retain(|fault| fault.node != report.node || at < forgotten_at(fault));
        let card = card_of(&report.message);
        // An engine without a card, or one that does not say which it had, speaks of the card that failed there before.
        let known = faults.iter_mut().find(|fault| {
            fault.node == report.node && (card.is_none() || fault.card.is_none() || fault.card == card)
        });
        match (known, report.error) {
            (Some(fault), _) if at <= fault.last.0 => {}
            (Some(fault), error) => {
                fault.count = fault.count.saturating_add(1);
                fault.error = error.unwrap_or(CardError::Lost);
                fault.last = Time(at);
                fault.until = Time(after(at, fault.count));
                fault.card = card.or(fault.card.take());
                fault.message.clone_from(&report.message);
            }
            (None, Some(error)) => faults.push(CardFault {
                node: report.node.clone(),
                card,
                active: false,
                count: 1,
                error,
                last: Time(at),
                until: Time(at),
                message: report.message.clone(),
            }),
            (None, None) => {}
        }
    }
    faults.retain(|fault| now < forgotten_at(fault));
    for fault in &mut faults {
        fault.active = now < fault.until.0;
    }
    faults.sort_by(|a, b| (&a.node, &a.card).cmp(&(&b.node, &b.card)));
    faults
}

/// When a fault no longer counts: quiet for an hour, or for as long as the card was left alone.
#[must_use]
pub fn forgotten_at(fault: &CardFault) -> Timestamp {
    let lasted = fault.until.0.duration_since(fault.last.0);
    let quiet = lasted.max(SignedDuration::from_secs(WINDOW_SECONDS));
    fault.until.0.checked_add(quiet).unwrap_or(fault.until.0)
}

/// What a person is told of a fault: which card, what it did, and what to do.
#[must_use]
pub fn describe_fault(fault: &CardFault) -> String {
    let CardFault { node: _, card, active: _, count, error, last: _, until, message } = fault;
    let card = card.as_deref().map_or_else(|| "its card".to_owned(), |card| format!("its card {card}"));
    let remedy = match error {
        CardError::Hang => "see the node's kernel log for amdgpu resets, and the driver's version",
        CardError::Lost => {
            "see the node's kernel log for amdgpu and PCIe errors, and the card's power, heat and slot"
        }
    };
    format!(
        "{card} failed {count} times, the last time with {error:?} ({message}): it is left alone until {}; {remedy}; an edit of the GpuProfile tries it at once",
        until.0
    )
}

/// The PCI address in an engine's last words, which begin with `card ADDRESS (TARGET): `.
fn card_of(message: &str) -> Option<String> {
    let (address, _) = message.strip_prefix("card ")?.split_once(" (")?;
    let right = !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    right.then(|| address.to_owned())
}

fn after(at: Timestamp, count: i32) -> Timestamp {
    let seconds = match u32::try_from(count - 2) {
        Ok(doublings) => (FIRST_SECONDS << doublings.min(16)).min(LONGEST_SECONDS),
        Err(_) => 0,
    };
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "card 0000:03:00.0 (gfx1100): the device hangs";
    const OTHER: &str = "card 0000:0a:00.0 (gfx1100): the device is lost";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn report(second: i64, error: Option<CardError>, message: &str) -> FaultReport {
        FaultReport { node: "n1".into(), error, at: at(second), message: message.into() }
    }

    /// Plays reports one after the other, each seen when it happens, and tells count, end and whether it holds at `now`.
    fn check(what: &str, reports: &[FaultReport], now: i64, expected: &[(i32, i64, bool)]) {
        let nodes = ["n1".to_owned()].into();
        let mut faults = Vec::new();
        for seen in 1..=reports.len() {
            faults = update_faults(&faults, &reports[..seen], &nodes, reports[seen - 1].at);
        }
        faults = update_faults(&faults, reports, &nodes, at(now));
        let found: Vec<_> = faults.iter().map(|f| (f.count, f.until.0.as_second(), f.active)).collect();
        assert_eq!(found, expected, "{what}");
    }

    #[test]
    fn a_card_is_forgiven_once_an_hour_and_left_alone_longer_each_time() {
        let (hang, lost) = (Some(CardError::Hang), Some(CardError::Lost));
        let faults = |seconds: &[i64]| -> Vec<FaultReport> {
            seconds.iter().map(|second| report(*second, hang, ONE)).collect()
        };
        check("once", &faults(&[1000]), 1000, &[(1, 1000, false)]);
        check("the same end seen again", &faults(&[1000, 1000]), 1001, &[(1, 1000, false)]);
        check("once is forgotten", &faults(&[1000]), 4600, &[]);
        check("twice", &faults(&[1000, 1300]), 1300, &[(2, 1900, true)]);
        check("twice, until then", &faults(&[1000, 1300]), 1900, &[(2, 1900, false)]);
        check("twice, an hour apart", &faults(&[1000, 4700]), 4700, &[(1, 4700, false)]);
        check("thrice", &faults(&[1000, 1300, 2000]), 2000, &[(3, 3200, true)]);
        check("thrice is remembered", &faults(&[1000, 1300, 2000]), 6799, &[(3, 3200, false)]);
        check("thrice is forgotten", &faults(&[1000, 1300, 2000]), 6800, &[]);
        let mixed = [report(1000, hang, ONE), report(1100, lost, ONE)];
        check("hang and lost", &mixed, 1100, &[(2, 1700, true)]);
        let two = [report(1000, hang, ONE), report(1100, lost, OTHER)];
        check("two cards", &two, 1100, &[(1, 1000, false), (1, 1100, false)]);
        let gone = [report(1000, lost, ONE), report(1010, None, "no AMD card is usable")];
        check("a card that does not come back", &gone, 1010, &[(2, 1610, true)]);
        check("no card and no fault before", &gone[1..], 1010, &[]);
    }

    #[test]
    fn no_card_is_left_alone_for_longer_than_a_day_and_other_nodes_do_not_count() {
        let nodes = ["n1".to_owned()].into();
        let (mut faults, mut now) = (Vec::new(), 1000);
        for _ in 0..20 {
            faults = update_faults(&faults, &[report(now, Some(CardError::Lost), ONE)], &nodes, at(now));
            let until = faults[0].until.0.as_second();
            assert!(until - now <= LONGEST_SECONDS, "{until} {now}");
            now = until + 1;
        }
        assert_eq!(faults[0].count, 20);
        assert!(update_faults(&faults, &[], &BTreeSet::new(), at(now)).is_empty());
    }

    #[test]
    fn a_fault_names_card_error_end_and_remedy() {
        let nodes = ["n1".to_owned()].into();
        let reports = [report(1000, Some(CardError::Lost), ONE), report(1300, Some(CardError::Hang), ONE)];
        let text = describe_fault(&update_faults(&[], &reports, &nodes, at(1300))[0]);
        for part in
            ["0000:03:00.0", "2 times", "Hang", "the device hangs", "1970-01-01T00:31:40Z", "kernel log"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        for (message, card) in
            [(ONE, Some("0000:03:00.0")), ("card of (x): y", None), ("the device hangs", None)]
        {
            assert_eq!(card_of(message).as_deref(), card, "{message}");
        }
    }
}
