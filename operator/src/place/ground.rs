//! What the nodes of a profile offer, and what is said of them: the same for every model.

use atlas_crds::GpuProfile;
use atlas_operator_core::inventory::{
    NodeOffer, NodeRefusal, NodeView, OtherWorkloads, node_offers, unambiguous_problems,
};

use crate::{plan::Placement, stores::Nodes};

/// Refused nodes that a model's condition names.
const MAX_TOLD: usize = 8;

/// A profile's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// What each offers.
    pub offers: Vec<NodeOffer>,
    /// Which take no new pod, and why.
    pub refused: Vec<String>,
    /// Why they may hand out another card than the profile's.
    pub ambiguities: Vec<String>,
    /// Cards of the nodes that take new pods, those that Atlas' own pods hold among them.
    pub open: i32,
}

impl Ground {
    /// Looks at every node.
    #[must_use]
    pub fn survey(
        profile: &GpuProfile,
        profiles: &[&GpuProfile],
        nodes: &Nodes,
        others: &OtherWorkloads,
    ) -> Self {
        let views: Vec<&NodeView> = nodes.values().map(AsRef::as_ref).collect();
        let offers = node_offers(profile, views.iter().copied(), others);
        Self {
            refused: refused_nodes(&offers),
            ambiguities: unambiguous_problems(profile, profiles, &views),
            open: offers.iter().map(|offer| offer.free(0)).sum(),
            offers,
        }
    }

    /// Why no node takes a pod, where one word says it for all of them.
    pub(super) fn exhaustion(&self) -> Placement {
        let mut pods = Vec::new();
        let (mut none_offered, mut all_held) = (true, true);
        for refusals in self.offers.iter().map(|offer| offer.refusals.as_slice()) {
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
