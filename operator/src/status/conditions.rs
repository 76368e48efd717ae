//! Every condition of a model, recomputed each time from this one place.

use atlas_crds::{ModelCondition, model::Standby};
use atlas_operator_core::tiers::RolloutStep;
use kube::ResourceExt;

use super::{
    Observed, Verdict,
    cached::{keeping_message, model_cached},
    scheduled::{placement_problem, scheduled},
    vram::{memory_advice, stopped_message, vram_draft},
};
use crate::{
    observe::{Failure, PodView, TierPods},
    plan::Plan,
    probe::{GatewayEndpoint, HEALTHY},
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
        Verdict::Planned { .. } => draft(State::True, "Valid", "every field is acted on"),
    }
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
        failure.exit.reason(),
        format!(
            "tier {}: {said} (pod {}, exit code {}): {}",
            tier.tier,
            pod.name,
            failure.code,
            failure.exit.remedy()
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

fn serves(observed: &Observed<'_>, active: Option<usize>) -> Draft {
    if let Some(problem) = certificate_problem(observed)
        && observed.gateways.iter().all(|gateway| gateway.lets_nobody_in)
    {
        return draft(State::False, "CertificateUnusable", format!("no client is let in: {problem}"));
    }
    match active.and_then(|index| observed.tiers.get(index)) {
        Some(tier) => {
            let node =
                tier.current().find(|pod| pod.ready).and_then(|pod| pod.node.as_deref()).unwrap_or("-");
            draft(State::True, "Serving", format!("tier {} serves on node {node}", tier.tier))
        }
        None if matches!(&observed.verdict, Verdict::Planned { model, .. } if model.suspended) => {
            draft(State::False, "Suspended", "spec.suspend is true: set it to false to serve")
        }
        None => {
            let why: Vec<String> = observed
                .tiers
                .iter()
                .enumerate()
                .filter_map(|(index, tier)| {
                    let message = tier_message(observed, index)?;
                    // Messages that stand alone elsewhere name their tier already.
                    let named = message.starts_with("tier ");
                    Some(if named { message } else { format!("tier {}: {message}", tier.tier) })
                })
                .collect();
            draft(
                State::False,
                "NoTierServes",
                if why.is_empty() { "no tier serves".to_owned() } else { why.join("; ") },
            )
        }
    }
}

/// What is wrong with the certificate of the gateways, by the Secret's name.
fn certificate_problem(observed: &Observed<'_>) -> Option<String> {
    let problem = observed.gateways.iter().find_map(|gateway| gateway.certificate_problem.as_deref())?;
    // It is namespaced, so it has one.
    let namespace = observed.object.namespace().unwrap_or_default();
    Some(match observed.tls_secret {
        Some(secret) => format!("Secret {namespace}/{secret}: {problem}"),
        None => problem.to_owned(),
    })
}

fn degraded(observed: &Observed<'_>, active: Option<usize>) -> Draft {
    let problem = certificate_problem(observed).map(|problem| {
        let nobody = observed.gateways.iter().any(|gateway| gateway.lets_nobody_in);
        let so = if nobody { "gateways let nobody in" } else { "gateways go on with the last certificate" };
        format!("{so}: {problem}")
    });
    match (active, problem) {
        (Some(0) | None, Some(problem)) => draft(State::True, "CertificateUnusable", problem),
        (Some(0), None) => draft(State::False, "FirstTierServes", "the first tier serves"),
        (None, None) => draft(State::False, "NothingServes", "no tier serves: see condition Ready"),
        (Some(index), problem) => {
            let first = observed.tiers.first().map_or("", |tier| tier.tier.as_str());
            let pinned = match &observed.verdict {
                Verdict::Planned { model, .. } => model.pinned.is_some(),
                Verdict::Refused(_) => false,
            };
            let why = if pinned {
                "failover.mode is Pinned".to_owned()
            } else {
                tier_message(observed, 0).unwrap_or_else(|| waiting_message(observed))
            };
            // Nothing is said of a certificate that is well.
            let besides = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
            draft(
                State::True,
                "FallbackServing",
                format!("tier {} serves instead of {first}: {why}{besides}", observed.tiers[index].tier),
            )
        }
    }
}

/// Why the first tier does not serve although a pod of it is ready.
///
/// Kubernetes takes most of a minute to call a pod on a lost node unready; the gateways know within a second, so it is
/// their word that counts, and without it nothing is claimed.
fn waiting_message(observed: &Observed<'_>) -> String {
    let first = observed.tiers.first().map_or("", |tier| tier.tier.as_str());
    let seen: Vec<&GatewayEndpoint> = observed
        .gateways
        .iter()
        .flat_map(|gateway| &gateway.endpoints)
        .filter(|endpoint| endpoint.tier == first)
        .collect();
    let healthy = seen.iter().any(|endpoint| endpoint.health == HEALTHY);
    match seen.first() {
        None => "its pod is ready, but no gateway knows it".to_owned(),
        Some(_) if healthy => "it is healthy again and waits for failover.failbackAfter".to_owned(),
        Some(lost) => {
            let cause = lost.cause.as_deref().unwrap_or("it does not answer");
            format!("the gateways do not reach it: {cause}")
        }
    }
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
            format!("tier {} ({} of {} ready{phase})", tier.tier, tier.ready(), planned.replicas)
        })
        .collect();
    if !starting.is_empty() {
        return draft(State::True, "Starting", starting.join("; "));
    }
    draft(State::False, "Settled", "every tier is as the specification wants it")
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
        None if tier.current().next().is_none() => "it has no pod yet".to_owned(),
        None => "its pod is not ready".to_owned(),
    })
}
