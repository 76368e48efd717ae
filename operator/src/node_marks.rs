//! What a node shows while a card of it is marked as failed: nothing, a condition or a taint, as the operator was told.
//!
//! The marks are derived from the profiles' status, so a restarted operator sets and removes what it finds otherwise.
//! One that is told another kind, or none, leaves old marks as they are: it may no longer touch nodes.

use std::collections::BTreeMap;

use atlas_crds::{GpuProfile, names, profile::GpuProfileStatus};
use atlas_operator_core::inventory::{NodeView, describe_fault};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{config::NodeMark, context::Context};

/// Sets and removes the marks that differ from what the profiles say; `status` is the newest of profile `name`.
///
/// # Errors
///
/// The API server refused one.
pub async fn mark_nodes(name: &str, status: &GpuProfileStatus, context: &Context) -> Result<(), kube::Error> {
    if context.mark_nodes == NodeMark::None {
        return Ok(());
    }
    let profiles = context.stores.profiles.state();
    let faults = compute_faults(name, status, profiles.iter().map(AsRef::as_ref));
    let api: Api<Node> = Api::all(context.client.clone());
    for node in context.stores.nodes().values() {
        let said = faults.get(&node.name);
        if !differs(node, context.mark_nodes, said) {
            continue;
        }
        let written = match context.mark_nodes {
            NodeMark::None => Ok(()),
            NodeMark::Condition => patch_condition(&api, &node.name, said).await,
            NodeMark::Taint => patch_taint(&api, &node.name, said.is_some()).await,
        };
        match written {
            Ok(()) => {
                context.metrics.writes.with_label_values(&["Node"]).inc();
                tracing::info!(node = node.name, marked = said.is_some(), "marked a node for its card");
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is wrong with each node's cards, by the newest status of every profile.
fn compute_faults<'a>(
    name: &str,
    status: &'a GpuProfileStatus,
    profiles: impl IntoIterator<Item = &'a GpuProfile>,
) -> BTreeMap<String, String> {
    let others = profiles.into_iter().filter(|profile| profile.name_any() != name);
    let all = others.filter_map(|profile| profile.status.as_ref()).chain([status]);
    let mut faults = BTreeMap::<String, String>::new();
    for fault in all.flat_map(|status| &status.card_faults).filter(|fault| fault.active) {
        let said = faults.entry(fault.node.clone()).or_default();
        if !said.is_empty() {
            said.push_str("; ");
        }
        said.push_str(&describe_fault(fault));
    }
    faults
}

fn differs(node: &NodeView, mark: NodeMark, said: Option<&String>) -> bool {
    match mark {
        NodeMark::None => false,
        NodeMark::Condition => node.gpu_fault.as_ref() != said,
        NodeMark::Taint => {
            node.taints.iter().any(|taint| taint.key == names::NODE_GPU_FAULT_TAINT) != said.is_some()
        }
    }
}

async fn patch_condition(api: &Api<Node>, node: &str, said: Option<&String>) -> Result<(), kube::Error> {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    let (status, reason, message) = match said {
        Some(said) => ("True", "CardFault", said.as_str()),
        None => ("False", "NoFault", "no card of it is marked as failed"),
    };
    let condition = json!({
        "type": names::NODE_GPU_FAULT, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    // A strategic merge leaves the kubelet's own conditions as they are.
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    api.patch_status(node, &PatchParams::default(), &patch).await.map(|_| ())
}

async fn patch_taint(api: &Api<Node>, node: &str, marked: bool) -> Result<(), kube::Error> {
    let live = api.get(node).await?;
    let mut taints = live.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.retain(|taint| taint.key != names::NODE_GPU_FAULT_TAINT);
    if marked {
        let (key, effect) = (names::NODE_GPU_FAULT_TAINT.to_owned(), "NoSchedule".to_owned());
        taints.push(Taint { key, effect, ..Taint::default() });
    }
    // The list is written as a whole: the version refuses it where somebody else has changed it meanwhile.
    let version = live.resource_version();
    let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}));
    api.patch(node, &PatchParams::default(), &patch).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_operator_core::inventory::NodeTaint;

    #[test]
    fn marks_follow_the_faults_of_every_profile_and_differ_only_where_a_write_is_due() {
        let profile = |name: &str, faults: serde_json::Value| -> GpuProfile {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"product": "P", "vram": "8Gi", "backend": "Cpu"},
                "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile",
                "status": {"cardFaults": faults},
            }))
            .unwrap()
        };
        let fault = |node: &str, active: bool| {
            json!({"node": node, "active": active, "count": 2, "error": "Hang", "message": "m",
                "last": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:10:00Z"})
        };
        let profiles = [
            profile("a", json!([fault("n1", true), fault("n2", false)])),
            profile("b", json!([fault("n3", true)])),
        ];
        // The store's copy of `b` is older than the status that was just computed.
        let newest = profile("b", json!([fault("n1", true)])).status.unwrap_or_default();
        let faults = compute_faults("b", &newest, &profiles);
        assert_eq!(faults.keys().collect::<Vec<_>>(), ["n1"]);
        let said = &faults["n1"];
        assert_eq!(said.matches("failed 2 times").count(), 2, "{said}");

        let tainted = NodeTaint {
            key: names::NODE_GPU_FAULT_TAINT.into(),
            value: String::new(),
            effect: "NoSchedule".into(),
        };
        let plain = NodeView::default();
        let with_taint = NodeView { taints: vec![tainted], ..NodeView::default() };
        let with_condition = NodeView { gpu_fault: Some(said.clone()), ..NodeView::default() };
        for (node, mark, wanted, expected) in [
            (&plain, NodeMark::None, Some(said), false),
            (&plain, NodeMark::Taint, Some(said), true),
            (&plain, NodeMark::Taint, None, false),
            (&with_taint, NodeMark::Taint, Some(said), false),
            (&with_taint, NodeMark::Taint, None, true),
            (&plain, NodeMark::Condition, Some(said), true),
            (&with_condition, NodeMark::Condition, Some(said), false),
            (&with_condition, NodeMark::Condition, None, true),
        ] {
            assert_eq!(differs(node, mark, wanted), expected, "{mark:?} {wanted:?}");
        }
    }
}
