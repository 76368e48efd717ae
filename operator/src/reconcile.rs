//! One pass over one AtlasModel: gather, validate, plan, desired, apply, observe, status.
//!
//! It reads the stores, never the API server, and writes only what differs.

use std::{sync::Arc, time::Duration};

use atlas_crds::{AtlasModel, GpuProfile, names, status::AtlasModelStatus};
use atlas_operator_core::inventory::OtherWorkloads;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};

use crate::{
    act::act,
    busy::measured,
    context::{Context, Memory},
    error::{ReconcileError, Retry, backoff, tell},
    events::{build_deletion_event, build_edit_event, build_events, build_status_event},
    kinds::Kind,
    measure::measured_peak,
    observe::{TierPods, find_refusal, view_tiers},
    pod_removal::{delete_lost_pods, end_of_grace, retry_wrong_cards},
    reports::{Reports, ask_starting},
    status::{Observed, Verdict, compute_status},
    status_write::{Kept, Need, write_status},
    stores::{Nodes, Stores},
    validate::{check_claims, validate},
};

const CONTROLLER: &str = "atlasmodel";
/// While something starts, its progress is asked for this often.
const WHILE_STARTING: Duration = Duration::from_secs(1);
/// Names that somebody else holds are not watched, and a container that does not start is given up in time.
const WHILE_TAKEN: Duration = Duration::from_secs(15);
/// Safety net; every change has a watch.
const RESYNC: Duration = Duration::from_secs(600);

/// Everything that a pass reads.
pub struct Inputs {
    /// Every profile.
    pub profiles: Vec<Arc<GpuProfile>>,
    /// Every node.
    pub nodes: Arc<Nodes>,
    /// What pods of others hold.
    pub others: Arc<OtherWorkloads>,
    /// The engine pods of the model.
    pub own_pods: Vec<Arc<Pod>>,
}

fn gather(object: &AtlasModel, stores: &Stores) -> Inputs {
    Inputs {
        profiles: stores.profiles.state(),
        nodes: stores.nodes(),
        others: stores.others(),
        own_pods: stores.engine_pods(&object.namespace().unwrap_or_default(), &object.name_any()),
    }
}

/// Reconciles one model.
///
/// # Errors
///
/// A write failed; what else could be written was.
#[tracing::instrument(skip_all, fields(namespace = object.namespace(), model = object.name_any()))]
pub async fn reconcile(object: Arc<AtlasModel>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let timer = context.metrics.seconds.with_label_values(&[CONTROLLER]).start_timer();
    context.metrics.reconciles.with_label_values(&[CONTROLLER]).inc();
    let (result, busy) = measured(pass(&object, &context)).await;
    timer.observe_duration();
    context.metrics.busy.with_label_values(&[CONTROLLER]).observe(busy.as_secs_f64());
    if result.is_ok() {
        context.remember(&object, |memory| memory.failures = 0);
    }
    result
}

