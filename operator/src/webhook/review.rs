//! What is said of an AtlasModel before it is stored: a refusal of what is known not to fit, warnings of the rest.
//!
//! Pure. It refuses only what this very change makes wrong, and nothing that another order of `kubectl apply` would
//! make right: an unknown profile may come next.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile, Tier};
use atlas_operator_core::vram::{
    Calibrations, Card, ModelShape, Question, VramPlan, available_bytes, plan_vram,
};
use kube::ResourceExt;

use crate::{
    credentials::Wanted,
    fit::{Cards, describe_misfit, other_profiles, setting_of},
    headers::Known,
    validate::{Refusal, validate},
};

/// Models of this many weights and more exceed every card that there is a profile for.
const EXPERIMENTAL_PARAMETERS: u64 = 60_000_000_000;
/// What the names of such files say.
const EXPERIMENTAL_NAMES: [&str; 3] = ["65b", "70b", "72b"];

/// What the API server is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opinion {
    /// Why it is refused.
    pub refusal: Option<String>,
    /// What the client is told although it is accepted.
    pub warnings: Vec<String>,
}

/// What is known besides the object.
pub struct Knowledge<'a> {
    /// Every profile.
    pub profiles: &'a [Arc<GpuProfile>],
    /// What the header of a source says, where it was read before.
    pub header: &'a dyn Fn(&Wanted) -> Option<Arc<Known>>,
}

/// Judges a model that is created, or changed from `old`.
#[must_use]
pub fn review(model: &AtlasModel, old: Option<&AtlasModel>, known: &Knowledge<'_>) -> Opinion {
    let mut opinion = Opinion::default();
    if model.metadata.deletion_timestamp.is_some() || old.is_some_and(|old| old.spec == model.spec) {
        return opinion;
    }
    opinion.warnings.extend(not_acted_on(model, known.profiles));
    let mut misfits = Vec::new();
    for tier in &model.spec.tiers {
        let field = format!("spec.tiers[{}]", tier.name);
        opinion.warnings.extend(own_cards(&field, tier, known.profiles));
        let namespace = model.metadata.namespace.as_deref().unwrap_or_default();
        let header = (known.header)(&Wanted::of(namespace, &tier.model));
        opinion.warnings.extend(experimental(&field, tier, header.as_deref()));
        let Some(profile) = known.profiles.iter().find(|profile| profile.name_any() == tier.gpu_profile)
        else {
            opinion.warnings.push(unknown_profile(&field, tier, known.profiles));
            continue;
        };
        // What an engine read may lie elsewhere by now, so it is no reason to refuse.
        let told = header.is_none();
        let reported = || {
            let shape = Arc::new(ModelShape::reported(old?, tier)?);
            Some(Arc::new(Known { shape, other_files: Vec::new() }))
        };
        let header = header.or_else(reported);
        let Some(plan) = header.and_then(|header| plan_raw(tier, profile, known.profiles, &header)) else {
            continue;
        };
        if !plan.fits {
            let text = format!("{field}: {}", describe_misfit(&profile.spec.product, &plan));
            // What was so before, or does not start, is no reason to refuse what else is changed.
            if told || model.spec.suspend || old.is_some_and(|old| asked_for_before(tier, old)) {
                opinion.warnings.push(text);
            } else {
                misfits.push(text);
            }
        }
    }
    if !misfits.is_empty() {
        opinion.refusal = Some(misfits.join("; "));
    }
    opinion
}

/// What condition Accepted is going to say, but for profiles that may come next.
fn not_acted_on(model: &AtlasModel, profiles: &[Arc<GpuProfile>]) -> Vec<String> {
    // What is valid has no refusals; they are what this is about, and no failure.
    let refusals = validate(model, profiles).err().unwrap_or_default();
    let refusals = refusals.iter().filter(|refusal| !matches!(refusal, Refusal::ProfileNotFound { .. }));
    refusals.map(|refusal| format!("not acted on as it stands: {refusal}")).collect()
}

/// A number of cards that a tier asks for by itself, which the operator decides.
fn own_cards(field: &str, tier: &Tier, profiles: &[Arc<GpuProfile>]) -> Option<String> {
    let resources = tier.engine.as_ref()?.resources.as_ref()?;
    let profile = profiles.iter().find(|profile| profile.name_any() == tier.gpu_profile)?;
    let name = &profile.spec.resource_name;
    let asked =
        [&resources.limits, &resources.requests].into_iter().flatten().find_map(|map| map.get(name))?;
    (asked.0 != "1").then(|| {
        format!("{field}.engine.resources: {name} {:?} is not acted on: an engine has one card; replicas gives the tier more", asked.0)
    })
}

fn experimental(field: &str, tier: &Tier, header: Option<&Known>) -> Option<String> {
    if tier.cpu_offload_layers > 0 {
        return Some(format!(
            "{field}.cpuOffloadLayers: layers on the CPU are experimental, and slow: a smaller model or quantization on the card serves faster"
        ));
    }
    let name = tier.model.source.to_ascii_lowercase();
    let large = match header {
        Some(header) => header.shape.parameters >= EXPERIMENTAL_PARAMETERS,
        None => EXPERIMENTAL_NAMES.iter().any(|size| name.contains(size)),
    };
    large.then(|| {
        format!("{field}.model: models of this size are experimental: no known card holds one without layers on the CPU")
    })
}

fn unknown_profile(field: &str, tier: &Tier, profiles: &[Arc<GpuProfile>]) -> String {
    let mut names: Vec<String> = profiles.iter().map(|profile| profile.name_any()).collect();
    names.sort();
    let there = if names.is_empty() {
        "there are none yet".to_owned()
    } else {
        format!("there are {}", names.join(", "))
    };
    format!(
        "{field}.gpuProfile: GpuProfile {:?} does not exist yet ({there}): the tier waits for it",
        tier.gpu_profile
    )
}

/// Whether a tier of this name wanted the same memory of the same kind of card before.
fn asked_for_before(tier: &Tier, old: &AtlasModel) -> bool {
    old.spec.tiers.iter().any(|before| {
        before.name == tier.name
            && before.gpu_profile == tier.gpu_profile
            && Wanted::of("", &before.model) == Wanted::of("", &tier.model)
            && setting_of(before) == setting_of(tier)
            && before.max_vram == tier.max_vram
    })
}

fn plan_raw(
    tier: &Tier,
    profile: &GpuProfile,
    profiles: &[Arc<GpuProfile>],
    known: &Known,
) -> Option<VramPlan> {
    let calibrations = Calibrations::of(profiles.iter().map(AsRef::as_ref));
    let cards = Cards { profiles, calibrations: &calibrations };
    Some(plan_vram(&Question {
        shape: &known.shape,
        setting: setting_of(tier),
        card: Card {
            available: available_bytes(&profile.spec, tier)?,
            runtime: calibrations.runtime(profile),
        },
        other_profiles: &other_profiles(profile, cards),
        other_files: &known.other_files,
    }))
}
