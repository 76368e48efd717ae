//! Whether the weights of every tier are where they are wanted: in its engine, or on its nodes while it stands by warm.

use atlas_crds::ModelCondition;

use super::{
    Observed,
    conditions::{Draft, State, draft, failure, failure_draft, planned},
};
use crate::{
    credentials::wanted_keys,
    observe::{Failure, PodView, TierPods},
    plan::TierPlan,
    validate::ValidatedModel,
};

/// What a kubelet says of a container whose Secrets or ConfigMaps are not there.
const NO_CONFIGURATION: &str = "CreateContainerConfigError: ";

/// The condition `ModelCached`.
pub fn model_cached(observed: &Observed<'_>) -> Draft {
    let (model, plan) = match planned(observed) {
        Ok(found) => found,
        Err(unknown) => return unknown,
    };
    if let Some(found) = failure(observed, ModelCondition::ModelCached) {
        return failure_draft(found);
    }
    if let Some(told) = missing_credentials(model, observed.tiers) {
        return told;
    }
    let tiers = || observed.tiers.iter().zip(&plan.tiers);
    let kept = tiers().filter(|(_, planned)| planned.weights > 0);
    if let Some(found) = kept.clone().find_map(|(tier, _)| keeping_failure(tier)) {
        return failure_draft(found);
    }
    let fetching = observed.tiers.iter().find_map(|tier| {
        let engine =
            tier.current().find_map(|pod| pod.engine.as_ref().filter(|engine| engine.phase == "Fetching"))?;
        Some((tier, engine))
    });
    if let Some((tier, engine)) = fetching {
        let download = engine.download.clone().unwrap_or_default();
        let total =
            download.total_bytes.map_or_else(|| "an unknown number of".to_owned(), |total| total.to_string());
        return draft(
            State::False,
            "Downloading",
            format!("tier {}: {} of {total} bytes, try {}", tier.tier, download.bytes, download.attempts),
        );
    }
    if let Some((tier, planned)) = kept.clone().find(|(tier, planned)| tier.keeping() < planned.weights) {
        let message = format!("tier {}: {}", tier.tier, keeping_message(tier, planned));
        return draft(State::False, "KeepingWeights", message);
    }
    let missing: Vec<&str> = tiers()
        .filter(|(tier, planned)| !planned.stands_by && !is_cached(tier))
        .map(|(tier, _)| tier.tier.as_str())
        .collect();
    if missing.is_empty() {
        draft(State::True, "Cached", "the weights of every tier are on their nodes")
    } else {
        draft(
            State::Unknown,
            "NotStarted",
            format!("no engine looked for its weights yet: {}", missing.join(", ")),
        )
    }
}

/// A Secret that is not there, or lacks a key: kubelets do not start a container then, and say why.
fn missing_credentials(model: &ValidatedModel, tiers: &[TierPods]) -> Option<Draft> {
    model.tiers.iter().zip(tiers).find_map(|(tier, pods)| {
        let secret = tier.wanted.file.credentials_secret.as_ref()?;
        let mut waiting = pods.current().chain(&pods.weights).filter_map(|pod| pod.waiting.as_deref());
        let said = waiting.find_map(|waiting| waiting.strip_prefix(NO_CONFIGURATION))?;
        let keys = wanted_keys(&tier.parsed_source);
        let message = format!("tier {}: {said}: its pods need a Secret {secret} with {keys}", tier.name);
        Some(draft(State::False, "CredentialsMissing", message))
    })
}

fn is_cached(tier: &TierPods) -> bool {
    let has_file = |phase: &str| matches!(phase, "Loading" | "WarmingUp" | "Serving");
    let mut engines = tier.current().filter_map(|pod| pod.engine.as_ref());
    tier.ready() > 0 || engines.any(|engine| has_file(&engine.phase))
}

/// How the keeping of a tier's weights failed, whatever the code: nothing else is asked of such a pod.
fn keeping_failure(tier: &TierPods) -> Option<(&TierPods, &PodView, &Failure)> {
    let mut pods = tier.weights.iter().filter(|pod| !pod.terminating);
    pods.find_map(|pod| Some((tier, pod, pod.failure.as_ref()?)))
}

/// How many of the pods that keep a tier's weights have them, and what keeps one of the others from it.
pub fn keeping_message(tier: &TierPods, planned: &TierPlan) -> String {
    let (keeping, wanted) = (tier.keeping(), planned.weights);
    let mut waiting = tier.weights.iter().filter(|pod| !pod.ready && !pod.terminating);
    let why = waiting.find_map(|pod| pod.unschedulable.as_deref().or(pod.waiting.as_deref()));
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    format!("its weights are kept by {keeping} of {wanted} pods{why}")
}
