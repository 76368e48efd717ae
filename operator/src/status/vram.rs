//! Condition `VramFits` and the planned memory of each tier.

use atlas_crds::{quantity::format_bytes, status::VramStatus};
use atlas_operator_core::{
    tiers::Admission,
    vram::{VramPlan, mebibytes, whole_mebibytes},
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{
    Observed,
    conditions::{Draft, State, draft, planned},
};
use crate::{
    fit::{TierVram, describe_misfit},
    observe::TierPods,
    plan::Plan,
    validate::ValidatedModel,
};

/// Condition `VramFits`, where no engine has spoken against it.
pub fn vram_draft(model: &ValidatedModel, plan: &Plan, pods: &[TierPods]) -> Draft {
    let tiers = || model.tiers.iter().zip(&plan.tiers).zip(pods);
    let misfits: Vec<String> = tiers()
        .filter_map(|((tier, planned), pods)| {
            // An engine that has loaded the very same setting knows better.
            let proven = match planned.vram {
                TierVram::Reported(_) => pods.ready() > 0 || planned.taken_back.is_some(),
                _ => true,
            } && planned.admission == Admission::Run;
            let misfit = planned.vram.plan().filter(|plan| !plan.fits && !proven)?;
            Some(format!("tier {}: {}", tier.name, describe_misfit(&tier.profile.spec.product, misfit)))
        })
        .collect();
    if !misfits.is_empty() {
        return draft(State::False, "DoesNotFit", misfits.join("; "));
    }
    let unread: Vec<String> = tiers()
        .filter(|(_, pods)| pods.ready() == 0)
        .filter_map(|((tier, planned), _)| match &planned.vram {
            TierVram::Planned(_) | TierVram::Reported(_) => None,
            TierVram::Reading(_) => Some(format!("tier {}: its header is being read", tier.name)),
            TierVram::Unread(reason) => Some(format!(
                "tier {}: {reason}; its figures are known once its engine has read the file",
                tier.name
            )),
        })
        .collect();
    if !unread.is_empty() {
        return draft(State::Unknown, "HeaderUnread", unread.join("; "));
    }
    let planned: Vec<String> = tiers()
        .filter_map(|((tier, planned), _)| Some((tier, planned.vram.plan().filter(|plan| plan.fits)?)))
        .map(|(tier, plan)| {
            let tight = if plan.tight { ", tight" } else { "" };
            format!("tier {} needs {}{tight}", tier.name, share(plan))
        })
        .collect();
    if planned.len() < model.tiers.len() {
        return draft(State::True, "EngineChecked", "the engine of every tier loaded its model");
    }
    draft(State::True, "Fits", planned.join("; "))
}

/// What the planner says beside an engine that found too little memory: what would fit, or that it should have.
pub fn memory_advice(observed: &Observed<'_>, tier: &str) -> Option<String> {
    let (model, plan) = planned(observed).ok()?;
    let (tier, planned) = model.tiers.iter().zip(&plan.tiers).find(|(known, _)| known.name == tier)?;
    let plan = planned.vram.plan()?;
    Some(if plan.fits {
        format!("as planned it needs {} of the card", share(plan))
    } else {
        describe_misfit(&tier.profile.spec.product, plan)
    })
}

/// What is needed of what there is.
fn share(plan: &VramPlan) -> String {
    format!("{} of {}", mebibytes(plan.required), mebibytes(plan.available))
}

/// Why a tier has no pods, or keeps old ones, on account of its memory.
pub fn stopped_message(model: &ValidatedModel, plan: &Plan, index: usize) -> Option<String> {
    let (tier, planned) = (model.tiers.get(index)?, plan.tiers.get(index)?);
    if planned.admission != Admission::Stop {
        return None;
    }
    Some(match &planned.vram {
        TierVram::Planned(plan) | TierVram::Reported(plan) => {
            describe_misfit(&tier.profile.spec.product, plan)
        }
        TierVram::Reading(_) | TierVram::Unread(_) => "its model's header is being read".to_owned(),
    })
}

/// A tier's planned memory as the status shows it, with what was measured; the card's share alone where the header is unread.
pub fn vram_status(
    plan: Option<&VramPlan>,
    available: Option<u64>,
    measured: Option<u64>,
) -> Option<VramStatus> {
    let measured = measured.map(quantity);
    let Some(plan) = plan else {
        let available = available.map(format_bytes);
        return available.map(|bytes| VramStatus {
            available: Some(bytes),
            measured,
            ..VramStatus::default()
        });
    };
    Some(VramStatus {
        weights: Some(quantity(plan.need.weights)),
        kv_cache: Some(quantity(plan.need.kv_cache)),
        overhead: Some(quantity(plan.overhead)),
        required: Some(quantity(plan.required)),
        available: Some(format_bytes(plan.available)),
        measured,
        max_context_tokens: i32::try_from(plan.max_context_tokens).ok(),
    })
}

/// The active tier's memory for the printer column: what it needs of what there is.
pub fn vram_column(status: &VramStatus) -> Option<String> {
    let available = &status.available.as_ref()?.0;
    Some(match &status.required {
        Some(required) => format!("{}/{available}", required.0),
        None => format!("?/{available}"),
    })
}

/// Bytes in the whole MiB that messages tell too.
fn quantity(bytes: u64) -> Quantity {
    Quantity(format!("{}Mi", whole_mebibytes(bytes)))
}
