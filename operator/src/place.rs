//! Which tiers get cards, and what keeps the others from theirs.
//!
//! Which node a pod lands on is the scheduler's decision; here is decided how many pods may ask it.
//! What is the same for every model of a profile is worked out once ([`Ground`], [`Shares`]) and kept by the stores.

mod ground;
mod shares;

pub use ground::Ground;
pub use shares::{Concerned, Counted, Shares, World, concerned, most_wanted};

use atlas_crds::{
    GpuProfile,
    profile::{Allocation, Backend},
};
use atlas_operator_core::{
    inventory::{OtherWorkloads, describe_match},
    tiers::allot_cards,
};
use kube::ResourceExt;

use crate::{
    plan::{Placement, PlanInputs},
    validate::ValidatedModel,
};

/// Where one tier runs.
pub struct Placed {
    /// Pods that get a card now.
    pub replicas: i32,
    /// What keeps the others from one.
    pub placement: Placement,
    /// Whether the cards do not suffice for what models want of them.
    pub contended: bool,
}

/// Places the pods that one tier wants.
pub fn place(
    model: &ValidatedModel,
    index: usize,
    profile: &GpuProfile,
    wanted: i32,
    ground: &Ground,
    inputs: &PlanInputs<'_>,
) -> Placed {
    let placed = |replicas, placement| Placed { replicas, placement, contended: false };
    if !is_counted(profile, ground) {
        return placed(wanted, base_placement(profile, ground, &Shares::Ample));
    }
    let shares = (inputs.shares)(profile, ground);
    let Shares::Counted(counted) = &*shares else { return placed(wanted, Placement::Possible) };
    let is_own = |namespace: &str, name: &str| namespace == model.namespace && name == model.name;
    let mine =
        counted.claims.iter().position(|claim| is_own(&claim.age.1, &claim.age.2) && claim.age.3 == index);
    // A model that the store does not hold yet waits for the event that brings it.
    let Some(mine) = mine else { return placed(0, Placement::TooFewCards(counted.capacity)) };
    let own_wanted = if counted.may_want[mine] { wanted } else { 0 };
    // What this very reconcile knows of its own tier: that it does not fit, or that it has to stand in.
    let (mut claims, mut given) = (std::borrow::Cow::Borrowed(&counted.claims), &counted.given);
    let anew;
    if claims[mine].wanted != own_wanted {
        claims.to_mut()[mine].wanted = own_wanted;
        anew = allot_cards(counted.capacity, &claims);
        given = &anew;
    }
    let contended = claims.iter().zip(given).any(|(claim, given)| *given < claim.wanted);
    let placed = |replicas, placement| Placed { replicas, placement, contended };
    let replicas = given[mine].min(wanted);
    if replicas == wanted {
        return placed(replicas, base_placement(profile, ground, &shares));
    }
    let mut holders: Vec<String> = claims
        .iter()
        .zip(given)
        .filter(|(_, given)| **given > 0)
        .filter_map(|(claim, _)| {
            let (_, namespace, name, tier) = &claim.age;
            if !is_own(namespace, name) {
                return Some(format!("{namespace}/{name}"));
            }
            let own = model.tiers.get(*tier).filter(|_| *tier != index)?;
            Some(format!("this model's tier {}", own.name))
        })
        .collect();
    holders.dedup();
    holders.extend(other_holders(ground, inputs.others, profile));
    let placement = match (holders.is_empty(), ground.refused.is_empty()) {
        (false, _) => Placement::CardInUse(holders),
        (true, false) => Placement::NodesRefused,
        (true, true) => Placement::TooFewCards(counted.capacity),
    };
    placed(replicas, placement)
}

/// Whether the cards of a profile are counted out to those who want them.
///
/// The scheduler finds the cards of claims, on nodes without labels too, and says where there is none; and any number
/// of models share a processor.
fn is_counted(profile: &GpuProfile, ground: &Ground) -> bool {
    profile.spec.backend == Backend::Hip
        && profile.spec.allocation != Allocation::ResourceClaim
        && !ground.offers.is_empty()
}

/// What is said of a tier that gets everything that it wants.
fn base_placement(profile: &GpuProfile, ground: &Ground, shares: &Shares) -> Placement {
    if profile.spec.backend == Backend::Hip && profile.spec.allocation == Allocation::ResourceClaim {
        return Placement::Possible;
    }
    if ground.offers.is_empty() {
        return Placement::NoMatchingNode(describe_match(profile));
    }
    if profile.spec.backend == Backend::Cpu {
        let none = ground.offers.iter().all(|offer| !offer.refusals.is_empty());
        return if none { Placement::NodesRefused } else { Placement::Possible };
    }
    match shares {
        Shares::Counted(Counted { exhausted: true, .. }) => ground.exhaustion(),
        Shares::Counted(_) | Shares::Ample => Placement::Possible,
    }
}

fn other_holders(ground: &Ground, others: &OtherWorkloads, profile: &GpuProfile) -> Vec<String> {
    ground
        .offers
        .iter()
        .filter(|offer| offer.held_by_others > 0)
        .flat_map(|offer| others.held(&offer.node, &profile.spec.resource_name).1)
        .map(|pod| format!("pod {pod}"))
        .collect()
}

/// Whether a model names a profile in a tier.
#[must_use]
pub fn names_profile(model: &atlas_crds::AtlasModel, profile: &GpuProfile) -> bool {
    let name = profile.name_any();
    model.spec.tiers.iter().any(|tier| tier.gpu_profile == name)
}
