//! Where each tier may run, how many cards it gets, and whether a change of it may roll now.
//!
//! After this stage nobody reads nodes. Which node a pod lands on is the scheduler's decision, not ours.

use std::{sync::Arc, time::Duration};

use atlas_crds::{
    GpuProfile,
    model::{RolloutStrategy, Standby},
};
use atlas_operator_core::{
    inventory::{NodeRefusal, OtherWorkloads},
    tiers::{
        Admission, Before, Failure, HEADER_PATIENCE, RolloutStep, Standing, TierRollout, Traffic, Wait,
        admit, plan_rollout, wants_standby,
    },
};

use crate::{
    drain::last_may_go,
    fit::TierVram,
    observe::TierPods,
    place::{Ground, Placed, Shares, place},
    probe::GatewayModel,
    stores::Nodes,
    validate::{ValidatedModel, ValidatedTier},
};

/// Nodes that one tier's weights are kept on, at most: on more, each is fetched when a pod comes.
const MAX_WEIGHTS: i32 = 64;

/// What a plan is made from besides the model.
pub struct PlanInputs<'a> {
    /// What the nodes of a profile offer.
    pub ground: &'a dyn Fn(&GpuProfile) -> Arc<Ground>,
    /// How its cards are shared out.
    pub shares: &'a dyn Fn(&GpuProfile, &Ground) -> Arc<Shares>,
    /// Every node.
    pub nodes: &'a Nodes,
    /// This model's pods, in the order of its tiers.
    pub pods: &'a [TierPods],
    /// What pods of others hold.
    pub others: &'a OtherWorkloads,
    /// This model's Deployments, in the order of its tiers.
    pub rollouts: &'a [TierRollout],
    /// How they stand besides.
    pub states: &'a [TierState],
    /// Where the gateways send requests.
    pub word: Word,
    /// What its tiers need of their cards.
    pub vram: Vec<TierVram>,
}

/// How a tier stands, as far as its Deployment does not say.
#[derive(Debug, Clone, Default)]
pub struct TierState {
    /// Whether it asks for pods already.
    pub started: bool,
    /// Whether a revision of it was good once.
    pub proven: bool,
    /// Whether a pod of it failed or finds no node.
    pub troubled: bool,
    /// The change that was taken back.
    pub taken_back: Option<Failure>,
}

/// Where the gateways send requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// No gateway says.
    Untold,
    /// Nowhere: nothing serves.
    Nowhere,
    /// Nowhere yet: pods of the tier of this place are ready, and a gateway has not judged them.
    NotYet(usize),
    /// To the tier of this place.
    Tier(usize),
}

impl Word {
    /// What the gateways say; where they differ, the later tier is the news.
    ///
    /// A pod that has just become ready is not lost because the gateways have not heard of it or not asked it yet.
    #[must_use]
    pub fn of(gateways: &[GatewayModel], tiers: &[TierPods]) -> Self {
        if gateways.is_empty() {
            return Self::Untold;
        }
        let index = |name: &str| tiers.iter().position(|tier| tier.tier == name);
        let active = gateways.iter().filter_map(|gateway| index(gateway.active_tier.as_deref()?)).max();
        if let Some(active) = active {
            return Self::Tier(active);
        }
        let endpoints = gateways.iter().flat_map(|gateway| &gateway.endpoints);
        let unjudged: Vec<&str> = endpoints
            .filter(|endpoint| !endpoint.is_judged())
            .map(|endpoint| endpoint.tier.as_str())
            .collect();
        let waits = |tier: &TierPods| tier.ready() > 0 && unjudged.contains(&tier.tier.as_str());
        tiers.iter().position(waits).map_or(Self::Nowhere, Self::NotYet)
    }

    fn seen_from(self, index: usize) -> Traffic {
        match self {
            Self::NotYet(starts) if starts < index => Traffic::Untold,
            Self::Untold => Traffic::Untold,
            Self::Nowhere | Self::NotYet(_) => Traffic::Nowhere,
            Self::Tier(active) if active < index => Traffic::Before,
            Self::Tier(_) => Traffic::Here,
        }
    }
}

/// What happens to each tier, in the order of the specification.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The tiers.
    pub tiers: Vec<TierPlan>,
    /// Whether an eviction may take the last engine, since no other can be made first.
    pub last_may_go: bool,
}

impl Plan {
    /// How long headers that are being read are still waited for; `None` where none is, or no longer.
    ///
    /// Only the end of the wait needs a clock: a header that comes asks for a reconcile itself.
    #[must_use]
    pub fn header_patience(&self) -> Option<Duration> {
        let left = self.tiers.iter().filter_map(|tier| match tier.vram {
            TierVram::Reading(since) => HEADER_PATIENCE.checked_sub(since).filter(|left| !left.is_zero()),
            TierVram::Unread(_) | TierVram::Planned(_) | TierVram::Reported(_) => None,
        });
        left.min()
    }
}

