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

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    apply::{ApplyError, Ownership},
    desired::{
        Owner,
        gateway::{GatewayInputs, build_gateway},
    },
    drain::last_may_go,
    error::backoff,
    observe::view_pod,
    reconcile::Context,
};

const CONTROLLER: &str = "gateway";
/// Names that somebody else holds are not watched.
const WHILE_TAKEN: Duration = Duration::from_secs(15);

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
                Err(error) => {
                    context.metrics.errors.with_label_values(&[CONTROLLER, "apply"]).inc();
                    tracing::warn!(
                        namespace,
                        tries,
                        error = &error as &dyn std::error::Error,
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

/// Applies a namespace's gateway; `false` where an object of its name is somebody else's.
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
        context.taken_gateways.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
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
    let pods: Vec<_> = pods.iter().map(|pod| view_pod(pod)).collect();
    let last_may_go = last_may_go(&pods, context.settings.gateway_replicas, &context.stores.nodes());
    let inputs = GatewayInputs { namespace: namespace.to_owned(), owners, first_tier_nodes, last_may_go };
    let applied = context
        .applier
        .apply_objects(&build_gateway(&inputs, &context.settings), Ownership::Operator)
        .await?;
    timer.observe_duration();
    let free = applied.taken.is_empty();
    let before = {
        let mut all = context.taken_gateways.lock().unwrap_or_else(PoisonError::into_inner);
        if free { all.remove(namespace) } else { all.insert(namespace.to_owned(), applied.taken.clone()) }
    };
    // The models' conditions say so; a model that is told twice writes nothing the second time.
    if before.unwrap_or_default() != applied.taken {
        tracing::info!(
            namespace,
            taken = applied.taken.join(", "),
            "names that the gateway needs and others hold"
        );
        for model in &models {
            context.stores.trigger_model(ObjectRef::from_obj(&**model));
        }
    }
    Ok(free)
}
