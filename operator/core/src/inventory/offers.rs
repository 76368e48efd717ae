//! What each node of a profile offers a new engine pod, and why it refuses one.
//!
//! The scheduler decides in the end; this says beforehand what it will find, in words that name a remedy.

use std::fmt;

use atlas_crds::profile::{Allocation, Backend, GpuProfile};
use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{NodeView, OtherWorkloads, ProfileMatch, describe_fault, match_node};

/// Taints that Kubernetes sets for what a view of a node tells anyway.
const TOLD_OTHERWISE: [&str; 3] =
    ["node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// A taint that keeps pods from a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeTaint {
    /// Its key.
    pub key: String,
    /// Its value, empty where it has none.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

impl NodeTaint {
    /// A taint that keeps new pods away; `None` for a mere preference, and for what other fields of the node tell.
    #[must_use]
    pub fn from_taint(taint: &Taint) -> Option<Self> {
        let keeps_away = taint.effect == "NoSchedule" || taint.effect == "NoExecute";
        (keeps_away && !TOLD_OTHERWISE.contains(&taint.key.as_str())).then(|| Self {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        })
    }

    /// Whether a toleration covers it, by Kubernetes' rules.
    #[must_use]
    pub fn is_tolerated(&self, tolerations: &[Toleration]) -> bool {
        let blank = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
        tolerations.iter().any(|toleration| {
            let effect = blank(&toleration.effect) || toleration.effect.as_ref() == Some(&self.effect);
            let key = blank(&toleration.key) || toleration.key.as_ref() == Some(&self.key);
            let value = match toleration.operator.as_deref() {
                Some("Exists") => true,
                // Without a key only Exists matches anything.
                None | Some("" | "Equal") => {
                    !blank(&toleration.key) && toleration.value.as_deref().unwrap_or_default() == self.value
                }
                Some(_) => false,
            };
            effect && key && value
        })
    }
}

impl fmt::Display for NodeTaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}:{}", self.key, self.effect),
            value => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}

/// Why a node takes no new engine pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeRefusal {
    /// Its kubelet does not report it as ready.
    NotReady,
    /// It is cordoned.
    Cordoned,
    /// A taint that the profile does not tolerate.
    Tainted(NodeTaint),
    /// An engine found another card there.
    WrongCard {
        /// What it said.
        message: String,
        /// When the node may be tried again.
        until: String,
    },
    /// Its card failed again and again: what is said of it.
    CardFault(String),
    /// It has cards and hands none out.
    NoneOffered {
        /// The extended resource.
        resource: String,
        /// Cards that it has.
        capacity: i64,
    },
    /// Pods that are not Atlas' hold every card.
    HeldByOthers {
        /// The extended resource.
        resource: String,
        /// `NAMESPACE/NAME` of each.
        pods: Vec<String>,
    },
}

impl NodeRefusal {
    /// Whether it holds for pods that ask for no card too.
    #[must_use]
    pub const fn keeps_every_pod_away(&self) -> bool {
        match self {
            Self::NotReady | Self::Cordoned | Self::Tainted(_) | Self::WrongCard { .. } => true,
            Self::NoneOffered { .. } | Self::HeldByOthers { .. } | Self::CardFault(_) => false,
        }
    }
}

/// What a node of a profile offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOffer {
    /// The node's name.
    pub node: String,
    /// How it matches.
    pub matched: ProfileMatch,
    /// Cards of the profile that the device plugin hands out.
    pub allocatable: i32,
    /// Cards that pods of others hold.
    pub held_by_others: i32,
    /// Why it takes no new pod; empty where it does.
    pub refusals: Vec<NodeRefusal>,
}

impl NodeOffer {
    /// Cards for new pods, where Atlas' own pods hold `held`.
    #[must_use]
    pub fn free(&self, held: i32) -> i32 {
        if self.refusals.is_empty() { (self.allocatable - self.held_by_others - held).max(0) } else { 0 }
    }

