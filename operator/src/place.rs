//! Which tiers get cards, and what keeps the others from theirs.
//!
//! Which node a pod lands on is the scheduler's decision; here is decided how many pods may ask it.

use std::collections::BTreeMap;

use atlas_crds::{
    GpuProfile,
    model::Standby,
    names,
    profile::{Allocation, Backend},
};
use atlas_operator_core::{
    inventory::{NodeOffer, NodeRefusal, NodeView, describe_match, node_offers},
    tiers::{CardClaim, allot_cards},
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    observe::TierPods,
    plan::{Placement, PlanInputs},
    validate::ValidatedModel,
};

/// Refused nodes that a model's condition names.
const MAX_TOLD: usize = 8;

/// Where one tier runs.
pub struct Placed {
    /// Pods that get a card now.
    pub replicas: i32,
    /// What keeps the others from one.
    pub placement: Placement,
    /// Whether the cards do not suffice for what models want of them.
    pub contended: bool,
    /// Which of the profile's nodes take no new pod, and why.
    pub refused: Vec<String>,
}

/// Places the pods that one tier wants.
pub fn place(
    model: &ValidatedModel,
    index: usize,
    profile: &GpuProfile,
    wanted: i32,
    inputs: &PlanInputs<'_>,
) -> Placed {
    let nodes = inputs.nodes.iter().map(AsRef::as_ref);
    let offers = node_offers(profile, nodes, inputs.others);
    let refused = refused_nodes(&offers);
    let placed =
        |replicas, placement| Placed { replicas, placement, contended: false, refused: refused.clone() };
    // The scheduler finds the cards of claims, on nodes without labels too, and says where there is none.
    if profile.spec.backend == Backend::Hip && profile.spec.allocation == Allocation::ResourceClaim {
        return placed(wanted, Placement::Possible);
    }
    if offers.is_empty() {
        return placed(wanted, Placement::NoMatchingNode(describe_match(profile)));
    }
    if profile.spec.backend == Backend::Cpu {
        let none = offers.iter().all(|offer| !offer.refusals.is_empty());
        return placed(wanted, if none { Placement::NodesRefused } else { Placement::Possible });
    }
    let Claims { mut claims, tiers, held } = claims_on(profile, inputs, (model, index, wanted));
    let occupied: i32 = held.values().sum();
    let free: i32 = offers.iter().map(|offer| offer.free(held.get(&offer.node).copied().unwrap_or(0))).sum();
    // Where nothing is to be had, pods wait in the scheduler's queue for what the labels promise.
    let exhausted = occupied + free == 0;
    let capacity =
        if exhausted { offers.iter().map(|offer| offer.matched.cards).sum() } else { occupied + free };
    // Where there are cards for all, nobody has to ask what each was given before.
    if claims.iter().map(|claim| claim.wanted).sum::<i32>() > capacity {
        for (claim, tier) in claims.iter_mut().zip(tiers) {
            let (_, namespace, name, _) = &claim.age;
            claim.granted = (inputs.granted)(namespace, &names::tier_object_name(name, tier));
        }
    }
    let given = allot_cards(capacity, &claims);
    let contended = claims.iter().zip(&given).any(|(claim, given)| *given < claim.wanted);
    let placed = |replicas, placement| Placed { contended, ..placed(replicas, placement) };
    let mine = claims.iter().position(|claim| {
        claim.age.1 == model.namespace && claim.age.2 == model.name && claim.age.3 == index
    });
    // A model that the store does not hold yet waits for the event that brings it.
    let replicas = mine.map_or(0, |at| given[at]).min(wanted);
    if replicas == wanted {
        return placed(replicas, if exhausted { exhaustion(&offers) } else { Placement::Possible });
    }
    let mut holders: Vec<String> = claims
        .iter()
        .zip(&given)
        .filter(|(_, given)| **given > 0)
        .filter_map(|(claim, _)| {
            let (_, namespace, name, tier) = &claim.age;
            if *namespace != model.namespace || *name != model.name {
                return Some(format!("{namespace}/{name}"));
            }
            let own = model.tiers.get(*tier).filter(|_| *tier != index)?;
            Some(format!("this model's tier {}", own.name))
        })
        .collect();
    holders.dedup();
    holders.extend(other_holders(&offers, inputs, profile));
    let placement = match (holders.is_empty(), refused.is_empty()) {
        (false, _) => Placement::CardInUse(holders),
        (true, false) => Placement::NodesRefused,
        (true, true) => Placement::TooFewCards(capacity),
    };
    placed(replicas, placement)
}

