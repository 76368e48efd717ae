//! What cards a cluster has, read from the labels that the AMD node labeller sets.
//!
//! It does not ask any device: a label is a claim, and the engine confirms its own card at start.

mod consistency;
mod exclusion;
mod faults;
mod labels;
mod matching;
mod offers;
mod others;

pub use consistency::{DRIVER_VERSION, DriverVerdict, judge_drivers, label_problems};
pub use exclusion::{CardReports, WrongCard, update_exclusions};
pub use faults::{FaultReport, describe_fault, forgotten_at, update_faults};
pub use labels::{AMD_MARKER_KEYS, CU_COUNT, LabelForm, PREFIXES, VRAM, read_label};
pub use matching::{
    Expression, Operator, ProfileMatch, describe_match, match_node, node_selector_terms, unambiguous_problems,
};
pub use offers::{NodeOffer, NodeRefusal, NodeTaint, node_offers};
pub use others::OtherWorkloads;

use std::collections::BTreeMap;

use atlas_crds::names;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;

/// What the operator needs to know of a node, and nothing that its heartbeat changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// The node's name.
    pub name: String,
    /// Labels of the AMD labeller, in every form; no other label is kept.
    pub labels: BTreeMap<String, String>,
    /// Extended resources that the node has.
    pub capacity: BTreeMap<String, i64>,
    /// Extended resources that can be handed out now.
    pub allocatable: BTreeMap<String, i64>,
    /// Whether the kubelet reports the node as ready.
    pub ready: bool,
    /// Whether new pods may be placed on it.
    pub schedulable: bool,
    /// Taints that keep pods away, besides those that tell of the two fields above.
    pub taints: Vec<NodeTaint>,
    /// What its condition [`names::NODE_GPU_FAULT`] says while it holds.
    pub gpu_fault: Option<String>,
}

impl NodeView {
    /// Reads what matters from a Node object.
    #[must_use]
    pub fn from_node(node: &Node) -> Self {
        let status = node.status.as_ref();
        let extended =
            |list: Option<&BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
                list.into_iter()
                    .flatten()
                    .filter(|(name, _): &(&String, _)| name.contains('/'))
                    .filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
                    .collect()
            };
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node
                .metadata
                .labels
                .iter()
                .flatten()
                .filter(|(key, _)| PREFIXES.iter().any(|prefix| key.starts_with(prefix)))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            capacity: extended(status.and_then(|s| s.capacity.as_ref())),
            allocatable: extended(status.and_then(|s| s.allocatable.as_ref())),
            ready: status
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
            schedulable: !node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
            taints: node
                .spec
                .iter()
                .filter_map(|spec| spec.taints.as_ref())
                .flatten()
                .filter_map(NodeTaint::from_taint)
                .collect(),
            gpu_fault: status
                .and_then(|s| s.conditions.as_ref())
                .and_then(|list| list.iter().find(|c| c.type_ == names::NODE_GPU_FAULT && c.status == "True"))
                .map(|condition| condition.message.clone().unwrap_or_default()),
        }
    }

    /// Whether the labeller found any AMD card on it.
    #[must_use]
    pub fn has_amd_card(&self) -> bool {
        !self.labels.is_empty()
    }
}

/// Seconds are what the API server keeps.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
