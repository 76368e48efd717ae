//! The gateways, one set a namespace: applied in one go with every live AtlasModel of it as an owner.
//!
//! Two models that applied it each for itself would replace each other's owner reference (one field manager), and
//! deleting one would collect the gateway under the other. Deleting is left to garbage collection: it happens when
//! the last owner is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use atlas_crds::names;
use atlas_operator_core::refusal::remedy;
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{ResourceExt, api::DynamicObject, runtime::reflector::ObjectRef};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    desired::{
        Owner,
        gateway::{GatewayInputs, build_gateway},
    },
    drain::last_may_go,
    error::{ApplyError, RefusedWrite, backoff, tell},
    kinds::Kind,
    observe::{PodView, PodsRefused, find_refusal, is_over, view_pod},
    ownership::Ownership,
};

const CONTROLLER: &str = "gateway";
/// Names that somebody else holds, and policies, are not watched.
const WHILE_TAKEN: Duration = Duration::from_secs(15);

/// What keeps a namespace's gateways from what they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayTroubles {
    /// Their objects that belong to somebody else, as `Kind/name`.
    pub taken: Vec<String>,
    /// Their objects that the API server does not take.
    pub refused: Vec<RefusedWrite>,
    /// Why no gateway lets clients in, where none does.
    pub down: Option<String>,
    /// Why there are fewer than there should be, where some let clients in.
    pub fewer: Option<String>,
}