    /// Why it takes no new pod, as a person reads it in a condition.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        if self.refusals.is_empty() {
            return None;
        }
        let all: Vec<String> = self.refusals.iter().map(|refusal| self.describe_one(refusal)).collect();
        Some(format!("node {} is refused: {}", self.node, all.join(", ")))
    }

    fn describe_one(&self, refusal: &NodeRefusal) -> String {
        match refusal {
            NodeRefusal::NotReady => "its kubelet does not report it as ready".to_owned(),
            NodeRefusal::Cordoned => format!("it is cordoned (kubectl uncordon {})", self.node),
            NodeRefusal::Tainted(taint) => {
                format!("its taint {taint} is not among spec.tolerations of the GpuProfile")
            }
            NodeRefusal::WrongCard { message, until } => format!(
                "an engine found another card there ({message}): correct the node's labels or match of the GpuProfile; it is tried again after {until}"
            ),
            NodeRefusal::CardFault(said) => said.clone(),
            NodeRefusal::NoneOffered { resource, capacity: 0 } => {
                format!("it has no {resource} (install the AMD device plugin there)")
            }
            NodeRefusal::NoneOffered { resource, capacity } => format!(
                "it hands out none of its {capacity} {resource} (restart the AMD device plugin's pod there)"
            ),
            NodeRefusal::HeldByOthers { resource, pods } => {
                format!("{} of other workloads holds its {resource}", pods.join(", "))
            }
        }
    }
}

/// What every node that carries the profile's card offers.
#[must_use]
pub fn node_offers<'a>(
    profile: &GpuProfile,
    nodes: impl IntoIterator<Item = &'a NodeView>,
    others: &OtherWorkloads,
) -> Vec<NodeOffer> {
    nodes
        .into_iter()
        .filter_map(|node| Some(offer(profile, node, match_node(profile, node)?, others)))
        .collect()
}

