//! From a validated model to its applied objects: which revision of each tier, the plan, and the writes.

use std::collections::BTreeSet;

use atlas_crds::{AtlasModel, GpuProfile, names};
use atlas_operator_core::{
    tiers::{RolloutStep, TierRollout},
    vram::Calibrations,
};
use jiff::Timestamp;
use kube::{ResourceExt, api::DynamicObject};

use crate::{
    apply::{Applied, is_behind},
    context::Context,
    desired::{
        Desired, TEMPLATE_ANNOTATION, build_objects, build_pod_template, excluded_nodes, kept_runtime,
    },
    error::ReconcileError,
    fit::{Cards, HeaderSources, is_refused, plan_tiers},
    headers::Headers,
    kinds::Kind,
    observe::{TierPods, view_rollout},
    ownership::Ownership,
    plan::{Placement, Plan, PlanInputs, TierState, Word, plan},
    probe::GatewayModel,
    reconcile::Inputs,
    reports::Reports,
    revision::revise,
    stores::Stores,
    validate::{ValidatedModel, ValidatedTier},
};

/// Plans and applies an accepted model; nothing where what is seen of it is older than what it made.
///
/// # Errors
///
/// An object cannot be rendered, or the API server refused one.
pub async fn act(
    model: &ValidatedModel,
    inputs: &Inputs,
    tiers: &[TierPods],
    gateways: &[GatewayModel],
    reported: &Reports,
    context: &Context,
) -> Result<Option<(Plan, Applied)>, ReconcileError> {
    let stores = &context.stores;
    let now = Timestamp::now();
    let mut templates = Vec::with_capacity(model.tiers.len());
    let mut states = Vec::with_capacity(model.tiers.len());
    let mut deployments = Vec::with_capacity(model.tiers.len());
    let calibrations = Calibrations::of(inputs.profiles.iter().map(AsRef::as_ref));
    for (tier, pods) in model.tiers.iter().zip(tiers) {
        let name = names::tier_object_name(&model.name, &tier.name);
        let live = stores.read_child(Kind::Deployment, &model.namespace, &name);
        let excluded = keep_from(tier, pods, live.as_ref());
        let wanted =
            build_pod_template(model, tier, &excluded, &context.settings).map_err(ReconcileError::Render)?;
        let record = stores.read_child(Kind::ConfigMap, &model.namespace, &name);
        let mut revision = revise(wanted, live.as_ref(), record.as_ref(), pods, model.generation, now);
        revision.template.runtime = match live.as_ref() {
            // What was planned keeps its figure.
            Some(live) if keeps_plan(live, &revision.template.hash) => kept_runtime(live),
            _ => calibrations.runtime(&tier.profile),
        };
        states.push(TierState {
            started: live.as_ref().is_some_and(|live| replicas_of(live) > 0),
            proven: revision.template.good.is_some(),
            troubled: pods.current().any(|pod| pod.failure.is_some() || pod.unschedulable.is_some()),
            taken_back: revision.taken_back,
        });
        templates.push(revision.template);
        deployments.push(live);
    }
    let rollouts: Vec<TierRollout> = tiers
        .iter()
        .zip(&deployments)
        .zip(&templates)
        .map(|((tier, live), template)| view_rollout(tier, live.as_ref(), &template.hash))
        .collect();
    let plan = plan(
        model,
        &PlanInputs {
            ground: &|profile| stores.ground(profile),
            shares: &|profile, ground| stores.shares(profile, ground),
            nodes: &inputs.nodes,
            pods: tiers,
            others: &inputs.others,
            rollouts: &rollouts,
            states: &states,
            word: Word::of(gateways, tiers),
            vram: plan_tiers(
                model,
                Cards { profiles: &inputs.profiles, calibrations: &calibrations },
                &templates.iter().map(|template| template.runtime).collect::<Vec<_>>(),
                HeaderSources { read: context.headers.as_ref(), reported },
            ),
        },
    );
    for (tier, planned) in model.tiers.iter().zip(&plan.tiers) {
        stores.note_contention(&tier.profile.name_any(), planned.contended);
    }
    stores.note_waiting(&model.namespace, &model.name, waits_for(model, &plan, tiers));
    // A tier that waits keeps its live template, so that everything else of it can still change.
    for ((planned, live), template) in plan.tiers.iter().zip(&deployments).zip(&mut templates) {
        if let (RolloutStep::Hold(_), Some(live)) = (&planned.step, live) {
            template.body = live.data.pointer("/spec/template").cloned().unwrap_or_default();
            template.hash = live.annotations().get(TEMPLATE_ANNOTATION).cloned().unwrap_or_default();
            template.runtime = kept_runtime(live);
        }
    }
    let mut desired: Vec<Desired> =
        build_objects(model, &plan, templates, &context.settings).map_err(ReconcileError::Render)?;
    if is_behind(&desired, model, stores) {
        return Ok(None);
    }
    for object in &mut desired {
        object.note_generation(model.generation);
        // What was seen may be old, and then so is what was made of it: the API server refuses it, and an engine that
        // serves is not rolled.
        let mut seen = deployments.iter().flatten();
        let live = seen.find(|live| object.kind == Kind::Deployment && live.name_any() == object.name);
        if let Some(version) = live.and_then(|live| live.resource_version()) {
            object.expect_version(&version);
        }
    }
    let mut applied = context
        .applier
        .apply_objects(&desired, Ownership::ControlledBy { model: &model.name, uid: &model.uid })
        .await
        .map_err(ReconcileError::Apply)?;
    let kept = context
        .applier
        .delete_leftovers(&model.namespace, &model.name, &model.uid, &desired)
        .await
        .map_err(ReconcileError::Apply)?;
    applied.refused.extend(kept);
    Ok(Some((plan, applied)))
}

