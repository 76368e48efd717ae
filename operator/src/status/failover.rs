//! What several gateways measured, as one history.
//!
//! It remembers nothing itself: the time of the last counted failover is in the status, so a restarted controller
//! counts nothing twice.

use atlas_crds::status::FailoverStatus;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::probe::GatewayModel;

/// Gateways that move for one cause do so within this time of each other.
const SAME_MOVE: SignedDuration = SignedDuration::from_secs(3);

/// Cause that a gateway gives for a return to a better tier.
const FAILED_BACK: &str = "FailedBack";
/// Cause that a gateway gives for a move that the specification asked for.
const PINNED: &str = "Pinned";

/// Direction of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveKind {
    /// To a later tier.
    FailedOver,
    /// To a better tier.
    FailedBack,
    /// To the one that was pinned.
    Pinned,
}

/// A move between tiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its direction.
    pub kind: MoveKind,
    /// Where requests went before.
    pub from: String,
    /// Where they go since.
    pub to: String,
    /// Why.
    pub cause: String,
    /// From the first sign of trouble.
    pub millis: i64,
    /// When.
    pub at: Timestamp,
}

/// Merges what the gateways say into the failovers so far; returns the moves, oldest first, each once. Of these,
/// failovers are new; others are returned as long as a gateway remembers them.
#[must_use]
pub fn fold_switches(
    previous: Option<&FailoverStatus>,
    gateways: &[GatewayModel],
    order: &[&str],
) -> (Option<FailoverStatus>, Vec<Move>) {
    let merged = merge(gateways, order);
    let mut status = previous.cloned();
    let counted = status.as_ref().and_then(|s| s.last_time.as_ref()).map(|time| time.0);
    let merged: Vec<Move> = merged
        .into_iter()
        .filter(|seen| {
            seen.of.kind != MoveKind::FailedOver || counted.is_none_or(|last| seen.is_later_than(last))
        })
        .map(|seen| seen.of)
        .collect();
    for m in merged.iter().filter(|m| m.kind == MoveKind::FailedOver) {
        let status = status.get_or_insert_with(FailoverStatus::default);
        status.count += 1;
        status.last_time = Some(Time(super::whole_seconds(m.at)));
        status.last_reason = Some(m.cause.clone());
        status.last_millis = Some(m.millis);
    }
    (status, merged)
}

/// A move as several gateways saw it.
struct Seen {
    of: Move,
    /// Those that did, by their place in the list.
    by: Vec<usize>,
    /// When one of them failed over the last time before.
    before: Option<Timestamp>,
}

impl Seen {
    /// Whether it is another failover than the last counted one, whose time is told in whole seconds.
    fn is_later_than(&self, last: Timestamp) -> bool {
        let after = self.of.at.duration_since(last);
        // Soon after it, a gateway that moved late may mean the same one; a gateway that has one behind it does not.
        let is_second = self.before.is_some_and(|before| before.duration_since(last) >= -SAME_MOVE);
        after > SAME_MOVE || after >= SignedDuration::from_secs(1) && is_second
    }
}

/// What the gateways saw, oldest first, each move once. No gateway sees one move twice.
fn merge(gateways: &[GatewayModel], order: &[&str]) -> Vec<Seen> {
    let mut moves: Vec<(usize, Move, Option<Timestamp>)> = Vec::new();
    for (index, gateway) in gateways.iter().enumerate() {
        let mut before = None;
        for next in moves_of(gateway, order) {
            let failed_over = (next.kind == MoveKind::FailedOver).then_some(next.at);
            moves.push((index, next, before));
            before = failed_over.or(before);
        }
    }
    moves.sort_by_key(|(_, next, _)| next.at);
    let mut merged: Vec<Seen> = Vec::new();
    for (index, next, before) in moves {
        let same = merged.iter_mut().rev().find(|seen| {
            (&seen.of.from, &seen.of.to) == (&next.from, &next.to)
                && next.at.duration_since(seen.of.at) <= SAME_MOVE
                && !seen.by.contains(&index)
        });
        match same {
            Some(seen) => {
                // The slowest gateway is what a client may have met.
                seen.of.millis = seen.of.millis.max(next.millis);
                seen.by.push(index);
                seen.before = seen.before.max(before);
            }
            None => merged.push(Seen { of: next, by: vec![index], before }),
        }
    }
    merged
}

