//! How a profile's cards are shared out among all who want them: worked out once for everybody.
//!
//! Where there are cards for all, which is the rule, nobody is asked what it holds or was given before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use atlas_crds::{AtlasModel, GpuProfile, model::Standby, names};
use atlas_operator_core::tiers::{CardClaim, allot_cards};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{Ground, base_placement, names_profile};
use crate::{observe::TierPods, stores::Nodes};

/// A profile's cards, shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shares {
    /// There are cards for all.
    Ample,
    /// They are counted out.
    Counted(Counted),
}

/// Who gets how many cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Every tier that names the profile, with what it wants as far as others can know.
    pub claims: Vec<CardClaim>,
    /// Which of them may want a card at all: not those that are suspended, or are known not to fit.
    pub may_want: Vec<bool>,
    /// Cards for each.
    pub given: Vec<i32>,
    /// Cards that there are.
    pub capacity: i32,
    /// Whether no node takes a pod, and none holds one.
    pub exhausted: bool,
}

/// What shares are made from besides the nodes.
pub struct World<'a> {
    /// Every model.
    pub models: &'a [Arc<AtlasModel>],
    /// Every node.
    pub nodes: &'a Nodes,
    /// A model's engine pods.
    pub pods: &'a dyn Fn(&str, &str) -> Vec<Arc<Pod>>,
    /// Pods that a tier's Deployment asks for, by namespace and name.
    pub granted: &'a dyn Fn(&str, &str) -> i32,
    /// Whether a tier of any model, on a card of this profile, is known not to fit.
    pub refused: &'a dyn Fn(&AtlasModel, usize, &GpuProfile) -> bool,
}

impl Shares {
    /// Shares a profile's cards out.
    #[must_use]
    pub fn of(profile: &GpuProfile, ground: &Ground, world: &World<'_>) -> Self {
        let claimants = claimants(profile, world);
        let mut held: BTreeMap<&str, i32> = BTreeMap::new();
        for node in claimants.iter().flat_map(|claimant| &claimant.nodes) {
            *held.entry(node).or_insert(0) += 1;
        }
        let occupied: i32 = held.values().sum();
        let free = |offer: &atlas_operator_core::inventory::NodeOffer| {
            offer.free(held.get(offer.node.as_str()).copied().unwrap_or(0))
        };
        let free: i32 = ground.offers.iter().map(free).sum();
        // Where nothing is to be had, pods wait in the scheduler's queue for what the labels promise.
        let exhausted = occupied + free == 0;
        let capacity = if exhausted {
            ground.offers.iter().map(|offer| offer.matched.cards).sum()
        } else {
            occupied + free
        };
        let most: i32 = claimants.iter().map(|claimant| claimant.replicas).fold(0, i32::saturating_add);
        if !exhausted && most <= capacity {
            return Self::Ample;
        }
        let (claims, may_want): (Vec<_>, Vec<_>) =
            claimants.iter().map(|claimant| claimant.claim(profile, world)).unzip();
        let given = allot_cards(capacity, &claims);
        Self::Counted(Counted { claims, may_want, given, capacity, exhausted })
    }
}

/// Cards that the tiers of all models want at most, by profile.
#[must_use]
pub fn most_wanted(models: &[Arc<AtlasModel>]) -> HashMap<String, i32> {
    let mut most: HashMap<String, i32> = HashMap::new();
    for model in models.iter().filter(|model| model.metadata.deletion_timestamp.is_none()) {
        for (index, tier) in model.spec.tiers.iter().enumerate() {
            let replicas = wanted_at_most(model, index);
            match most.get_mut(&tier.gpu_profile) {
                Some(sum) => *sum = sum.saturating_add(replicas),
                None => {
                    most.insert(tier.gpu_profile.clone(), replicas);
                }
            }
        }
    }
    most
}

fn wanted_at_most(model: &AtlasModel, index: usize) -> i32 {
    match model.spec.tiers.get(index) {
        Some(_) if model.spec.suspend => 0,
        Some(_) if index == 0 => model.spec.replicas,
        Some(tier) => tier.replicas.unwrap_or(1),
        None => 0,
    }
}

/// A tier that names the profile.
struct Claimant<'a> {
    model: &'a AtlasModel,
    index: usize,
    /// Pods that it wants at most.
    replicas: i32,
    /// The nodes whose cards its pods hold, each as often as it holds one.
    nodes: Vec<String>,
}