/// Nodes that a tier's pods are kept from. While one of them serves, that is what it was: no pod rolls for another's sake.
fn keep_from(tier: &ValidatedTier, pods: &TierPods, live: Option<&DynamicObject>) -> Vec<String> {
    match live {
        Some(live) if pods.ready() > 0 => excluded_nodes(&live.data),
        _ => {
            let status = || tier.profile.status.iter();
            let wrong = status().flat_map(|s| &s.excluded).filter(|node| node.active).map(|node| &node.name);
            let failed = status().flat_map(|s| &s.card_faults).filter(|f| f.active).map(|f| &f.node);
            let nodes: BTreeSet<&String> = wrong.chain(failed).collect();
            nodes.into_iter().cloned().collect()
        }
    }
}

/// Whether a Deployment asks for pods of this very template.
fn keeps_plan(live: &DynamicObject, hash: &str) -> bool {
    replicas_of(live) > 0 && live.annotations().get(TEMPLATE_ANNOTATION).is_some_and(|live| live == hash)
}

/// Whether a tier of any model is known not to fit a card of this profile, also as it was planned when it started.
#[must_use]
pub fn is_known_misfit(
    tier: (&AtlasModel, usize),
    profile: &GpuProfile,
    calibrations: &Calibrations,
    headers: &Headers,
    stores: &Stores,
) -> bool {
    let (model, index) = tier;
    is_refused(model, index, profile, calibrations.runtime(profile), headers)
        && started_runtime(stores, model, index)
            .is_none_or(|kept| is_refused(model, index, profile, kept, headers))
}

/// The runtime's share that a tier of any model was planned with, where it asks for pods.
fn started_runtime(stores: &Stores, model: &AtlasModel, index: usize) -> Option<u64> {
    let name = names::tier_object_name(&model.name_any(), &model.spec.tiers.get(index)?.name);
    let live = stores.child(Kind::Deployment, &model.namespace()?, &name)?;
    (live.replicas() > 0).then(|| kept_runtime(&*live))
}

/// Pods that a Deployment asks for.
fn replicas_of(live: &DynamicObject) -> i32 {
    let replicas = live.data.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
    i32::try_from(replicas).unwrap_or(i32::MAX)
}

/// The profiles for whose cards or nodes pods of the model wait.
fn waits_for(model: &ValidatedModel, plan: &Plan, tiers: &[TierPods]) -> BTreeSet<String> {
    let tiers = model.tiers.iter().zip(&plan.tiers).zip(tiers);
    let waiting = tiers.filter(|((_, planned), pods)| {
        let bound = pods.current().filter(|pod| pod.node.is_some()).count();
        planned.placement != Placement::Possible
            || i32::try_from(bound).is_ok_and(|bound| bound < planned.wanted)
    });
    waiting.map(|((tier, _), _)| tier.profile.name_any()).collect()
}