/// A gateway's moves between tiers; what went over "nothing serves" counts from the tier before.
fn moves_of(gateway: &GatewayModel, order: &[&str]) -> Vec<Move> {
    let index = |name: &str| order.iter().position(|tier| *tier == name);
    let mut switches: Vec<_> = gateway.switches.iter().collect();
    switches.sort_by_key(|switch| switch.seq);
    let mut last: Option<&str> = None;
    let mut moves = Vec::new();
    for switch in switches {
        let from = switch.from.as_deref().or(last);
        last = switch.to.as_deref().or(from);
        let (Some(from), Some(to)) = (from, switch.to.as_deref()) else { continue };
        let (Some(a), Some(b)) = (index(from), index(to)) else { continue };
        let kind = match b.cmp(&a) {
            std::cmp::Ordering::Equal => continue,
            // The gateway names its own returns; a tier list that was reordered meanwhile does not make them failovers.
            _ if switch.cause.as_deref() == Some(FAILED_BACK) => MoveKind::FailedBack,
            _ if switch.cause.as_deref() == Some(PINNED) => MoveKind::Pinned,
            std::cmp::Ordering::Greater => MoveKind::FailedOver,
            std::cmp::Ordering::Less => MoveKind::FailedBack,
        };
        moves.push(Move {
            kind,
            from: from.to_owned(),
            to: to.to_owned(),
            cause: switch.cause.clone().unwrap_or_else(|| "Unknown".to_owned()),
            millis: switch.millis,
            at: switch.at.checked_add(switch.ahead).unwrap_or(switch.at),
        });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Switch;

    fn gateway(switches: &[(Option<&str>, Option<&str>, i64, i64)]) -> GatewayModel {
        GatewayModel {
            model: "code".into(),
            active_tier: None,
            endpoints: Vec::new(),
            certificate_problem: None,
            lets_nobody_in: false,
            switches: switches
                .iter()
                .enumerate()
                .map(|(i, (from, to, second, millis))| Switch {
                    seq: i as u64 + 1,
                    from: from.map(str::to_owned),
                    to: to.map(str::to_owned),
                    cause: Some("ConnectionRefused".into()),
                    millis: *millis,
                    at: Timestamp::from_second(*second).unwrap(),
                    ahead: SignedDuration::ZERO,
                })
                .collect(),
        }
    }

    #[test]
    fn one_failover_seen_by_two_gateways_counts_once_and_never_again() {
        let (p, f) = (Some("p"), Some("f"));
        let gateways = [gateway(&[(p, f, 100, 12), (f, p, 200, 0)]), gateway(&[(p, f, 101, 40)])];
        let (status, moves) = fold_switches(None, &gateways, &["p", "f"]);
        let status = status.unwrap();
        assert_eq!((status.count, status.last_millis), (1, Some(40)));
        assert_eq!(
            moves.iter().map(|m| m.kind).collect::<Vec<_>>(),
            [MoveKind::FailedOver, MoveKind::FailedBack]
        );
        let (again, moves) = fold_switches(Some(&status), &gateways, &["p", "f"]);
        assert_eq!(again.as_ref(), Some(&status));
        assert!(moves.iter().all(|m| m.kind == MoveKind::FailedBack));
        let later = [gateway(&[(p, None, 300, 0), (None, f, 301, 900)])];
        assert_eq!(fold_switches(Some(&status), &later, &["p", "f"]).0.unwrap().count, 2);
        assert_eq!(fold_switches(None, &[gateway(&[(None, p, 1, 0)])], &["p", "f"]).0, None);
        let quick = [
            gateway(&[(p, f, 100, 0), (f, p, 101, 0), (p, f, 102, 7)]),
            gateway(&[(p, f, 101, 0), (f, p, 102, 0), (p, f, 103, 9)]),
        ];
        let (twice, moves) = fold_switches(None, &quick, &["p", "f"]);
        let twice = twice.unwrap();
        assert_eq!(
            (twice.count, twice.last_millis, moves.len()),
            (2, Some(9), 3),
            "one soon after the other"
        );
        let told = |status: &FailoverStatus, gateways: &[GatewayModel]| {
            fold_switches(Some(status), gateways, &["p", "f", "g"]).0.unwrap().count
        };
        assert_eq!(told(&twice, &quick), 2);
        let g = Some("g");
        let first = fold_switches(None, &[gateway(&[(p, f, 100, 0)])], &["p", "f", "g"]).0.unwrap();
        assert_eq!(told(&first, &[gateway(&[(p, f, 102, 0)])]), 1, "another gateway moved late");
        let on = [gateway(&[(p, f, 100, 0), (f, g, 102, 0)]), gateway(&[(p, f, 102, 0), (f, g, 103, 0)])];
        assert_eq!(told(&first, &on), 2, "and on to the third tier before anybody asked again");
        let mut returned = gateway(&[(p, f, 400, 0)]);
        returned.switches[0].cause = Some("FailedBack".into());
        let (status, moves) = fold_switches(None, &[returned], &["p", "f"]);
        assert_eq!((status, moves[0].kind), (None, MoveKind::FailedBack));
        let mut pinned = gateway(&[(p, f, 500, 0)]);
        pinned.switches[0].cause = Some("Pinned".into());
        let (status, moves) = fold_switches(None, &[pinned], &["p", "f"]);
        assert_eq!((status, moves[0].kind), (None, MoveKind::Pinned));
    }
}