fn claimants<'a>(profile: &GpuProfile, world: &World<'a>) -> Vec<Claimant<'a>> {
    let name = profile.name_any();
    let mut found = Vec::new();
    for model in world.models.iter().filter(|model| model.metadata.deletion_timestamp.is_none()) {
        if !names_profile(model, profile) {
            continue;
        }
        let pods = (world.pods)(model.metadata.namespace.as_deref().unwrap_or_default(), &model.name_any());
        for (index, tier) in model.spec.tiers.iter().enumerate().filter(|(_, tier)| tier.gpu_profile == name)
        {
            let pods = pods.iter().filter(|pod| pod.labels().get(names::LABEL_TIER) == Some(&tier.name));
            found.push(Claimant {
                model,
                index,
                replicas: wanted_at_most(model, index),
                nodes: pods.filter_map(|pod| held_node(pod, world.nodes)).map(str::to_owned).collect(),
            });
        }
    }
    found
}

impl Claimant<'_> {
    /// What it wants as far as others can know, and whether it may want anything.
    fn claim(&self, profile: &GpuProfile, world: &World<'_>) -> (CardClaim, bool) {
        let Self { model, index, replicas, nodes } = self;
        let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
        let tier = &model.spec.tiers[*index];
        let granted = (world.granted)(&namespace, &names::tier_object_name(&name, &tier.name));
        let holding = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
        // What holds a card keeps it; what could not load wants none.
        let may_want = !model.spec.suspend && (holding > 0 || !(world.refused)(model, *index, profile));
        // A tier that stands by wants what it was given, until it is asked for itself.
        let stands_by = *index > 0 && tier.standby != Standby::Hot;
        let wanted = if stands_by { granted } else { *replicas };
        let created = model.creation_timestamp().map_or(0, |time| time.0.as_second());
        let claim = CardClaim {
            age: (created, namespace, name, *index),
            wanted: if may_want { wanted } else { 0 },
            holding,
            granted,
        };
        (claim, may_want)
    }
}

/// The node whose card a pod holds. A pod that is being deleted holds it until its node has stopped it; on a node that
/// does not answer nobody can tell, and what was there is given up.
fn held_node<'a>(pod: &'a Pod, nodes: &Nodes) -> Option<&'a str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let going = pod.metadata.deletion_timestamp.is_some();
    let lost = || !nodes.get(node).is_some_and(|view| view.ready);
    (TierPods::occupies_card(pod) && !(going && lost())).then_some(node)
}

/// Whom a change of a profile's nodes concerns, besides those whose pods are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Every model that names the profile.
    Everybody,
    /// Those that get more or fewer cards, or still too few, by namespace and name.
    These(BTreeSet<(String, String)>),
}

