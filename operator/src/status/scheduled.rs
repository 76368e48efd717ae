//! Condition `Scheduled`: what keeps a tier's pods from a node with its card, and what to do about it.

use std::collections::BTreeSet;

use atlas_crds::ModelCondition;
use atlas_operator_core::{engine_contract::EngineExit, refusal::remedy, tiers::Admission};

use super::{
    Observed,
    conditions::{Draft, State, draft, failure, failure_draft, planned},
};
use crate::{
    observe::{Failure, TierPods},
    plan::{Placement, Plan},
    validate::ValidatedModel,
};

/// Condition `Scheduled`.
pub fn scheduled(observed: &Observed<'_>) -> Draft {
    let (model, plan) = match planned(observed) {
        Ok(found) => found,
        Err(unknown) => return unknown,
    };
    if let Some(found) = failure(observed, ModelCondition::Scheduled) {
        return with_advice(failure_draft(found), found.2, plan, observed, &found.0.tier);
    }
    if model.suspended {
        return draft(State::True, "Suspended", "spec.suspend is true: no pod is wanted");
    }
    let draft = |state, reason, message: String| {
        draft(state, reason, std::iter::once(message).chain(ambiguities(plan)).collect::<Vec<_>>().join("; "))
    };
    for (index, tier) in observed.tiers.iter().enumerate() {
        if let Some(problem) = placement_problem(model, plan, index, tier) {
            return draft(problem.state, problem.reason, with_refused(problem.message, plan, [index]));
        }
    }
    let (indices, waiting): (Vec<usize>, Vec<String>) = observed
        .tiers
        .iter()
        .zip(&plan.tiers)
        .enumerate()
        .filter_map(|(index, (tier, planned))| {
            let bound = tier.current().filter(|pod| pod.node.is_some()).count();
            (i32::try_from(bound).unwrap_or(i32::MAX) < planned.replicas)
                .then(|| (index, format!("{} ({bound} of {})", tier.tier, planned.replicas)))
        })
        .unzip();
    if waiting.is_empty() {
        draft(State::True, "AllScheduled", "every wanted pod has a node".to_owned())
    } else {
        let message = format!("pods wait for the scheduler: {}", waiting.join(", "));
        draft(State::Unknown, "Scheduling", with_refused(message, plan, indices))
    }
}

/// A wrong card of a node with several kinds is not excluded but tried again: says so, and what ends it.
fn with_advice(draft: Draft, failure: &Failure, plan: &Plan, observed: &Observed<'_>, tier: &str) -> Draft {
    let index = observed.tiers.iter().position(|pods| pods.tier == tier);
    let ambiguities = index.and_then(|index| plan.tiers.get(index)).map_or(&[][..], |tier| &tier.ambiguities);
    if failure.exit != EngineExit::WrongCard || ambiguities.is_empty() {
        return draft;
    }
    let advice = "the pod is made anew, later each time, until it gets the right card";
    Draft { message: format!("{}; {}: {advice}", draft.message, ambiguities.join("; ")), ..draft }
}

/// A message with the nodes that refuse these tiers' pods, each once.
fn with_refused(message: String, plan: &Plan, tiers: impl IntoIterator<Item = usize>) -> String {
    let mut parts = vec![message];
    for refused in tiers.into_iter().filter_map(|index| plan.tiers.get(index)).flat_map(|tier| &tier.refused)
    {
        if !parts.iter().any(|part| part.contains(refused.as_str())) {
            parts.push(refused.clone());
        }
    }
    parts.join("; ")
}

/// What makes a tier's card uncertain: worth a word, but no reason to keep a pod from a node.
fn ambiguities(plan: &Plan) -> BTreeSet<String> {
    let told = |problem: &String| format!("{problem}: the engine checks its card at start");
    plan.tiers.iter().flat_map(|tier| &tier.ambiguities).map(told).collect()
}

/// Why a tier's pods have no node, where it is known.
pub fn placement_problem(
    model: &ValidatedModel,
    plan: &Plan,
    index: usize,
    tier: &TierPods,
) -> Option<Draft> {
    let (validated, planned) = (model.tiers.get(index)?, plan.tiers.get(index)?);
    let profile = validated.profile.metadata.name.as_deref().unwrap_or_default();
    if planned.wanted == 0 || planned.admission == Admission::Stop {
        return None;
    }
    let name = &tier.tier;
    let bound = tier.current().filter(|pod| pod.node.is_some()).count();
    let bound = i32::try_from(bound).unwrap_or(i32::MAX);
    match &planned.placement {
        Placement::CardInUse(holders) if bound < planned.wanted => {
            let who = holders.join(", ");
            return Some(draft(
                State::False,
                "CardInUse",
                format!(
                    "tier {name}: {} of {} wanted cards of GpuProfile {profile}; {who} holds the rest and keeps it: the tier starts when a card is free",
                    bound.min(planned.replicas),
                    planned.wanted
                ),
            ));
        }
        Placement::TooFewCards(cards) => {
            return Some(draft(
                State::False,
                "TooFewCards",
                format!(
                    "tier {name}: there are {cards} card(s) of GpuProfile {profile} for the {} that are wanted: lower the tier's replicas, or add a node with such a card",
                    planned.wanted
                ),
            ));
        }
        Placement::NoMatchingNode(labels) => {
            return Some(draft(
                State::False,
                "NoMatchingNode",
                format!(
                    "tier {name}: no node matches GpuProfile {profile}; looked for {labels}: add such a node, let the AMD node labeller set these labels, or correct match of the profile"
                ),
            ));
        }
        Placement::NoCardOffered if bound < planned.wanted => {
            return Some(draft(
                State::False,
                "NoCardOffered",
                format!(
                    "tier {name}: no node with the labels of GpuProfile {profile} offers a card: {}",
                    planned.refused.join("; ")
                ),
            ));
        }
        Placement::NodesRefused if bound < planned.wanted => {
            return Some(draft(
                State::False,
                "NodesRefused",
                format!(
                    "tier {name}: {bound} of {} wanted pods have a node of GpuProfile {profile}: {}",
                    planned.wanted,
                    planned.refused.join("; ")
                ),
            ));
        }
        Placement::CardInUse(_)
        | Placement::NoCardOffered
        | Placement::NodesRefused
        | Placement::Possible => {}
    }
    if let Some(refused) = tier.refused.as_ref().filter(|_| bound < planned.replicas) {
        return Some(draft(
            State::False,
            "PodsRefused",
            format!(
                "tier {name}: the API server refuses its pods: {}: {}",
                refused.said,
                remedy(&refused.said)
            ),
        ));
    }
    let unschedulable = tier.current().find_map(|pod| Some((pod, pod.unschedulable.as_ref()?)))?;
    Some(draft(
        State::False,
        "Unschedulable",
        format!("tier {name}: pod {}: {}", unschedulable.0.name, unschedulable.1),
    ))
}