async fn pass(object: &AtlasModel, context: &Context) -> Result<Action, ReconcileError> {
    let missing = |field| ReconcileError::NotStored { name: object.name_any(), field };
    let namespace = object.namespace().ok_or_else(|| missing("namespace"))?;
    let uid = object.uid().ok_or_else(|| missing("uid"))?;
    // Garbage collection does what is left to do.
    if object.metadata.deletion_timestamp.is_some() {
        let waits = build_deletion_event(object.finalizers());
        context.events.publish_all(object.object_ref(&()), waits.into_iter().collect());
        return Ok(Action::await_change());
    }
    let inputs = gather(object, &context.stores);
    let mut tiers = view_tiers(object, &inputs.own_pods);
    note_refusals(object, &namespace, &mut tiers, &context.stores);
    let validated = validate(object, &inputs.profiles)
        .and_then(|model| check_claims(model, context.stores.serves_claims));
    let gateways = context.gateways.of_model(&namespace, &object.name_any());
    let Memory { status: remembered, mut heard, .. } = context.memory_of(&uid);
    // After a restart headers are read anew: what was told of this very specification stays true until they are.
    let restarted = remembered.is_none();
    // A new model has no status, and all that is found is news.
    let previous = remembered.map(|kept| kept.status).or_else(|| object.status.clone()).unwrap_or_default();
    let mut reported = Reports::of(&previous);
    heard.take_ends(&tiers, &mut reported);
    let outcome = match &validated {
        Ok(model) => match act(model, &inputs, &tiers, &gateways, &reported, context).await? {
            Some(outcome) => Some(outcome),
            None => {
                tracing::info!("objects were made from a newer generation than the one seen: waiting for it");
                return Ok(Action::requeue(WHILE_STARTING));
            }
        },
        Err(_) => None,
    };
    delete_lost_pods(&namespace, &inputs, context).await?;
    if let Ok(model) = &validated {
        retry_wrong_cards(object, model, &inputs, &tiers, context).await?;
    }
    ask_starting(&mut tiers).await;
    let hearing = heard.ask(&tiers, outcome.as_ref().map(|(plan, _)| plan), &mut reported).await;
    context.remember(object, |memory| memory.heard = heard);

    let plans = outcome.iter().flat_map(|(plan, _)| &plan.tiers).map(|tier| tier.vram.plan());
    for (tier, plan) in tiers.iter().zip(plans.chain(std::iter::repeat(None))) {
        let peak = measured_peak(&gateways, &tier.tier);
        let labels = [namespace.as_str(), &object.name_any(), &tier.tier];
        context.metrics.note_vram(labels, plan.map(|plan| plan.required), peak);
    }

    // The gateway's objects are every model's of the namespace.
    let gateway = context.gateway_troubles_of(&namespace);
    let mut taken = outcome.as_ref().map(|(_, applied)| applied.taken.clone()).unwrap_or_default();
    let own_taken = outcome.iter().any(|(_, a)| !a.taken.is_empty() || !a.leaving.is_empty());
    taken.extend(gateway.taken);
    let own_refused = outcome.as_ref().map(|(_, applied)| applied.refused.clone()).unwrap_or_default();
    let refused: Vec<_> = own_refused.iter().cloned().chain(gateway.refused).collect();
    let verdict = match (&validated, &outcome) {
        (Ok(model), Some((plan, applied))) => {
            Verdict::Planned { model, plan, taken: &taken, leaving: &applied.leaving, refused: &refused }
        }
        (Err(refusals), _) => Verdict::Refused(refusals),
        (Ok(_), None) => Verdict::Refused(&[]),
    };
    let told = restarted && previous.observed_generation == object.metadata.generation;
    let edits = outcome.iter().flat_map(|(_, applied)| &applied.hand_edits).map(build_edit_event);
    let patience = outcome.as_ref().and_then(|(plan, _)| plan.header_patience());
    if let Some(patience) = patience.filter(|_| told) {
        context.events.publish_all(object.object_ref(&()), edits.collect());
        return Ok(Action::requeue(patience));
    }
    let observed = Observed {
        object,
        previous: &previous,
        verdict,
        tiers: &tiers,
        gateways: &gateways,
        no_gateway: gateway.down.as_deref(),
        fewer_gateways: gateway.fewer.as_deref(),
        reported: &reported,
        scheme: context.settings.scheme(),
        tls_secret: context.settings.gateway_tls_secret.as_deref(),
        host: format!("{}.{namespace}.svc", object.name_any()),
        now: Timestamp::now(),
    };
    let (status, moves) = compute_status(&observed);
    let written = put_status(object, status, context, &namespace).await;
    let Written { status, edited } = written.map_err(ReconcileError::Status)?;
    let moves = context.news(&uid, moves);
    let mut events = build_events(&previous, &status, &moves);
    events.extend(edits.chain(edited.then(build_status_event)));
    context.events.publish_all(object.object_ref(&()), events);

    // All is told; what the API server refuses is asked for again, later each time.
    if let Some(first) = own_refused.into_iter().next() {
        return Err(ReconcileError::Refused(first));
    }
    let starting = tiers.iter().flat_map(TierPods::current).any(|pod| !pod.ready && pod.address.is_some());
    let stuck = tiers.iter().flat_map(TierPods::current).any(|pod| pod.waiting.is_some())
        || tiers.iter().any(|tier| tier.refused.is_some());
    // What is looked at again because nobody tells of it, and what has a time of its own.
    let looks = [
        // What an engine told is planned with at once.
        hearing.news.then_some(Duration::ZERO),
        starting.then_some(WHILE_STARTING),
        (own_taken || stuck || hearing.silent).then_some(WHILE_TAKEN),
        patience,
        end_of_grace(&inputs.own_pods, observed.now),
    ];
    Ok(Action::requeue(looks.into_iter().flatten().fold(RESYNC, Duration::min)))
}