/// Compares what was with what is.
#[must_use]
pub fn concerned(profile: &GpuProfile, before: (&Ground, &Shares), now: (&Ground, &Shares)) -> Concerned {
    let same = before.0.ambiguities == now.0.ambiguities
        && base_placement(profile, before.0, before.1) == base_placement(profile, now.0, now.1);
    if !same {
        return Concerned::Everybody;
    }
    // Who lacks cards is told who holds them, so it is concerned by whatever happens to them; who lacks none is not.
    let lacking = |shares: &Shares| -> BTreeSet<(String, String)> {
        let Shares::Counted(counted) = shares else { return BTreeSet::new() };
        let claims = counted.claims.iter().zip(&counted.given);
        let lacking = claims.filter(|(claim, given)| **given < claim.wanted);
        lacking.map(|(claim, _)| (claim.age.1.clone(), claim.age.2.clone())).collect()
    };
    Concerned::These([before.1, now.1].into_iter().flat_map(lacking).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_operator_core::inventory::{NodeView, OtherWorkloads};
    use serde_json::json;

    fn profile() -> GpuProfile {
        let spec = json!({
            "product": "P", "vram": "8Gi", "gfxTarget": "gfx1102", "match": {"vramClass": "8G", "computeUnits": 32},
        });
        let (group, version) = (names::GROUP, names::VERSION);
        let object = json!({"apiVersion": format!("{group}/{version}"), "kind": "GpuProfile", "metadata": {"name": "small"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn model(number: i64, replicas: i32) -> Arc<AtlasModel> {
        let tier = json!({"name": "only", "gpuProfile": "small", "model": {"source": "hf://a/b/c.gguf"}});
        let created = jiff::Timestamp::from_second(1000 + number).unwrap().to_string();
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "AtlasModel",
                "metadata": {"namespace": "ns", "name": format!("m{number}"), "creationTimestamp": created},
                "spec": {"replicas": replicas, "tiers": [tier]},
            }))
            .unwrap(),
        )
    }

    /// A node with a card; `cordoned` takes no new pod.
    fn node(name: &str, schedulable: bool) -> (String, Arc<NodeView>) {
        let cards = BTreeMap::from([("amd.com/gpu".to_owned(), 1)]);
        let labels = [("amd.com/gpu.vram", "8G"), ("amd.com/gpu.cu-count", "32")];
        let view = NodeView {
            name: name.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            capacity: cards.clone(),
            allocatable: cards,
            ready: true,
            schedulable,
            ..NodeView::default()
        };
        (name.to_owned(), Arc::new(view))
    }

    /// Shares of the only profile; `pods` are the model and node of each.
    fn share(models: &[Arc<AtlasModel>], nodes: &Nodes, pods: &[(&str, &str)]) -> (Ground, Shares) {
        let profile = profile();
        let ground = Ground::survey(&profile, &[&profile], nodes, &OtherWorkloads::default());
        let pods_of = |_: &str, model: &str| -> Vec<Arc<Pod>> {
            let own = pods.iter().filter(|(of, _)| *of == model);
            own.map(|(_, node)| {
                let metadata = json!({"labels": {names::LABEL_TIER: "only"}});
                Arc::new(
                    serde_json::from_value(
                        json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}}),
                    )
                    .unwrap(),
                )
            })
            .collect()
        };
        let world = World { models, nodes, pods: &pods_of, granted: &|_, _| 0, refused: &|_, _, _| false };
        let shares = Shares::of(&profile, &ground, &world);
        (ground, shares)
    }

    fn given(shares: &Shares) -> Option<Vec<i32>> {
        match shares {
            Shares::Ample => None,
            Shares::Counted(counted) => Some(counted.given.clone()),
        }
    }

    #[test]
    fn cards_are_counted_out_only_where_they_do_not_suffice() {
        let (a, b) = (node("a", true), node("b", true));
        let check = |replicas: &[i32],
                     nodes: &[&(String, Arc<NodeView>)],
                     pods: &[(&str, &str)],
                     expected: Option<&[i32]>| {
            let models: Vec<_> =
                replicas.iter().zip(1..).map(|(replicas, number)| model(number, *replicas)).collect();
            let nodes = nodes.iter().map(|node| (*node).clone()).collect();
            let (_, shares) = share(&models, &nodes, pods);
            assert_eq!(given(&shares).as_deref(), expected, "{replicas:?} {pods:?}");
        };
        let cordoned = node("b", false);
        check(&[1, 1], &[&a, &b], &[], None);
        check(&[1, 1], &[&a, &cordoned], &[], Some(&[1, 0]));
        // What runs on a cordoned node stays there, and nobody lacks a card.
        check(&[1, 1], &[&a, &cordoned], &[("m2", "b")], None);
        check(&[1, 1, 1], &[&a, &b], &[("m3", "a")], Some(&[1, 0, 1]));
        // Where nothing is to be had, pods wait for what the labels promise.
        check(&[1], &[&cordoned], &[], Some(&[1]));
        check(&[0], &[&a], &[], None);
    }

    #[test]
    fn a_change_of_a_node_concerns_whom_it_gives_or_takes_a_card() {
        let models = [model(1, 1), model(2, 1)];
        let (both, one) = (
            Nodes::from([node("a", true), node("b", true)]),
            Nodes::from([node("a", true), node("b", false)]),
        );
        let check = |before: &Nodes, now: &Nodes, pods: &[(&str, &str)], expected: Option<&[&str]>| {
            let (before, now) = (share(&models, before, pods), share(&models, now, pods));
            let expected = expected.map_or(Concerned::Everybody, |names| {
                Concerned::These(names.iter().map(|name| ("ns".to_owned(), (*name).to_owned())).collect())
            });
            assert_eq!(concerned(&profile(), (&before.0, &before.1), (&now.0, &now.1)), expected, "{pods:?}");
        };
        check(&both, &both, &[], Some(&[]));
        check(&both, &one, &[], Some(&["m2"]));
        check(&one, &both, &[("m1", "a")], Some(&["m2"]));
        check(&both, &one, &[("m1", "a"), ("m2", "b")], Some(&[]));
        check(&both, &Nodes::new(), &[], None);
    }
}