/// What happens to one tier.
#[derive(Debug, Clone, PartialEq)]
pub struct TierPlan {
    /// Pods that the specification wants.
    pub wanted: i32,
    /// Pods that get a card now.
    pub replicas: i32,
    /// Where it can run.
    pub placement: Placement,
    /// Whether the cards of its profile do not suffice for what models want of them.
    pub contended: bool,
    /// Which of its nodes take no new pod, and why.
    pub refused: Vec<String>,
    /// Why its nodes may hand out another card than its profile's.
    pub ambiguities: Vec<String>,
    /// What it needs of its card.
    pub vram: TierVram,
    /// What that means for its pods.
    pub admission: Admission,
    /// Whether its wanted pod template is applied.
    pub step: RolloutStep,
    /// The change that was taken back.
    pub taken_back: Option<Failure>,
    /// Whether it waits, without pods, for the tiers before it to be lost.
    pub stands_by: bool,
    /// Pods that keep its weights on their nodes.
    pub weights: i32,
}

/// Where a tier can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// There are nodes, and cards enough.
    Possible,
    /// No node carries the card: the labels that were looked for.
    NoMatchingNode(String),
    /// Nodes carry the labels, but none offers a card.
    NoCardOffered,
    /// Nodes carry the card, but none takes a new pod.
    NodesRefused,
    /// Others hold the cards: `NAMESPACE/NAME` of each model, or of each pod of another workload.
    CardInUse(Vec<String>),
    /// There are only so many cards, and this tier has them.
    TooFewCards(i32),
}

/// Plans every tier.
#[must_use]
pub fn plan(model: &ValidatedModel, inputs: &PlanInputs<'_>) -> Plan {
    let admissions: Vec<Admission> = inputs
        .rollouts
        .iter()
        .zip(inputs.states)
        .zip(&inputs.vram)
        .map(|((rollout, state), vram)| {
            // The last good revision has proven that it fits.
            if state.taken_back.is_some() {
                return Admission::Run;
            }
            let TierRollout { changed, ready, .. } = *rollout;
            admit(vram.fit(), Standing { started: state.started, changed, ready })
        })
        .collect();
    // A change that does not fit holds nobody else's.
    let mut rollouts = inputs.rollouts.to_vec();
    for (rollout, admission) in rollouts.iter_mut().zip(&admissions) {
        rollout.changed &= *admission != Admission::Keep;
    }
    let steps = plan_steps(model, inputs, &rollouts, &admissions);
    let mut tiers: Vec<TierPlan> = Vec::with_capacity(model.tiers.len());
    for (index, (step, admission)) in steps.into_iter().zip(admissions).enumerate() {
        let (Some(tier), Some(state), Some(vram)) =
            (model.tiers.get(index), inputs.states.get(index), inputs.vram.get(index))
        else {
            continue;
        };
        let stands_by = !model.suspended
            && tier.standby != Standby::Hot
            && model.pinned.as_ref() != Some(&tier.name)
            && !wants_standby(
                look_before(model, &tiers, &rollouts, inputs),
                inputs.word.seen_from(index),
                state.started,
            );
        let wanted = if model.suspended || stands_by { 0 } else { tier.replicas };
        let stopped = admission == Admission::Stop;
        let ground = (inputs.ground)(&tier.profile);
        let Placed { replicas, placement, contended } =
            place(model, index, &tier.profile, if stopped { 0 } else { wanted }, &ground, inputs);
        tiers.push(TierPlan {
            wanted,
            replicas,
            placement,
            contended,
            refused: ground.refused.clone(),
            ambiguities: ground.ambiguities.clone(),
            vram: vram.clone(),
            admission,
            step,
            taken_back: state.taken_back.clone(),
            stands_by,
            weights: count_weights(model, tier, admission, stands_by, &ground),
        });
    }
    let wanted = tiers.iter().map(|tier| tier.replicas).fold(0, i32::saturating_add);
    let last_may_go = last_may_go(inputs.pods.iter().flat_map(|tier| &tier.pods), wanted, inputs.nodes);
    Plan { tiers, last_may_go }
}

/// Pods that keep a warm tier's weights: one a node of its profile, which stay while the tier runs, so that a node that
/// comes later has them too. A claim may be mounted on one node alone, and gives way to the tier's engine.
fn count_weights(
    model: &ValidatedModel,
    tier: &ValidatedTier,
    admission: Admission,
    stands_by: bool,
    ground: &Ground,
) -> i32 {
    if tier.standby != Standby::Warm || model.suspended || admission == Admission::Stop {
        return 0;
    }
    if tier.profile.spec.model_cache.claim.is_some() {
        return i32::from(stands_by);
    }
    let keeps =
        ground.offers.iter().filter(|node| !node.refusals.iter().any(NodeRefusal::keeps_every_pod_away));
    i32::try_from(keeps.count()).unwrap_or(i32::MAX).clamp(1, MAX_WEIGHTS)
}

