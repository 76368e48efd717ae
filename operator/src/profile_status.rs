//! The status of a GpuProfile: its nodes, what they offer, what contradicts itself.
//!
//! Pure: time is an argument.

use std::collections::BTreeMap;

use atlas_crds::{
    GpuProfile, ProfileCondition,
    profile::{Allocation, Backend, Calibration, CardFault, GpuProfileStatus, ProfileNode},
    quantity::{format_bytes, parse_bytes},
};
use atlas_operator_core::{
    inventory::{
        CardReports, DriverVerdict, NodeView, OtherWorkloads, describe_fault, describe_match, judge_drivers,
        label_problems, node_offers, unambiguous_problems, update_exclusions, update_faults,
    },
    vram::calibrate,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{measure::Measurement, status::whole_seconds};

/// Refused nodes in one message.
const MAX_TOLD: usize = 16;

/// What a profile's status is computed from.
pub struct Seen<'a> {
    /// Every profile.
    pub profiles: &'a [&'a GpuProfile],
    /// Every node.
    pub nodes: &'a [&'a NodeView],
    /// What pods of others hold.
    pub others: &'a OtherWorkloads,
    /// Cards that engine pods hold.
    pub in_use: i32,
    /// These by node.
    pub held: &'a BTreeMap<String, i32>,
    /// What engines found about their cards.
    pub reports: &'a CardReports,
    /// What engines measured of the runtime's share.
    pub measurements: &'a [Measurement],
    /// Now.
    pub now: Timestamp,
}

