//! Every condition of a model, recomputed each time from this one place.

use std::collections::BTreeSet;

use atlas_crds::{ModelCondition, model::Standby};
use atlas_operator_core::{
    refusal::{remedy, remedy_of_end},
    tiers::RolloutStep,
};

use super::{
    Observed, Verdict,
    cached::{keeping_message, model_cached},
    scheduled::{placement_problem, scheduled},
    serving::{degraded, serves},
    vram::{memory_advice, stopped_message, vram_draft},
};
use crate::{
    error::RefusedWrite,
    observe::{EndedPod, Failure, PodView, TierPods},
    plan::Plan,
    validate::ValidatedModel,
};

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell yet.
    Unknown,
}

impl State {
    /// The word in `status.conditions[].status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Status.
    pub state: State,
    /// Reason.
    pub reason: &'static str,
    /// Message for people: cause and remedy.
    pub message: String,
}

/// A condition in one call.
pub fn draft(state: State, reason: &'static str, message: impl Into<String>) -> Draft {
    Draft { state, reason, message: message.into() }
}

/// Computes every condition, in the order of [`ModelCondition::ALL`].
#[must_use]
pub fn compute_conditions(observed: &Observed<'_>, active: Option<usize>) -> Vec<(ModelCondition, Draft)> {
    ModelCondition::ALL
        .iter()
        .map(|type_| {
            let draft = match type_ {
                ModelCondition::Accepted => accepted(observed),
                ModelCondition::VramFits => vram_fits(observed),
                ModelCondition::Scheduled => scheduled(observed),
                ModelCondition::ModelCached => model_cached(observed),
                ModelCondition::Available | ModelCondition::Ready => serves(observed, active),
                ModelCondition::Degraded => degraded(observed, active),
                ModelCondition::Progressing => progressing(observed),
            };
            (*type_, draft)
        })
        .collect()
}

fn accepted(observed: &Observed<'_>) -> Draft {
    match &observed.verdict {
        Verdict::Refused(refusals) => {
            let reason = refusals.first().map_or("Invalid", |refusal| refusal.reason());
            let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            draft(State::False, reason, all.join("; "))
        }
        Verdict::Planned { taken, .. } if !taken.is_empty() => draft(
            State::False,
            "NameTaken",
            format!(
                "{} exists and does not belong to this AtlasModel: delete it or create it under another name; an AtlasModel's own objects follow its name",
                taken.join(", ")
            ),
        ),
        Verdict::Planned { refused, .. } if !refused.is_empty() => {
            draft(State::False, "ObjectRefused", refused_message(refused))
        }
        Verdict::Planned { leaving, .. } if !leaving.is_empty() => draft(
            State::Unknown,
            "NamesLeaving",
            format!(
                "waits until Kubernetes has collected what belongs to a deleted AtlasModel of this name: {}",
                leaving.join(", ")
            ),
        ),
        Verdict::Planned { .. } => draft(State::True, "Valid", "every field is acted on"),
    }
}

/// What the API server does not take of a model's objects, and what to do; remedies stand once.
fn refused_message(refused: &[RefusedWrite]) -> String {
    let mut parts = Vec::new();
    for remedied in refused.iter().map(|write| remedy(&write.said)).collect::<BTreeSet<_>>() {
        let said = refused.iter().filter(|write| remedy(&write.said) == remedied);
        let said: Vec<String> =
            said.map(|write| format!("the API server refuses {}: {}", write.object, write.said)).collect();
        parts.push(format!("{}: {remedied}", said.join("; ")));
    }
    parts.join("; ")
}

/// The plan, or the draft of a condition that cannot be told without one.
pub fn planned<'a>(observed: &'a Observed<'_>) -> Result<(&'a ValidatedModel, &'a Plan), Draft> {
    match &observed.verdict {
        Verdict::Planned { model, plan, .. } => Ok((model, plan)),
        Verdict::Refused(_) => Err(draft(
            State::Unknown,
            "NotAccepted",
            "the specification is not accepted: see condition Accepted",
        )),
    }
}

/// Failures of engines that belong to one condition, the first tier's first.
pub fn failure<'a>(
    observed: &'a Observed<'_>,
    condition: ModelCondition,
) -> Option<(&'a TierPods, &'a PodView, &'a Failure)> {
    observed.tiers.iter().find_map(|tier| {
        tier.current().find_map(|pod| {
            let failure = pod.failure.as_ref().filter(|failure| failure.exit.condition() == condition)?;
            Some((tier, pod, failure))
        })
    })
}

/// The condition that a failure becomes.
pub fn failure_draft((tier, pod, failure): (&TierPods, &PodView, &Failure)) -> Draft {
    let said =
        if failure.message.is_empty() { "the engine left no message" } else { failure.message.as_str() };
    draft(
        State::False,
        failure.reason(),
        format!(
            "tier {}: {said} (pod {}, exit code {}): {}",
            tier.tier,
            pod.name,
            failure.code,
            failure.remedy()
        ),
    )
}

/// The condition that a failure becomes, with the planner's word where memory was the reason.
fn advised(observed: &Observed<'_>, found: (&TierPods, &PodView, &Failure)) -> Draft {
    let draft = failure_draft(found);
    let memory = found.2.exit.condition() == ModelCondition::VramFits;
    match memory_advice(observed, &found.0.tier).filter(|_| memory) {
        Some(advice) => Draft { message: format!("{}; {advice}", draft.message), ..draft },
        None => draft,
    }
}