/// Which changes are applied now.
fn plan_steps(
    model: &ValidatedModel,
    inputs: &PlanInputs<'_>,
    rollouts: &[TierRollout],
    admissions: &[Admission],
) -> Vec<RolloutStep> {
    // What an edit broke on one tier it may break on the next.
    let broken = model.tiers.iter().zip(inputs.states).find(|(_, state)| {
        state.taken_back.as_ref().is_some_and(|failure| failure.generation == model.generation)
    });
    plan_rollout(model.strategy, rollouts)
        .into_iter()
        .zip(rollouts)
        .zip(admissions.iter().zip(inputs.states))
        .map(|((step, rollout), (admission, state))| match broken {
            _ if *admission == Admission::Keep => RolloutStep::Hold(Wait::DoesNotFit),
            _ if state.taken_back.is_some() => RolloutStep::Apply,
            Some((tier, _)) if rollout.changed && rollout.ready => {
                RolloutStep::Hold(Wait::TakenBack(tier.name.clone()))
            }
            _ => step,
        })
        .collect()
}

/// What the tiers planned so far mean for the one that comes after them.
fn look_before(
    model: &ValidatedModel,
    planned: &[TierPlan],
    rollouts: &[TierRollout],
    inputs: &PlanInputs<'_>,
) -> Before {
    let shifts = model.strategy == RolloutStrategy::ShiftThenRecreate;
    let mut before = Before::default();
    for ((tier, rollout), state) in planned.iter().zip(rollouts).zip(inputs.states) {
        before.ready |= rollout.ready;
        let waits = matches!(&tier.step, RolloutStep::Hold(Wait::TakenBack(_)));
        before.changes |=
            shifts && state.proven && tier.replicas > 0 && !waits && (rollout.changed || rollout.rolling);
        before.starts |= !state.proven
            && !state.troubled
            && tier.wanted > 0
            && tier.replicas + i32::from(matches!(tier.vram, TierVram::Reading(_))) > 0
            && tier.placement == Placement::Possible;
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::PodView;
    use serde_json::json;

    #[test]
    fn what_no_gateway_has_judged_is_not_lost() {
        // One word a tier: how many of its pods Kubernetes calls ready. One gateway a line: its active tier, and what it
        // says of each endpoint it knows.
        type Said<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)]);
        let check = |ready: [usize; 3], gateways: &[Said<'_>], expected: Word| {
            let pod = || PodView { ready: true, ..PodView::default() };
            let tiers: Vec<TierPods> = ["a", "b", "c"]
                .into_iter()
                .zip(ready)
                .map(|(tier, ready)| TierPods {
                    tier: tier.into(),
                    pods: (0..ready).map(|_| pod()).collect(),
                    ..TierPods::default()
                })
                .collect();
            let gateways: Vec<GatewayModel> = gateways
                .iter()
                .map(|(active, endpoints)| {
                    let endpoints: Vec<_> = endpoints
                        .iter()
                        .map(|(tier, says)| match *says {
                            "Unknown" | "Healthy" => json!({"tier": tier, "health": says}),
                            cause => json!({"tier": tier, "health": "Unhealthy", "cause": cause}),
                        })
                        .collect();
                    let said = json!({"model": "m", "activeTier": active, "endpoints": endpoints});
                    serde_json::from_value(said).unwrap()
                })
                .collect();
            assert_eq!(Word::of(&gateways, &tiers), expected, "{ready:?} {gateways:?}");
        };
        check([1, 0, 0], &[], Word::Untold);
        check([1, 0, 0], &[(None, &[])], Word::Nowhere);
        // It has just become ready: the gateway has not asked it, or not heard of it, or one of two has not.
        check([1, 0, 0], &[(None, &[("a", "Unknown")])], Word::NotYet(0));
        check([1, 0, 0], &[(None, &[("a", "PodNotReady")])], Word::NotYet(0));
        check([1, 0, 0], &[(None, &[("a", "Silent")]), (None, &[("a", "Unknown")])], Word::NotYet(0));
        // Kubernetes says the same as the gateway, or the gateway has found out for itself.
        check([0, 0, 0], &[(None, &[("a", "PodNotReady")])], Word::Nowhere);
        check([1, 0, 0], &[(None, &[("a", "Silent")])], Word::Nowhere);
        check([1, 0, 0], &[(None, &[("a", "EngineNotReady")])], Word::Nowhere);
        // One lost, the next just started: that one is waited for, and the third is not started.
        check([1, 1, 0], &[(None, &[("a", "Silent"), ("b", "Unknown")])], Word::NotYet(1));
        check([1, 1, 0], &[(Some("b"), &[("a", "Unknown")]), (None, &[])], Word::Tier(1));
        for (index, expected) in [(0, Traffic::Nowhere), (1, Traffic::Nowhere), (2, Traffic::Untold)] {
            assert_eq!(Word::NotYet(1).seen_from(index), expected, "{index}");
        }
    }
}