/// Why no gateway lets clients in, where none does and somebody makes them; else why others do not come up.
fn find_outage(
    live: Option<&DynamicObject>,
    pods: &[PodView],
    wanted: i32,
) -> (Option<String>, Option<String>) {
    let Some((live, seen)) =
        live.and_then(|live| Some((live, live.data.pointer("/status/observedGeneration")?.as_i64()?)))
    else {
        // Before the Deployment controller has looked, or where there is none, nothing is known.
        return (None, None);
    };
    // Deployment and pods are watched apart: what only one of them shows is about to show in both.
    let told = live.data.pointer("/status/readyReplicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
    let shown = pods.iter().filter(|pod| pod.ready && !pod.terminating).count();
    let ready = told.max(i64::try_from(shown).unwrap_or(i64::MAX));
    if live.metadata.generation != Some(seen) {
        return (None, None);
    }
    let why = find_cause(live, pods);
    if ready == 0 {
        return (Some(why.unwrap_or_else(|| "no gateway pod is ready yet".to_owned())), None);
    }
    // One that only takes its time is no news.
    let fewer = why.filter(|_| ready < i64::from(wanted));
    (None, fewer.map(|why| format!("{ready} of {wanted} gateways are ready: {why}")))
}

/// What keeps gateways from getting ready, as far as something tells.
fn find_cause(live: &DynamicObject, pods: &[PodView]) -> Option<String> {
    if let Some(refused) = find_refusal(live) {
        let PodsRefused { said, .. } = refused;
        return Some(format!("the API server refuses the gateways' pods: {said}: {}", remedy(&said)));
    }
    let trouble = |pod: &PodView| {
        let said = match (&pod.waiting, &pod.failure, &pod.unschedulable) {
            (Some(waiting), _, _) => waiting.clone(),
            (_, Some(failure), _) => {
                format!("it ended with exit code {}: see `kubectl logs --previous` of the pod", failure.code)
            }
            (_, _, Some(unschedulable)) => {
                format!(
                    "{unschedulable}: add a node, or set gateway.replicas of the chart to the number that there are"
                )
            }
            (None, None, None) => return None,
        };
        Some(format!("gateway pod {}: {said}", pod.name))
    };
    pods.iter().filter(|pod| !pod.terminating && !pod.ready).find_map(trouble)
}

/// Reconciles namespaces as they are triggered, each once for any number of triggers at a time.
pub async fn run(context: Arc<Context>, mut triggers: UnboundedReceiver<String>, stop: CancellationToken) {
    let mut retries: BTreeMap<String, (u32, Instant)> = BTreeMap::new();
    loop {
        let next = retries.values().map(|(_, at)| *at).min();
        let mut due = BTreeSet::new();
        tokio::select! {
            first = triggers.next() => match first {
                Some(first) => { due.insert(first); }
                None => return,
            },
            () = wake(next) => {}
            () = stop.cancelled() => return,
        }
        while let Ok(more) = triggers.try_recv() {
            due.insert(more);
        }
        // A model that went asks for its namespace, if for nothing else.
        context.forget_gone();
        let now = Instant::now();
        due.extend(retries.iter().filter(|(_, (_, at))| *at <= now).map(|(namespace, _)| namespace.clone()));
        for namespace in due {
            let tries = retries.remove(&namespace).map_or(0, |(tries, _)| tries);
            match reconcile(&namespace, &context).await {
                Ok(true) => {}
                Ok(false) => {
                    retries.insert(namespace, (0, Instant::now() + WHILE_TAKEN));
                }
                Err(error) if error.is_of_ending_namespace() => {}
                Err(error) => {
                    context.metrics.errors.with_label_values(&[CONTROLLER, "apply"]).inc();
                    tracing::warn!(
                        namespace,
                        tries,
                        error = %tell(&error),
                        "the gateway could not be applied"
                    );
                    retries.insert(namespace, (tries + 1, Instant::now() + backoff(tries + 1)));
                }
            }
        }
    }
}

async fn wake(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Applies a namespace's gateway; `false` where an object of it is somebody else's, or refused.
async fn reconcile(namespace: &str, context: &Context) -> Result<bool, ApplyError> {
    let timer = context.metrics.seconds.with_label_values(&[CONTROLLER]).start_timer();
    context.metrics.reconciles.with_label_values(&[CONTROLLER]).inc();
    let models = context.stores.models.state_filter(|model| {
        model.metadata.namespace.as_deref() == Some(namespace) && model.metadata.deletion_timestamp.is_none()
    });
    let mut owners: Vec<Owner> = models
        .iter()
        .map(|model| Owner {
            name: model.name_any(),
            uid: model.uid().unwrap_or_default(),
            controller: false,
        })
        .collect();
    owners.sort();
    if owners.is_empty() {
        context.gateway_troubles.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
        return Ok(true);
    }
    let mut first_tier_nodes: Vec<_> = models
        .iter()
        .filter_map(|model| {
            context.stores.profiles.get(&ObjectRef::new(&model.spec.tiers.first()?.gpu_profile))
        })
        .filter_map(|profile| profile.spec.node_match.clone())
        .collect();
    first_tier_nodes.sort_by(|a, b| a.vram_class.cmp(&b.vram_class));
    let pods = context.stores.gateway_pods(namespace);
    let pods: Vec<_> = pods.iter().filter(|pod| !is_over(pod)).map(|pod| view_pod(pod)).collect();
    let last_may_go = last_may_go(&pods, context.settings.gateway_replicas, &context.stores.nodes());
    let inputs = GatewayInputs { namespace: namespace.to_owned(), owners, first_tier_nodes, last_may_go };
    let applied = context
        .applier
        .apply_objects(&build_gateway(&inputs, &context.settings), Ownership::Operator)
        .await?;
    timer.observe_duration();
    let free = applied.taken.is_empty() && applied.refused.is_empty();
    let live = context.stores.read_child(Kind::Deployment, namespace, names::GATEWAY_NAME);
    let (down, fewer) = find_outage(live.as_ref(), &pods, context.settings.gateway_replicas);
    let troubles = GatewayTroubles { taken: applied.taken, refused: applied.refused, down, fewer };
    let before = {
        let mut all = context.gateway_troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles == GatewayTroubles::default() {
            all.remove(namespace)
        } else {
            all.insert(namespace.to_owned(), troubles.clone())
        }
    };
    // The models' conditions say so; a model that is told twice writes nothing the second time.
    // What is not kept had no trouble.
    if before.unwrap_or_default() != troubles {
        if !free {
            tracing::warn!(
                namespace,
                taken = troubles.taken.join(", "),
                refused =
                    troubles.refused.iter().map(|write| write.said.as_str()).collect::<Vec<_>>().join("; "),
                "objects of the gateway that others hold or the API server refuses"
            );
        }
        for model in &models {
            context.stores.trigger_model(ObjectRef::from_obj(&**model));
        }
    }
    Ok(free)
}
