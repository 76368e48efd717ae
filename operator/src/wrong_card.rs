//! An engine that got another card of a node with several kinds: its pod is made anew, later each time.
//!
//! A container that is started again keeps its card, so only another pod can get another one.

use std::{collections::HashMap, time::Duration};

use atlas_crds::GpuProfile;
use atlas_operator_core::{engine_contract::EngineExit, inventory::match_node};
use jiff::{SignedDuration, Timestamp};

use crate::{
    observe::{PodView, TierPods},
    stores::Nodes,
};

/// Wait before the first new pod; twice as long before each further one.
const FIRST: Duration = Duration::from_secs(30);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(600);

/// How often each tier of a model got a new pod since it served last.
pub type Tries = HashMap<String, u32>;

/// Chooses the pods to make anew, and counts them.
pub fn choose_retries<'a>(
    tiers: &'a [TierPods],
    profile_of: impl Fn(usize) -> Option<&'a GpuProfile>,
    nodes: &Nodes,
    tries: &mut Tries,
    now: Timestamp,
) -> Vec<&'a PodView> {
    let mut chosen = Vec::new();
    for (index, tier) in tiers.iter().enumerate() {
        if tier.ready() > 0 {
            tries.remove(&tier.tier);
        }
        let Some(profile) = profile_of(index) else { continue };
        let mixed = |pod: &PodView| {
            let node = pod.node.as_ref().and_then(|name| nodes.get(name));
            node.and_then(|node| match_node(profile, node)).is_some_and(|matched| matched.mixed)
        };
        let tried = tries.get(&tier.tier).copied().unwrap_or(0);
        let due: Vec<&PodView> = tier.current().filter(|pod| is_due(pod, tried, now) && mixed(pod)).collect();
        if !due.is_empty() {
            tries.insert(tier.tier.clone(), tried.saturating_add(1));
            chosen.extend(due);
        }
    }
    chosen
}

fn is_due(pod: &PodView, tries: u32, now: Timestamp) -> bool {
    let Some(failure) = pod.failure.as_ref().filter(|failure| failure.exit == EngineExit::WrongCard) else {
        return false;
    };
    let wait = (FIRST * (1 << tries.min(10))).min(LONGEST);
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    failure.at.is_some_and(|at| now.duration_since(at) >= wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Failure;

    #[test]
    fn a_new_pod_is_waited_for_longer_each_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let failed = |exit: EngineExit| PodView {
            failure: Some(Failure {
                exit,
                code: exit.code(),
                message: "m".into(),
                at: Some(at(1000)),
                header: None,
                oom_killed: false,
            }),
            ..PodView::default()
        };
        let check = |exit, tries, after: i64, expected| {
            assert_eq!(is_due(&failed(exit), tries, at(1000 + after)), expected, "{exit:?} {tries} {after}");
        };
        check(EngineExit::WrongCard, 0, 29, false);
        check(EngineExit::WrongCard, 0, 30, true);
        check(EngineExit::WrongCard, 2, 119, false);
        check(EngineExit::WrongCard, 2, 120, true);
        check(EngineExit::WrongCard, 30, 599, false);
        check(EngineExit::WrongCard, 30, 600, true);
        check(EngineExit::DoesNotFit, 0, 9999, false);
    }
}
