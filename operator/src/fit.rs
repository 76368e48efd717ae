//! What each tier needs of its card, as far as its header is known.
//!
//! Pure but for the look at what the background has read; nothing here waits.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile};
use atlas_operator_core::{
    tiers::Fit,
    vram::{
        Calibrations, Card, ModelShape, OtherFile, OtherProfile, Question, Setting, VramPlan,
        available_bytes, estimate, mebibytes, plan_vram, profile_bytes,
    },
};
use kube::ResourceExt;

use crate::{
    credentials::Wanted,
    headers::{HeaderState, Headers},
    reports::Reports,
    validate::{ValidatedModel, ValidatedTier},
};

/// Advice in a message: more than this is for `kubectl atlas plan`.
const MAX_ADVICE: usize = 3;

/// A tier's memory.
#[derive(Debug, Clone, PartialEq)]
pub enum TierVram {
    /// Its header is being read.
    Reading(std::time::Duration),
    /// Its header could not be read: why.
    Unread(Arc<str>),
    /// It is planned from its header.
    Planned(Box<VramPlan>),
    /// It is planned from what an engine read in its header, since nobody else can.
    Reported(Box<VramPlan>),
}

impl TierVram {
    /// The short answer.
    #[must_use]
    pub fn fit(&self) -> Fit {
        match self {
            Self::Reading(since) => Fit::Reading(*since),
            Self::Unread(_) => Fit::Unknown,
            Self::Planned(plan) | Self::Reported(plan) if plan.fits => Fit::Fits,
            Self::Planned(_) => Fit::DoesNotFit,
            Self::Reported(_) => Fit::Doubtful,
        }
    }

    /// The plan, where there is one.
    #[must_use]
    pub fn plan(&self) -> Option<&VramPlan> {
        match self {
            Self::Planned(plan) | Self::Reported(plan) => Some(plan),
            Self::Reading(_) | Self::Unread(_) => None,
        }
    }

    /// Whether only an engine can tell what its header says.
    #[must_use]
    pub fn needs_engine(&self) -> bool {
        matches!(self, Self::Unread(_) | Self::Reported(_))
    }
}

/// The profiles, and what the runtime takes of their cards.
#[derive(Clone, Copy)]
pub struct Cards<'a> {
    /// Every profile.
    pub profiles: &'a [Arc<GpuProfile>],
    /// What was measured on them.
    pub calibrations: &'a Calibrations,
}

/// What is known of the headers of a model's files.
#[derive(Clone, Copy)]
pub struct HeaderSources<'a> {
    /// What the operator reads itself, where it does.
    pub read: Option<&'a Arc<Headers>>,
    /// What engines reported, by tier.
    pub reported: &'a Reports,
}

/// Plans every tier of a model, each with the runtime's share that is given for it.
#[must_use]
pub fn plan_tiers(
    model: &ValidatedModel,
    cards: Cards<'_>,
    runtimes: &[u64],
    HeaderSources { read, reported }: HeaderSources<'_>,
) -> Vec<TierVram> {
    let look = |tier: &ValidatedTier| match read {
        Some(headers) => headers.look(&tier.wanted),
        None => HeaderState::Unread(Arc::from("--read-headers=false")),
    };
    let tiers = model.tiers.iter().zip(runtimes);
    tiers.map(|(tier, runtime)| plan_tier(tier, cards, *runtime, look(tier), reported.shape(tier))).collect()
}

fn plan_tier(
    tier: &ValidatedTier,
    cards: Cards<'_>,
    runtime: u64,
    state: HeaderState,
    reported: Option<ModelShape>,
) -> TierVram {
    let Some(available) = tier.available_bytes else {
        return TierVram::Unread(Arc::from("an amount of memory of its profile cannot be read"));
    };
    let plan = |shape: &ModelShape, other_files: &[OtherFile]| {
        Box::new(plan_vram(&Question {
            shape,
            setting: tier.setting,
            card: Card { available, runtime },
            other_profiles: &other_profiles(&tier.profile, cards),
            other_files,
        }))
    };
    match (state, reported) {
        (HeaderState::Read(known), _) => TierVram::Planned(plan(&known.shape, &known.other_files)),
        (HeaderState::Reading(_) | HeaderState::Unread(_), Some(shape)) => {
            TierVram::Reported(plan(&shape, &[]))
        }
        (HeaderState::Reading(since), None) => TierVram::Reading(since),
        (HeaderState::Unread(reason), None) => TierVram::Unread(reason),
    }
}