fn vram_fits(observed: &Observed<'_>) -> Draft {
    let (model, plan) = match planned(observed) {
        Ok(found) => found,
        Err(unknown) => return unknown,
    };
    if let Some(found) = failure(observed, ModelCondition::VramFits) {
        return advised(observed, found);
    }
    vram_draft(model, plan, observed.tiers)
}

fn progressing(observed: &Observed<'_>) -> Draft {
    let (model, plan) = match planned(observed) {
        Ok(found) => found,
        Err(unknown) => return unknown,
    };
    if let Some(found) = failure(observed, ModelCondition::Progressing) {
        return failure_draft(found);
    }
    if let Some((tier, reason)) = observed
        .tiers
        .iter()
        .find_map(|tier| Some((tier, tier.current().find_map(|pod| pod.waiting.as_ref())?)))
    {
        return draft(State::False, "ContainerNotStarted", format!("tier {}: {reason}", tier.tier));
    }
    let taken_back = model.tiers.iter().zip(&plan.tiers).filter_map(|(tier, planned)| {
        let failure = planned.taken_back.as_ref()?;
        Some(format!(
            "tier {} is back at its last good revision, since the change failed: {}; edit the tier to try again",
            tier.name, failure.reason
        ))
    });
    let taken_back: Vec<String> = taken_back.collect();
    let held: Vec<String> = model
        .tiers
        .iter()
        .zip(&plan.tiers)
        .filter_map(|(tier, planned)| match &planned.step {
            RolloutStep::Hold(wait) => Some(format!("tier {} has changed and {wait}", tier.name)),
            RolloutStep::Apply => None,
        })
        .collect();
    if !taken_back.is_empty() {
        let all: Vec<String> = taken_back.into_iter().chain(held).collect();
        return draft(State::False, "RolledBack", all.join("; "));
    }
    if !held.is_empty() {
        return draft(State::True, "RollingOut", held.join("; "));
    }
    let starting: Vec<String> = observed
        .tiers
        .iter()
        .zip(&plan.tiers)
        .filter(|(tier, planned)| tier.ready() < planned.replicas)
        .map(|(tier, planned)| {
            let phase =
                tier.current().find_map(|pod| pod.engine.as_ref()).map_or("", |engine| engine.phase.as_str());
            let phase = if phase.is_empty() { String::new() } else { format!(", {phase}") };
            let ended = ended_message(tier).map(|ended| format!("; {ended}")).unwrap_or_default();
            format!("tier {} ({} of {} ready{phase}){ended}", tier.tier, tier.ready(), planned.replicas)
        })
        .collect();
    if !starting.is_empty() {
        return draft(State::True, "Starting", starting.join("; "));
    }
    let waits = model.tiers.iter().zip(&plan.tiers).any(|(_, planned)| planned.replicas < planned.wanted);
    draft(
        State::False,
        "Settled",
        if waits {
            "no change is on its way; a tier waits for a card: see condition Scheduled"
        } else {
            "every tier is as the specification wants it"
        },
    )
}

/// How the last pod of a tier ended that its node ended for good, and what to do.
fn ended_message(tier: &TierPods) -> Option<String> {
    let EndedPod { name, reason, said, .. } = tier.ended.as_ref()?;
    Some(format!("its node ended pod {name} ({reason}: {said}): {}", remedy_of_end(reason)))
}

/// What keeps a tier from serving; `None` while it is ready.
pub fn tier_message(observed: &Observed<'_>, index: usize) -> Option<String> {
    let tier = observed.tiers.get(index)?;
    if tier.ready() > 0 {
        return None;
    }
    let (model, plan) = planned(observed).ok()?;
    if model.suspended {
        return Some("suspended".to_owned());
    }
    if plan.tiers.get(index).is_some_and(|planned| planned.stands_by) {
        let standby = model.tiers.get(index).map(|tier| tier.standby).unwrap_or_default();
        let weights = match (standby, plan.tiers.get(index)) {
            (Standby::Warm, Some(planned)) => format!(", {},", keeping_message(tier, planned)),
            _ => String::new(),
        };
        return Some(format!("it stands by ({standby:?}){weights} and starts when no tier before it serves"));
    }
    if let Some(stopped) = stopped_message(model, plan, index) {
        return Some(stopped);
    }
    if let Some((pod, failure)) = tier.current().find_map(|pod| Some((pod, pod.failure.as_ref()?))) {
        return Some(advised(observed, (tier, pod, failure)).message);
    }
    if let Some(problem) = placement_problem(model, plan, index, tier) {
        return Some(problem.message);
    }
    if let Some(waiting) = tier.current().find_map(|pod| pod.waiting.clone()) {
        return Some(waiting);
    }
    let phase = tier.current().find_map(|pod| pod.engine.as_ref()).map(|engine| engine.phase.clone());
    Some(match phase {
        Some(phase) => format!("its engine is {phase}"),
        None if tier.current().next().is_none() => {
            ended_message(tier).unwrap_or_else(|| "it has no pod yet".to_owned())
        }
        None => match tier.current().find(|pod| pod.node.is_some() && pod.address.is_none()) {
            Some(pod) => format!(
                "its pod is being made on its node: where that lasts, `kubectl describe pod {}` tells what it waits for",
                pod.name
            ),
            None => "its pod is not ready".to_owned(),
        },
    })
}
