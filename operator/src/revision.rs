//! Which revision of a tier's pod template is wanted: the specification's, or the last good one where that one failed.
//!
//! What it remembers lies in a ConfigMap of the tier, so it survives the operator.

use std::time::Duration;

use atlas_operator_core::{
    tiers::{Failure, PodTrouble, RevisionChoice, RevisionState, Revisions, choose_revision, judge_revision},
    vram::RUNTIME_BYTES,
};
use jiff::Timestamp;
use kube::{ResourceExt, api::DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    desired::{TEMPLATE_ANNOTATION, Template, config, template_hash},
    observe::{DeploymentView, PodView, TierPods},
};

/// A template that was good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Good {
    hash: String,
    template: Value,
}

/// A revision that was taken back, as its record holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TakenBack {
    hash: String,
    generation: i64,
    reason: String,
}

/// The template that a tier should have.
pub struct TierRevision {
    /// The template.
    pub template: Template,
    /// The change that was taken back, where one was.
    pub taken_back: Option<Failure>,
}

/// Chooses a tier's template.
#[must_use]
pub fn revise(
    wanted: Value,
    live: Option<&DynamicObject>,
    record: Option<&DynamicObject>,
    pods: &TierPods,
    generation: i64,
    now: Timestamp,
) -> TierRevision {
    let hash = template_hash(&wanted);
    let fresh = |body, hash| Template { body, hash, runtime: RUNTIME_BYTES, good: None, taken_back: None };
    // What is remembered outlives the Deployment: one that is deleted or hidden by hand comes back as it was.
    let live_hash =
        live.and_then(|live| live.annotations().get(TEMPLATE_ANNOTATION).cloned()).unwrap_or_default();
    let known: Option<Good> = read(record, config::GOOD);
    let failed = read::<TakenBack>(record, config::TAKEN_BACK).map(|taken| Failure {
        hash: taken.hash,
        generation: taken.generation,
        reason: taken.reason,
    });
    let state = live.map_or(RevisionState::Underway, |live| {
        let view = DeploymentView::read(live);
        judge_revision(view.complete, view.overdue, &troubles(live, pods, now))
    });
    let good = match state {
        // As it was rendered, where that can be had: what the API server adds to it is not ours to remember.
        RevisionState::Good
            if known.as_ref().is_none_or(|known| {
                known.hash != live_hash || (live_hash == hash && known.template != wanted)
            }) =>
        {
            let template = if live_hash == hash {
                wanted.clone()
            } else {
                live.and_then(|live| live.data.pointer("/spec/template").cloned()).unwrap_or_default()
            };
            Some(Good { hash: live_hash.clone(), template })
        }
        _ => known,
    };
    let choice = choose_revision(&Revisions {
        wanted: &hash,
        live: &live_hash,
        good: good.as_ref().map(|good| good.hash.as_str()),
        failed: failed.as_ref(),
        state: &state,
        generation,
    });
    let (mut template, taken_back) = match (choice, &good) {
        (RevisionChoice::LastGood(failure), Some(good)) => {
            (fresh(good.template.clone(), good.hash.clone()), Some(failure))
        }
        _ => (fresh(wanted, hash), None),
    };
    template.good = good.as_ref().map(write);
    template.taken_back = taken_back.as_ref().map(|failure| {
        write(&TakenBack {
            hash: failure.hash.clone(),
            generation: failure.generation,
            reason: failure.reason.clone(),
        })
    });
    TierRevision { template, taken_back }
}

/// What is wrong with the pods of the live template.
fn troubles(live: &DynamicObject, pods: &TierPods, now: Timestamp) -> Vec<PodTrouble> {
    let pointer = format!("/spec/template/metadata/annotations/{}", TEMPLATE_ANNOTATION.replace('/', "~1"));
    let revision = live.data.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
    let mut of_revision = pods.current().filter(|pod| pod.template == revision).peekable();
    // Where some of its pods are made, what keeps the others away is no fault of the change.
    let refused = pods.refused.as_ref().filter(|_| of_revision.peek().is_none()).map(|refused| {
        let age = refused.since.map_or(Duration::ZERO, |at| now.duration_since(at).unsigned_abs());
        PodTrouble::NotStarted { reason: format!("the API server refuses its pods: {}", refused.said), age }
    });
    of_revision.filter(|pod| !pod.ready).filter_map(|pod| trouble(pod, now)).chain(refused).collect()
}

fn trouble(pod: &PodView, now: Timestamp) -> Option<PodTrouble> {
    if let Some(failure) = &pod.failure {
        return Some(PodTrouble::Ended {
            exit: failure.exit,
            message: failure.message.clone(),
            restarts: pod.restarts,
        });
    }
    let reason = pod.waiting.clone()?;
    let age = pod.created.map_or(Duration::ZERO, |at| now.duration_since(at).unsigned_abs());
    Some(PodTrouble::NotStarted { reason, age })
}

/// A record of ours; what is not readable counts as absent.
fn read<T: for<'de> Deserialize<'de>>(record: Option<&DynamicObject>, key: &str) -> Option<T> {
    serde_json::from_str(record?.data.get("data")?.get(key)?.as_str()?).ok()
}

fn write(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("strings, numbers and JSON are JSON")
}