/// Notes for tiers that lack pods why Kubernetes makes none.
fn note_refusals(object: &AtlasModel, namespace: &str, tiers: &mut [TierPods], stores: &Stores) {
    for tier in tiers {
        let name = names::tier_object_name(&object.name_any(), &tier.tier);
        let Some(live) = stores.child(Kind::Deployment, namespace, &name) else { continue };
        let pods = i32::try_from(tier.current().count()).unwrap_or(i32::MAX);
        if pods < live.replicas() {
            tier.refused = find_refusal(&live.read());
        }
    }
}

/// A status that stands.
struct Written {
    status: AtlasModelStatus,
    /// Whether somebody else had changed it.
    edited: bool,
}

/// Writes the status where it differs from what was written before, or where somebody else has changed it since.
async fn put_status(
    object: &AtlasModel,
    status: AtlasModelStatus,
    context: &Context,
    namespace: &str,
) -> Result<Written, kube::Error> {
    let uid = object.metadata.uid.as_deref();
    // Whatever the API server stores has a uid.
    let kept = context.memory_of(uid.unwrap_or_default()).status;
    context.stores.told.note(uid, &status);
    let edited = match Kept::need(kept.as_ref(), &status, object, object.status.as_ref()) {
        Need::Nothing => return Ok(Written { status, edited: false }),
        Need::Keep => {
            let kept = Kept::of(status.clone(), object, object.status.as_ref());
            context.remember(object, |memory| memory.status = Some(kept));
            return Ok(Written { status, edited: false });
        }
        Need::Write { edited } => edited,
    };
    context.remember(object, |memory| memory.status.iter_mut().for_each(Kept::forget_version));
    let api: Api<AtlasModel> = Api::namespaced(context.client.clone(), namespace);
    context.metrics.writes.with_label_values(&["AtlasModel"]).inc();
    let written = write_status(&api, object, &status, |object| object.status.as_ref()).await?;
    // What somebody added and could not be taken out is no reason to try for ever.
    context.stores.told.note(uid, &written.status);
    let kept = Kept::of(status.clone(), &written, written.status.as_ref());
    context.remember(object, |memory| memory.status = Some(kept));
    Ok(Written { status, edited })
}

/// When a failed reconcile is tried again.
pub fn on_error(object: Arc<AtlasModel>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let retry = error.retry();
    if retry != Retry::Gone {
        context.metrics.errors.with_label_values(&[CONTROLLER, error.label()]).inc();
    }
    match retry {
        Retry::Never => {
            tracing::error!(
                model = object.name_any(),
                error = %tell(error),
                "reconcile failed for good"
            );
            Action::await_change()
        }
        Retry::Gone => {
            tracing::info!(
                model = object.name_any(),
                "it is gone, or goes with its namespace: nothing more is made of it"
            );
            Action::await_change()
        }
        Retry::Backoff => {
            let mut tries = 1;
            context.remember(&object, |memory| {
                memory.failures = memory.failures.saturating_add(1);
                tries = memory.failures;
            });
            tracing::warn!(
                model = object.name_any(),
                tries,
                error = %tell(error),
                "reconcile failed"
            );
            Action::requeue(backoff(tries))
        }
    }
}