fn offer(profile: &GpuProfile, node: &NodeView, matched: ProfileMatch, others: &OtherWorkloads) -> NodeOffer {
    let resource = &profile.spec.resource_name;
    let small = |amount: i64| i32::try_from(amount).unwrap_or(i32::MAX);
    let mut refusals = Vec::new();
    if !node.ready {
        refusals.push(NodeRefusal::NotReady);
    }
    if !node.schedulable {
        refusals.push(NodeRefusal::Cordoned);
    }
    let taints = node.taints.iter().filter(|taint| !taint.is_tolerated(&profile.spec.tolerations));
    refusals.extend(taints.cloned().map(NodeRefusal::Tainted));
    let excluded = profile.status.iter().flat_map(|status| &status.excluded);
    refusals.extend(excluded.filter(|excluded| excluded.active && excluded.name == node.name).map(
        |excluded| NodeRefusal::WrongCard {
            message: excluded.message.clone(),
            until: excluded.until.0.to_string(),
        },
    ));
    let faults = profile.status.iter().flat_map(|status| &status.card_faults);
    let faults = faults.filter(|fault| fault.active && fault.node == node.name);
    refusals.extend(faults.map(|fault| NodeRefusal::CardFault(describe_fault(fault))));
    let claimed = profile.spec.allocation == Allocation::ResourceClaim;
    if profile.spec.backend == Backend::Cpu || claimed {
        let allocatable = if claimed { matched.cards } else { 0 };
        return NodeOffer { node: node.name.clone(), matched, allocatable, held_by_others: 0, refusals };
    }
    let count = |from: &std::collections::BTreeMap<String, i64>| from.get(resource).copied().unwrap_or(0);
    let (capacity, allocatable) = (count(&node.capacity), count(&node.allocatable));
    let (held, pods) = others.held(&node.name, resource);
    if allocatable <= 0 {
        refusals.push(NodeRefusal::NoneOffered { resource: resource.clone(), capacity });
    } else if held >= allocatable {
        let pods = pods.into_iter().map(str::to_owned).collect();
        refusals.push(NodeRefusal::HeldByOthers { resource: resource.clone(), pods });
    }
    // Of several kinds of card the resource does not tell which one a pod holds: each kind counts for itself.
    let allocatable = small(allocatable).min(matched.cards);
    NodeOffer {
        node: node.name.clone(),
        matched,
        allocatable,
        held_by_others: small(held).min(allocatable),
        refusals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn profile(more: Value) -> GpuProfile {
        let mut spec = json!({"product": "P", "vram": "24560Mi", "gfxTarget": "gfx1100",
            "match": {"vramClass": "24G", "computeUnits": 96}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile", "metadata": {"name": "big"}, "spec": spec,
        }))
        .unwrap()
    }

    fn node(change: Value) -> NodeView {
        let mut node = json!({
            "metadata": {"name": "n1", "labels": {"amd.com/gpu.vram": "24G", "amd.com/gpu.cu-count": "96"}},
            "spec": {},
            "status": {"capacity": {"amd.com/gpu": "2"}, "allocatable": {"amd.com/gpu": "2"},
                       "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (pointer, value) in change.as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            node.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        NodeView::from_node(&serde_json::from_value(node).unwrap())
    }

    fn others(cards: i64) -> OtherWorkloads {
        let mut others = OtherWorkloads::default();
        let limits = json!({"amd.com/gpu": cards.to_string()});
        let pod = json!({"metadata": {"namespace": "ml", "name": "train"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "resources": {"limits": limits}}]}});
        others.put(&serde_json::from_value(pod).unwrap());
        others
    }

    #[test]
    fn a_node_says_what_is_free_and_why_it_takes_nothing() {
        let check = |what: &str, tolerations: Value, change: Value, taken: i64, free: i32, says: &[&str]| {
            let profile = profile(json!({"tolerations": tolerations}));
            let offers = node_offers(&profile, [&node(change)], &others(taken));
            assert_eq!(offers[0].free(0), free, "{what}");
            let text = offers[0].describe().unwrap_or_default();
            assert_eq!(text.is_empty(), says.is_empty(), "{what}: {text}");
            for part in says {
                assert!(text.contains(part), "{what}: {part} in {text}");
            }
        };
        let none = || json!([]);
        check("plain", none(), json!({}), 0, 2, &[]);
        check("one card taken", none(), json!({}), 1, 1, &[]);
        check("all taken", none(), json!({}), 2, 0, &["ml/train of other workloads holds its amd.com/gpu"]);
        check("unhealthy card", none(), json!({"/status/allocatable": {"amd.com/gpu": "1"}}), 0, 1, &[]);
        check(
            "stuck plugin",
            none(),
            json!({"/status/allocatable": {"amd.com/gpu": "0"}}),
            0,
            0,
            &["none of its 2"],
        );
        check(
            "no plugin",
            none(),
            json!({"/status/allocatable": {}, "/status/capacity": {}}),
            0,
            0,
            &["it has no amd.com/gpu"],
        );
        let cordon = json!({"/spec/unschedulable": true,
            "/spec/taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]});
        check("cordoned", none(), cordon, 0, 0, &["is refused: it is cordoned (kubectl uncordon n1)"]);
        let lost = json!({"/status/conditions": [{"type": "Ready", "status": "Unknown"}]});
        check("lost", none(), lost, 0, 0, &["does not report it as ready"]);
        let tainted = || json!({"/spec/taints": [{"key": "team", "value": "ml", "effect": "NoSchedule"}]});
        check("tainted", none(), tainted(), 0, 0, &["its taint team=ml:NoSchedule", "spec.tolerations"]);
        for toleration in [
            json!({"key": "team", "operator": "Exists"}),
            json!({"key": "team", "value": "ml"}),
            json!({"operator": "Exists"}),
            json!({"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}),
        ] {
            check("tolerated", json!([toleration]), tainted(), 0, 2, &[]);
        }
        for toleration in [
            json!({"key": "team", "value": "web"}),
            json!({"key": "team", "operator": "Exists", "effect": "NoExecute"}),
            json!({"key": "other", "operator": "Exists"}),
        ] {
            check("not tolerated", json!([toleration]), tainted(), 0, 0, &["team=ml:NoSchedule"]);
        }
        let preference =
            json!({"/spec/taints": [{"key": "team", "value": "ml", "effect": "PreferNoSchedule"}]});
        check("a preference", none(), preference, 0, 2, &[]);
    }

    #[test]
    fn what_our_own_pods_hold_is_not_free() {
        let offers = node_offers(&profile(json!({})), [&node(json!({}))], &others(1));
        assert_eq!((offers[0].free(0), offers[0].free(1), offers[0].free(2)), (1, 0, 0));
    }
}