/// The nodes that take no pod, each with its reasons; a few of many, as far as a message is read.
fn refused_nodes(offers: &[NodeOffer]) -> Vec<String> {
    let mut refused: Vec<String> = offers.iter().filter_map(NodeOffer::describe).collect();
    if refused.len() > MAX_TOLD {
        let more = refused.len() - MAX_TOLD;
        refused.truncate(MAX_TOLD);
        refused.push(format!("{more} more nodes are refused: see status.nodes of the GpuProfile"));
    }
    refused
}

/// Why no node takes a pod, where one word says it for all of them.
fn exhaustion(offers: &[NodeOffer]) -> Placement {
    let mut pods = Vec::new();
    let (mut none_offered, mut all_held) = (true, true);
    for refusals in offers.iter().map(|offer| offer.refusals.as_slice()) {
        none_offered &= matches!(refusals, [NodeRefusal::NoneOffered { .. }]);
        match refusals {
            [NodeRefusal::HeldByOthers { pods: more, .. }] => {
                pods.extend(more.iter().map(|pod| format!("pod {pod}")));
            }
            _ => all_held = false,
        }
    }
    match (none_offered, all_held) {
        (true, _) => Placement::NoCardOffered,
        (false, true) => Placement::CardInUse(pods),
        (false, false) => Placement::NodesRefused,
    }
}

fn other_holders(offers: &[NodeOffer], inputs: &PlanInputs<'_>, profile: &GpuProfile) -> Vec<String> {
    offers
        .iter()
        .filter(|offer| offer.held_by_others > 0)
        .flat_map(|offer| inputs.others.held(&offer.node, &profile.spec.resource_name).1)
        .map(|pod| format!("pod {pod}"))
        .collect()
}

/// Who wants cards of a profile, and how many of each node Atlas' own pods hold.
struct Claims<'a> {
    claims: Vec<CardClaim>,
    /// Name of each claim's tier.
    tiers: Vec<&'a str>,
    held: BTreeMap<String, i32>,
}

fn claims_on<'a>(
    profile: &GpuProfile,
    inputs: &PlanInputs<'a>,
    (own, own_index, wanted): (&ValidatedModel, usize, i32),
) -> Claims<'a> {
    let mut claims = Vec::new();
    let mut tiers = Vec::new();
    let mut held = BTreeMap::new();
    for model in inputs.models.iter().filter(|model| model.metadata.deletion_timestamp.is_none()) {
        let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
        let created = model.creation_timestamp().map_or(0, |time| time.0.as_second());
        for (index, tier) in
            model.spec.tiers.iter().enumerate().filter(|(_, tier)| tier.gpu_profile == profile.name_any())
        {
            let replicas = if index == 0 { model.spec.replicas } else { tier.replicas.unwrap_or(1) };
            let mut holding = 0;
            let pods = inputs.pods.of(&namespace, &name).iter();
            let pods = pods.filter(|pod| pod.labels().get(names::LABEL_TIER) == Some(&tier.name));
            for node in pods.filter_map(|pod| held_node(pod, inputs.nodes)) {
                holding += 1;
                *held.entry(node.to_owned()).or_insert(0) += 1;
            }
            // What holds a card keeps it; what could not load wants none.
            // A tier that stands by wants what it was given, until it is asked for itself.
            let asked = own.namespace == namespace && own.name == name && own_index == index;
            let replicas = match (asked, index > 0 && tier.standby != Standby::Hot) {
                (true, _) => wanted,
                (false, true) => (inputs.granted)(&namespace, &names::tier_object_name(&name, &tier.name)),
                (false, false) => replicas,
            };
            let wants = !model.spec.suspend && (holding > 0 || !(inputs.refused)(model, index, profile));
            tiers.push(tier.name.as_str());
            claims.push(CardClaim {
                age: (created, namespace.clone(), name.clone(), index),
                wanted: if wants { replicas } else { 0 },
                holding,
                granted: 0,
            });
        }
    }
    Claims { claims, tiers, held }
}

/// The node whose card a pod holds. A pod that is being deleted holds it until its node has stopped it; on a node that
/// does not answer nobody can tell, and what was there is given up.
fn held_node<'a>(pod: &'a Pod, nodes: &[std::sync::Arc<NodeView>]) -> Option<&'a str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let going = pod.metadata.deletion_timestamp.is_some();
    let lost = || !nodes.iter().any(|view| view.name == node && view.ready);
    (TierPods::occupies_card(pod) && !(going && lost())).then_some(node)
}
