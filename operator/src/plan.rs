//! Where each tier may run, how many cards it gets, and whether a change of it may roll now.
//!
//! After this stage nobody reads nodes. Which node a pod lands on is the scheduler's decision, not ours.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile, names, profile::Backend};
use atlas_operator_core::{
    inventory::{NodeView, describe_match, match_node, unambiguous_problems},
    tiers::{
        Admission, CardClaim, RolloutStep, Standing, TierRollout, Wait, admit, allot_cards, plan_rollout,
    },
};
use kube::ResourceExt;

use crate::{engine_pods::EnginePods, fit::TierVram, observe::TierPods, validate::ValidatedModel};

/// What a plan is made from besides the model.
pub struct PlanInputs<'a> {
    /// Every profile.
    pub profiles: &'a [Arc<GpuProfile>],
    /// Every node.
    pub nodes: &'a [Arc<NodeView>],
    /// Every model, this one too.
    pub models: &'a [Arc<AtlasModel>],
    /// Every engine pod.
    pub pods: &'a EnginePods,
    /// This model's Deployments, in the order of its tiers.
    pub rollouts: &'a [TierRollout],
    /// Which of them ask for pods already.
    pub started: &'a [bool],
    /// What its tiers need of their cards.
    pub vram: Vec<TierVram>,
    /// Whether a tier of any model, on a card of this profile, is known not to fit.
    pub refused: &'a dyn Fn(&AtlasModel, usize, &GpuProfile) -> bool,
}

/// What happens to each tier, in the order of the specification.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The tiers.
    pub tiers: Vec<TierPlan>,
}

impl Plan {
    /// Whether a tier has no pods only because its header is being read.
    #[must_use]
    pub fn waits_for_header(&self) -> bool {
        self.tiers.iter().any(|tier| {
            tier.admission == Admission::Stop && matches!(tier.vram, TierVram::Reading(_)) && tier.wanted > 0
        })
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
    /// Why its nodes may hand out another card than its profile's.
    pub ambiguities: Vec<String>,
    /// What it needs of its card.
    pub vram: TierVram,
    /// What that means for its pods.
    pub admission: Admission,
    /// Whether its wanted pod template is applied.
    pub step: RolloutStep,
}

/// Where a tier can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// There are nodes, and cards enough.
    Possible,
    /// No node carries the card: the labels that were looked for.
    NoMatchingNode(String),
    /// Nodes carry the labels, but none offers a card: their names.
    NoCardOffered(Vec<String>),
    /// Other models hold the cards: `NAMESPACE/NAME` of each.
    CardInUse(Vec<String>),
}

/// Plans every tier.
#[must_use]
pub fn plan(model: &ValidatedModel, inputs: &PlanInputs<'_>) -> Plan {
    let admissions: Vec<Admission> = inputs
        .rollouts
        .iter()
        .zip(inputs.started)
        .zip(&inputs.vram)
        .map(|((rollout, started), vram)| {
            let TierRollout { changed, ready, .. } = *rollout;
            admit(vram.fit(), Standing { started: *started, changed, ready })
        })
        .collect();
    // A change that does not fit holds nobody else's.
    let mut rollouts = inputs.rollouts.to_vec();
    for (rollout, admission) in rollouts.iter_mut().zip(&admissions) {
        rollout.changed &= *admission != Admission::Keep;
    }
    let steps = plan_rollout(model.strategy, &rollouts);
    let tiers = model
        .tiers
        .iter()
        .zip(steps)
        .zip(admissions)
        .zip(&inputs.vram)
        .enumerate()
        .map(|(index, (((tier, step), admission), vram))| {
            let wanted = if model.suspended { 0 } else { tier.replicas };
            let stopped = admission == Admission::Stop;
            let (replicas, placement, contended) =
                place(model, index, &tier.profile, if stopped { 0 } else { wanted }, inputs);
            TierPlan {
                wanted,
                replicas,
                placement,
                contended,
                ambiguities: ambiguities(&tier.profile, inputs),
                vram: vram.clone(),
                admission,
                step: if admission == Admission::Keep { RolloutStep::Hold(Wait::DoesNotFit) } else { step },
            }
        })
        .collect();
    Plan { tiers }
}

fn ambiguities(profile: &GpuProfile, inputs: &PlanInputs<'_>) -> Vec<String> {
    let profiles: Vec<&GpuProfile> = inputs.profiles.iter().map(AsRef::as_ref).collect();
    let nodes: Vec<&NodeView> = inputs.nodes.iter().map(AsRef::as_ref).collect();
    unambiguous_problems(profile, &profiles, &nodes)
}

fn place(
    model: &ValidatedModel,
    index: usize,
    profile: &GpuProfile,
    wanted: i32,
    inputs: &PlanInputs<'_>,
) -> (i32, Placement, bool) {
    let matched: Vec<_> =
        inputs.nodes.iter().filter_map(|node| Some((node, match_node(profile, node)?))).collect();
    if matched.is_empty() {
        return (wanted, Placement::NoMatchingNode(describe_match(profile)), false);
    }
    if profile.spec.backend == Backend::Cpu {
        return (wanted, Placement::Possible, false);
    }
    let capacity: i32 = matched.iter().map(|(_, m)| m.cards).sum();
    if capacity == 0 {
        return (
            wanted,
            Placement::NoCardOffered(matched.iter().map(|(node, _)| node.name.clone()).collect()),
            false,
        );
    }
    let claims = claims_on(profile, inputs);
    let given = allot_cards(capacity, &claims);
    let contended = claims.iter().zip(&given).any(|(claim, given)| *given < claim.wanted);
    let mine = claims.iter().position(|claim| {
        claim.age.1 == model.namespace && claim.age.2 == model.name && claim.age.3 == index
    });
    // A model that the store does not hold yet waits for the event that brings it.
    let replicas = mine.map_or(0, |at| given[at]).min(wanted);
    if replicas == wanted {
        return (replicas, Placement::Possible, contended);
    }
    let mut holders: Vec<String> = claims
        .iter()
        .zip(&given)
        .filter(|(claim, given)| **given > 0 && (claim.age.1 != model.namespace || claim.age.2 != model.name))
        .map(|(claim, _)| format!("{}/{}", claim.age.1, claim.age.2))
        .collect();
    holders.dedup();
    (replicas, Placement::CardInUse(holders), contended)
}

fn claims_on(profile: &GpuProfile, inputs: &PlanInputs<'_>) -> Vec<CardClaim> {
    let mut claims = Vec::new();
    for model in inputs.models.iter().filter(|model| model.metadata.deletion_timestamp.is_none()) {
        let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
        let created = model.creation_timestamp().map_or(0, |time| time.0.as_second());
        for (index, tier) in
            model.spec.tiers.iter().enumerate().filter(|(_, tier)| tier.gpu_profile == profile.name_any())
        {
            let replicas = if index == 0 { model.spec.replicas } else { tier.replicas.unwrap_or(1) };
            let holding = inputs
                .pods
                .of(&namespace, &name)
                .iter()
                .filter(|pod| {
                    pod.labels().get(names::LABEL_TIER) == Some(&tier.name) && TierPods::holds_card(pod)
                })
                .count();
            // What holds a card keeps it; what could not load wants none.
            let wants = !model.spec.suspend && (holding > 0 || !(inputs.refused)(model, index, profile));
            claims.push(CardClaim {
                age: (created, namespace.clone(), name.clone(), index),
                wanted: if wants { replicas } else { 0 },
                holding: i32::try_from(holding).unwrap_or(i32::MAX),
            });
        }
    }
    claims
}