/// The profiles that a tier could move to.
#[must_use]
pub fn other_profiles(own: &GpuProfile, cards: Cards<'_>) -> Vec<OtherProfile> {
    let name = own.name_any();
    cards
        .profiles
        .iter()
        .filter(|profile| profile.name_any() != name && profile.spec.backend == own.spec.backend)
        .filter_map(|profile| {
            let runtime = cards.calibrations.runtime(profile);
            let card = Card { available: profile_bytes(&profile.spec)?, runtime };
            Some(OtherProfile { name: profile.name_any(), card })
        })
        .collect()
}

/// Whether a tier of any model, planned with this share of the runtime, is known not to fit: such a tier wants no card.
#[must_use]
pub fn is_refused(
    model: &AtlasModel,
    index: usize,
    profile: &GpuProfile,
    runtime: u64,
    headers: &Headers,
) -> bool {
    let Some(tier) = model.spec.tiers.get(index) else { return false };
    let wanted = Wanted::of(model.metadata.namespace.as_deref().unwrap_or_default(), &tier.model);
    let Some(known) = headers.known(&wanted) else { return false };
    let Some(available) = available_bytes(&profile.spec, tier) else { return false };
    estimate(&known.shape, &setting_of(tier), runtime).required() > available
}

/// What a tier asks of its model.
#[must_use]
pub fn setting_of(tier: &atlas_crds::Tier) -> Setting {
    let number = |value: i32| u64::try_from(value).unwrap_or(0);
    Setting {
        context_tokens: number(tier.context_tokens),
        max_batch: number(tier.max_batch),
        kv_cache_type: tier.kv_cache_type,
        offload_layers: number(tier.cpu_offload_layers),
    }
}

/// A plan that does not fit, in one sentence: the numbers, and what would fit.
#[must_use]
pub fn describe_misfit(product: &str, plan: &VramPlan) -> String {
    let mut text = format!(
        "it needs {} of the {} that the {product} offers (weights {}, KV cache {}, overhead {})",
        mebibytes(plan.required),
        mebibytes(plan.available),
        mebibytes(plan.need.weights),
        mebibytes(plan.need.kv_cache),
        mebibytes(plan.overhead),
    );
    let advice: Vec<&str> = plan.advice.iter().take(MAX_ADVICE).map(|advice| advice.text.as_str()).collect();
    if advice.is_empty() {
        text.push_str(": use a smaller model, or a card with more memory");
    } else {
        text.push_str(&format!(": {} would fit", advice.join(", or ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_crds::model::KvCacheType;
    use atlas_operator_core::vram::{LayerShape, ModelShape};

    /// Seven billion weights whose every head has keys of its own.
    fn shape() -> ModelShape {
        let layer = LayerShape { weight_bytes: 116 << 20, key_elements: 4096, value_elements: 4096 };
        ModelShape {
            architecture: "llama".into(),
            quantization: Some("Q4_K_M".into()),
            parameters: 6_700_000_000,
            layers: vec![layer; 32],
            other_weight_bytes: 180 << 20,
            hidden: 4096,
            feed_forward: 11008,
            query_elements: 4096,
            takes_q8_cache: true,
            vocabulary: 32000,
            trained_context: 4096,
            bytes_by_type: [].into(),
        }
    }

    #[test]
    fn a_misfit_is_told_with_numbers_and_what_can_be_done() {
        let setting = Setting {
            context_tokens: 4096,
            max_batch: 1,
            kv_cache_type: KvCacheType::F16,
            offload_layers: 0,
        };
        let plan = plan_vram(&Question {
            shape: &shape(),
            setting,
            card: Card::with_available(5616 << 20),
            other_profiles: &[],
            other_files: &[],
        });
        let text = describe_misfit("Radeon RX 7600", &plan);
        for part in [
            "of the 5,616 MiB that the Radeon RX 7600 offers",
            "KV cache 2,048 MiB",
            "contextTokens 4096 -> ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Half the KV cache is enough here, and what is advised the specification takes.
        assert!(text.contains("kvCacheType F16 -> Q8_0"), "{text}");
        let tiny = VramPlan { advice: Vec::new(), ..plan };
        assert!(describe_misfit("P", &tiny).ends_with("use a smaller model, or a card with more memory"));
    }
}
