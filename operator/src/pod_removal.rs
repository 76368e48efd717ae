//! Pods that nobody else takes away: those past their grace on a lost node, and those that got another card.

use std::{sync::Arc, time::Duration};

use atlas_crds::AtlasModel;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};

use crate::{
    context::Context,
    error::ReconcileError,
    observe::{TierPods, is_past_grace},
    reconcile::Inputs,
    validate::ValidatedModel,
    wrong_card::choose_retries,
};

/// Time until the first pod outlives its grace; what happens to it before then is told by its watch.
#[must_use]
pub fn end_of_grace(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ends = pods.iter().filter_map(|pod| pod.metadata.deletion_timestamp.as_ref()).map(|at| at.0);
    let next = ends.filter(|at| *at >= now).min()?;
    // Timestamps are of whole seconds.
    Some(next.duration_since(now).unsigned_abs() + Duration::from_secs(1))
}

/// Deletes pods that outlived their grace on a node that is lost: nobody else does, and a Recreate rollout waits.
///
/// # Errors
///
/// The API server refused a deletion.
pub async fn delete_lost_pods(
    namespace: &str,
    inputs: &Inputs,
    context: &Context,
) -> Result<(), ReconcileError> {
    let now = Timestamp::now();
    for pod in inputs.own_pods.iter().filter(|pod| is_past_grace(pod, now)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let alive = node.and_then(|node| inputs.nodes.get(node)).is_some_and(|view| view.ready);
        if alive {
            continue;
        }
        let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name_any(), &params).await {
            Ok(_) => {
                tracing::info!(pod = pod.name_any(), node, "deleted a pod past its grace on a lost node")
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(source) => return Err(ReconcileError::DeletePod { pod: pod.name_any(), source }),
        }
    }
    Ok(())
}

/// Deletes pods that got another card of a node with several kinds, so that their successors may get the right one.
///
/// # Errors
///
/// The API server refused a deletion.
pub async fn retry_wrong_cards(
    object: &AtlasModel,
    model: &ValidatedModel,
    inputs: &Inputs,
    tiers: &[TierPods],
    context: &Context,
) -> Result<(), ReconcileError> {
    let mut chosen = Vec::new();
    context.remember(object, |memory| {
        let profile_of = |index: usize| model.tiers.get(index).map(|tier| tier.profile.as_ref());
        chosen = choose_retries(tiers, profile_of, &inputs.nodes, &mut memory.tries, Timestamp::now());
    });
    for pod in chosen {
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &model.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name, &params).await {
            Ok(_) => tracing::info!(pod = pod.name, node = pod.node, "made a pod anew that got another card"),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(source) => return Err(ReconcileError::DeletePod { pod: pod.name.clone(), source }),
        }
    }
    Ok(())
}
