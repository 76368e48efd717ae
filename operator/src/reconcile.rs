//! One pass over one AtlasModel: gather, validate, plan, desired, apply, observe, status.
//!
//! It reads the stores, never the API server, and writes only what differs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atlas_crds::{AtlasModel, GpuProfile, profile::GpuProfileStatus, status::AtlasModelStatus};
use atlas_operator_core::inventory::OtherWorkloads;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::controller::Action,
};

use crate::{
    act::act,
    apply::Applier,
    busy::measured,
    config::NodeMark,
    desired::Settings,
    error::{ReconcileError, Retry, backoff},
    events::{Events, build_edit_event, build_events, build_status_event},
    headers::Headers,
    measure::measured_peak,
    metrics::Metrics,
    observe::{TierPods, is_past_grace, view_tiers},
    probe::GatewayViews,
    reports::{Heard, Reports, ask_starting},
    status::{Move, MoveKind, Observed, Verdict, compute_status},
    status_write::{Kept, Need, write_status},
    stores::{Nodes, Stores},
    validate::{ValidatedModel, check_claims, validate},
    wrong_card::{Tries, choose_retries},
};

const CONTROLLER: &str = "atlasmodel";
/// While something starts, its progress is asked for this often.
const WHILE_STARTING: Duration = Duration::from_secs(1);
/// Names that somebody else holds are not watched, and a container that does not start is given up in time.
const WHILE_TAKEN: Duration = Duration::from_secs(15);
/// Safety net; every change has a watch.
const RESYNC: Duration = Duration::from_secs(600);

/// What reconciles share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Reflected copies.
    pub stores: Arc<Stores>,
    /// Writer of objects.
    pub applier: Applier,
    /// What headers of model files say, where they are read.
    pub headers: Option<Arc<Headers>>,
    /// What the gateways say.
    pub gateways: Arc<GatewayViews>,
    /// Settings that show in objects.
    pub settings: Settings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writer of Events.
    pub events: Events,
    /// Per model uid, what the stores may not show yet.
    pub memory: Mutex<HashMap<String, Memory>>,
    /// Per namespace, the gateway's objects that belong to somebody else, as `Kind/name`.
    pub taken_gateways: Mutex<HashMap<String, Vec<String>>>,
    /// Moves before this are an earlier process's news.
    pub started: Timestamp,
    /// What nodes with failed cards show.
    pub mark_nodes: NodeMark,
    /// Per profile uid, its status as it was written.
    pub profiles: Mutex<HashMap<String, Kept<GpuProfileStatus>>>,
}

/// What a model's last reconcile left behind.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The status as it was written.
    status: Option<Kept<AtlasModelStatus>>,
    /// Time of the last failback that was told.
    last_failback: Option<Timestamp>,
    /// Failures in a row.
    failures: u32,
    /// New pods in the place of some that got another card.
    tries: Tries,
    /// Engines that have told what their headers say.
    heard: Heard,
}

/// Everything that a pass reads.
pub struct Inputs {
    /// Every profile.
    pub profiles: Vec<Arc<GpuProfile>>,
    /// Every node.
    pub nodes: Arc<Nodes>,
    /// What pods of others hold.
    pub others: Arc<OtherWorkloads>,
    own_pods: Vec<Arc<Pod>>,
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
        return Ok(Action::await_change());
    }
    let inputs = gather(object, &context.stores);
    let mut tiers = view_tiers(object, &inputs.own_pods);
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

    // The gateway's names are every model's of the namespace.
    let mut taken = outcome.as_ref().map(|(_, applied)| applied.taken.clone()).unwrap_or_default();
    let own_taken = !taken.is_empty();
    taken.extend(context.gateway_taken(&namespace));
    let verdict = match (&validated, &outcome) {
        (Ok(model), Some((plan, _))) => Verdict::Planned { model, plan, taken: &taken },
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

    let starting = tiers.iter().flat_map(TierPods::current).any(|pod| !pod.ready && pod.address.is_some());
    let stuck = tiers.iter().flat_map(TierPods::current).any(|pod| pod.waiting.is_some());
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

/// Time until the first pod outlives its grace; what happens to it before then is told by its watch.
fn end_of_grace(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ends = pods.iter().filter_map(|pod| pod.metadata.deletion_timestamp.as_ref()).map(|at| at.0);
    let next = ends.filter(|at| *at >= now).min()?;
    // Timestamps are of whole seconds.
    Some(next.duration_since(now).unsigned_abs() + Duration::from_secs(1))
}

/// Deletes pods that outlived their grace on a node that is lost: nobody else does, and a Recreate rollout waits.
async fn delete_lost_pods(namespace: &str, inputs: &Inputs, context: &Context) -> Result<(), ReconcileError> {
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
async fn retry_wrong_cards(
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

impl Context {
    fn memory_of(&self, uid: &str) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    fn gateway_taken(&self, namespace: &str) -> Vec<String> {
        let all = self.taken_gateways.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(namespace).cloned().unwrap_or_default()
    }

    fn remember(&self, object: &AtlasModel, change: impl FnOnce(&mut Memory)) {
        let Some(uid) = object.uid() else { return };
        change(self.memory.lock().unwrap_or_else(PoisonError::into_inner).entry(uid).or_default());
    }

    /// Forgets models that are gone, whichever way they were deleted.
    pub fn forget_gone(&self) {
        if !self.stores.take_models_gone() {
            return;
        }
        let models = self.stores.models.state();
        let uids: HashSet<&str> = models.iter().filter_map(|model| model.metadata.uid.as_deref()).collect();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.retain(|uid, _| uids.contains(uid.as_str()));
        drop(memory);
        self.metrics.forget_models(|namespace, name| {
            models.iter().any(|m| m.metadata.namespace.as_deref() == Some(namespace) && m.name_any() == name)
        });
    }

    /// Moves that were not told yet.
    fn news(&self, uid: &str, mut moves: Vec<Move>) -> Vec<Move> {
        let mut all = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = all.entry(uid.to_owned()).or_default();
        let told = memory.last_failback.unwrap_or(self.started);
        moves.retain(|m| m.kind == MoveKind::FailedOver || m.at > told);
        if let Some(last) = moves.iter().filter(|m| m.kind == MoveKind::FailedBack).map(|m| m.at).max() {
            memory.last_failback = Some(last);
        }
        moves
    }
}

/// When a failed reconcile is tried again.
pub fn on_error(object: Arc<AtlasModel>, error: &ReconcileError, context: Arc<Context>) -> Action {
    context.metrics.errors.with_label_values(&[CONTROLLER, error.label()]).inc();
    match error.retry() {
        Retry::Never => {
            tracing::error!(
                model = object.name_any(),
                error = error as &dyn std::error::Error,
                "reconcile failed for good"
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
                error = error as &dyn std::error::Error,
                "reconcile failed"
            );
            Action::requeue(backoff(tries))
        }
    }
}
