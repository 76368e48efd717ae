//! The Node object and its lease: registration, heartbeats and what the cards allow.
//!
//! A node that was given up posts Ready=True itself; a lease alone would leave it NotReady.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::oneshot;

use super::machine::{ApiError, Machine, Wires};

/// Registers the node, then keeps its status and lease fresh for ever.
pub async fn keep_node(machine: &Arc<Machine>, registered: oneshot::Sender<Result<(), kube::Error>>) {
    let mut registered = Some(registered);
    let Wires { mut link, mut gpus } = machine.wires.clone();
    loop {
        link.mark_unchanged();
        let usable = *gpus.borrow_and_update();
        match beat(machine, usable).await {
            Ok(()) => {
                if let Some(registered) = registered.take() {
                    // Nobody waits any more: the node runs all the same.
                    let _ = registered.send(Ok(()));
                }
                tokio::select! {
                    () = tokio::time::sleep(machine.options.timing.heartbeat) => {}
                    _ = link.changed() => {}
                    changed = gpus.changed() => if changed.is_err() { return },
                }
            }
            Err(error) => {
                tracing::debug!(node = machine.options.spec.name, %error, "a heartbeat was lost");
                machine.pause().await;
            }
        }
    }
}

async fn beat(machine: &Machine, usable_gpus: usize) -> Result<(), ApiError> {
    let nodes: Api<Node> = machine.all();
    let name = &machine.options.spec.name;
    let node = match machine.call(nodes.get_opt(name)).await? {
        Some(node) => node,
        None => {
            let node = Node { metadata: metadata(machine), ..Node::default() };
            machine.call(nodes.create(&PostParams::default(), &node)).await?
        }
    };
    let labels = machine.options.spec.node_labels();
    if labels.iter().any(|(key, value)| node.labels().get(key) != Some(value)) {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        machine.call(nodes.patch(name, &PatchParams::default(), &patch)).await?;
    }
    let status = compute_node_status(machine, &node, usable_gpus);
    let patch = Patch::Strategic(json!({"status": status}));
    machine.call(nodes.patch_status(name, &PatchParams::default(), &patch)).await?;
    renew_lease(machine, &node).await
}

fn metadata(machine: &Machine) -> ObjectMeta {
    ObjectMeta {
        name: Some(machine.options.spec.name.clone()),
        labels: Some(machine.options.spec.node_labels()),
        annotations: Some(BTreeMap::from([(
            "atlas.gillsystems.com/simulated".to_owned(),
            "a test tool's node: pods run as local processes".to_owned(),
        )])),
        ..ObjectMeta::default()
    }
}

fn compute_node_status(machine: &Machine, node: &Node, usable_gpus: usize) -> NodeStatus {
    let spec = &machine.options.spec;
    let now = now();
    let held = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: held
            .iter()
            .find(|held| held.type_ == kind && held.status == status)
            .and_then(|held| held.last_transition_time.clone())
            .or_else(|| Some(now.clone())),
    };
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        capacity: Some(spec.resources(spec.cards.len())),
        allocatable: Some(spec.resources(usable_gpus)),
        addresses: Some(vec![
            address("InternalIP", machine.node_ip().to_string()),
            address("Hostname", spec.name.clone()),
        ]),
        conditions: Some(vec![
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is not watched here"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the disk is not watched here"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "process ids are not watched here"),
            condition("Ready", "True", "KubeletReady", "the simulated node is posting ready status"),
        ]),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: 10250 }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: spec.node_labels().remove("kubernetes.io/arch").unwrap_or_default(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: "processes://1.0".into(),
            kernel_version: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|release| release.trim().to_owned())
                .unwrap_or_default(),
            kubelet_version: "v1.36.3-simulated".into(),
            machine_id: spec.name.clone(),
            operating_system: "linux".into(),
            os_image: "Atlas simulated node".into(),
            system_uuid: spec.name.clone(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

async fn renew_lease(machine: &Machine, node: &Node) -> Result<(), ApiError> {
    let name = &machine.options.spec.name;
    let leases: Api<Lease> = machine.in_namespace("kube-node-lease");
    let renew_time = Some(MicroTime(Timestamp::now()));
    match machine.call(leases.get_opt(name)).await? {
        Some(_) => {
            let patch = Patch::Merge(json!({"spec": {"renewTime": renew_time, "holderIdentity": name}}));
            machine.call(leases.patch(name, &PatchParams::default(), &patch)).await?;
        }
        None => {
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid: node.uid().unwrap_or_default(),
                ..OwnerReference::default()
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.clone()),
                    lease_duration_seconds: Some(40),
                    renew_time,
                    ..LeaseSpec::default()
                }),
            };
            machine.call(leases.create(&PostParams::default(), &lease)).await?;
        }
    }
    Ok(())
}

/// The moment as Kubernetes keeps it: in whole seconds.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