/// The status of a profile.
#[must_use]
pub fn compute_profile_status(profile: &GpuProfile, seen: &Seen<'_>) -> GpuProfileStatus {
    let Seen { profiles, nodes, others, in_use, held, reports, measurements, now } = *seen;
    // An edit of the profile may be what mends it: then every node is tried anew.
    let before =
        profile.status.as_ref().filter(|status| status.observed_generation == profile.metadata.generation);
    let excluded = update_exclusions(before.map_or(&[], |status| status.excluded.as_slice()), reports, now);
    let card_faults = update_faults(
        before.map_or(&[], |status| status.card_faults.as_slice()),
        &reports.faults,
        &reports.carrying,
        now,
    );
    let mut current = profile.clone();
    let shown = current.status.get_or_insert_default();
    shown.excluded.clone_from(&excluded);
    shown.card_faults.clone_from(&card_faults);
    let offers = node_offers(&current, nodes.iter().copied(), others);
    let matched: Vec<ProfileNode> = offers
        .iter()
        .map(|offer| ProfileNode {
            name: offer.node.clone(),
            cards: offer.matched.cards,
            allocatable: offer.allocatable,
            free: offer.free(held.get(&offer.node).copied().unwrap_or(0)),
            refused: offer.describe(),
        })
        .collect();
    let problems = unambiguous_problems(profile, profiles, nodes);
    let previous = profile.status.clone().unwrap_or_default();
    let condition = |type_: ProfileCondition, status: &str, reason: &str, message: String| {
        let before = previous.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
        Condition {
            type_: type_.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: profile.metadata.generation,
            last_transition_time: before
                .map_or_else(|| Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
        }
    };
    let nodes_matched = if matched.is_empty() && profile.spec.allocation == Allocation::ResourceClaim {
        let message = "no node is labelled, and none has to be: the scheduler finds the cards of claims";
        condition(ProfileCondition::NodesMatched, "Unknown", "ByClaim", message.into())
    } else if matched.is_empty() {
        let message = format!(
            "no node has {}: check the node labeller's flags and match of this profile",
            describe_match(profile)
        );
        condition(ProfileCondition::NodesMatched, "False", "NoMatchingNode", message)
    } else {
        let count = matched.len();
        condition(
            ProfileCondition::NodesMatched,
            "True",
            "Matched",
            format!("{count} node(s) carry this card"),
        )
    };
    let refused: Vec<&str> = matched.iter().filter_map(|node| node.refused.as_deref()).collect();
    let nodes_usable = if refused.is_empty() {
        condition(
            ProfileCondition::NodesUsable,
            "True",
            "Usable",
            "every matched node takes engine pods while it has a free card".into(),
        )
    } else {
        condition(ProfileCondition::NodesUsable, "False", "NodesRefused", clip_list(&refused))
    };
    let unambiguous = if problems.is_empty() {
        condition(
            ProfileCondition::Unambiguous,
            "True",
            "OneKind",
            "no matched node has another card or profile".into(),
        )
    } else {
        let message = format!("{}: engines check their card at start", problems.join("; "));
        condition(ProfileCondition::Unambiguous, "False", "Ambiguous", message)
    };
    let labels = label_problems(profile, nodes);
    let labels_consistent = if labels.is_empty() {
        condition(
            ProfileCondition::LabelsConsistent,
            "True",
            "Consistent",
            "labels and counts of the matched nodes agree".into(),
        )
    } else {
        condition(ProfileCondition::LabelsConsistent, "False", "Inconsistent", labels.join("; "))
    };
    let (state, reason, message) = describe_faults(&card_faults);
    let cards_healthy = condition(ProfileCondition::CardsHealthy, state, reason, message);
    let (state, reason, message) = describe_drivers(&judge_drivers(profile, nodes));
    let driver_validated = condition(ProfileCondition::DriverValidated, state, reason, message);
    GpuProfileStatus {
        observed_generation: profile.metadata.generation,
        matched_nodes: i32::try_from(matched.len()).unwrap_or(i32::MAX),
        capacity: matched.iter().map(|node| node.allocatable).sum(),
        nodes: matched,
        in_use,
        excluded,
        card_faults,
        calibration: keep_calibration(profile, measurements, now),
        conditions: vec![
            nodes_matched,
            nodes_usable,
            unambiguous,
            labels_consistent,
            cards_healthy,
            driver_validated,
        ],
    }
}

/// Status, reason and message of `CardsHealthy`.
fn describe_faults(faults: &[CardFault]) -> (&'static str, &'static str, String) {
    let told = |fault: &CardFault| format!("node {}: {}", fault.node, describe_fault(fault));
    let marked: Vec<String> = faults.iter().filter(|fault| fault.active).map(told).collect();
    if !marked.is_empty() {
        return ("False", "CardFault", clip_list(&marked));
    }
    if faults.is_empty() {
        return ("True", "NoFault", "no card failed within the last hour".to_owned());
    }
    let once = |fault: &CardFault| {
        let CardFault { node, error, message, last, .. } = fault;
        format!("node {node}: {error:?} at {} ({message})", last.0)
    };
    let recent: Vec<String> = faults.iter().map(once).collect();
    let next = "the engine was started again; another fault leaves the card alone for a while";
    ("True", "FailedLately", format!("{}: {next}", clip_list(&recent)))
}

/// The runtime's share of this profile's cards: a figure of another target is forgotten.
fn keep_calibration(
    profile: &GpuProfile,
    measurements: &[Measurement],
    now: Timestamp,
) -> Option<Calibration> {
    let gfx_target = profile.spec.gfx_target.clone().filter(|_| profile.spec.backend == Backend::Hip)?;
    let before = profile.status.as_ref().and_then(|status| status.calibration.clone());
    let before = before.filter(|before| before.gfx_target == gfx_target);
    let kept = before.as_ref().and_then(|before| {
        let held = now.duration_since(before.since.0);
        Some((parse_bytes(&before.runtime)?, held.try_into().unwrap_or_default()))
    });
    let runtime = calibrate(kept, measurements.iter().map(|measured| measured.runtime))?;
    if kept.is_some_and(|(kept, _)| kept == runtime) {
        return before;
    }
    let on = measurements.iter().find(|measured| measured.runtime == runtime)?;
    Some(Calibration {
        gfx_target,
        runtime: format_bytes(runtime),
        measured_on: on.on.clone(),
        since: Time(whole_seconds(now)),
    })
}

/// Status, reason and message of `DriverValidated`.
fn describe_drivers(verdict: &DriverVerdict) -> (&'static str, &'static str, String) {
    match verdict {
        DriverVerdict::NotListed => {
            ("Unknown", "NotListed", "spec.validatedDrivers names no driver to compare with".to_owned())
        }
        DriverVerdict::Untold => (
            "Unknown",
            "Untold",
            "no matched node tells its driver: switch the label driver-version of the node labeller on; the kernel's own driver has no version"
                .to_owned(),
        ),
        DriverVerdict::Validated => {
            ("True", "Validated", "every matched node that tells its driver runs a validated one".to_owned())
        }
        DriverVerdict::Other(nodes) => {
            let nodes: Vec<String> =
                nodes.iter().map(|(node, version)| format!("node {node} runs {version}")).collect();
            let message = format!(
                "{}: install a driver of spec.validatedDrivers, or add this one once you have tried it",
                nodes.join(", ")
            );
            ("False", "NotValidated", message)
        }
    }
}

/// A few of many problems: a condition's message holds 32 KiB, and nobody reads more than these.
fn clip_list(problems: &[impl AsRef<str>]) -> String {
    let mut text = problems.iter().take(MAX_TOLD).map(AsRef::as_ref).collect::<Vec<_>>().join("; ");
    if problems.len() > MAX_TOLD {
        text.push_str(&format!("; and {} more: see status.nodes", problems.len() - MAX_TOLD));
    }
    text
}
