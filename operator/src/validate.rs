//! From the specification to a model that the rest of the pipeline need not doubt.
//!
//! After this stage nobody reads `spec`. A field that the code does not act on yet is refused here by name.

use std::{fmt, sync::Arc, time::Duration};

use atlas_crds::{
    AtlasModel, GpuProfile, ModelSource,
    model::{EngineOverrides, ExposeType, FailoverMode, RolloutStrategy, Standby},
    profile::{Allocation, Backend},
    quantity::parse_bytes,
};
use kube::ResourceExt;

use crate::credentials::Wanted;

/// A model whose every field is acted on, with its profiles.
#[derive(Debug, Clone)]
pub struct ValidatedModel {
    /// Name of the object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid, for owner references.
    pub uid: String,
    /// Generation of the specification that this was made from.
    pub generation: i64,
    /// Further model ids.
    pub aliases: Vec<String>,
    /// Tiers in order of preference.
    pub tiers: Vec<ValidatedTier>,
    /// Whether every engine is taken down.
    pub suspended: bool,
    /// Tier that serves whatever its health.
    pub pinned: Option<String>,
    /// How changes roll.
    pub strategy: RolloutStrategy,
    /// Longest time from a change to its readiness.
    pub ready_timeout: Duration,
    /// Grace of an engine.
    pub drain_timeout: Duration,
    /// Longest request.
    pub request_timeout: Duration,
    /// Waiting requests per engine.
    pub queue: i32,
    /// Largest body.
    pub max_body_bytes: u64,
    /// Type of the Service.
    pub service_type: &'static str,
}

/// One tier.
#[derive(Debug, Clone)]
pub struct ValidatedTier {
    /// Its name.
    pub name: String,
    /// Its card.
    pub profile: Arc<GpuProfile>,
    /// The model file's name as clients see it.
    pub display_name: String,
    /// The source as it was written.
    pub source: String,
    /// The same, read.
    pub parsed_source: ModelSource,
    /// Its file as whoever reads its header asks for it.
    pub wanted: Wanted,
    /// Checksum.
    pub sha256: Option<String>,
    /// Context window.
    pub context_tokens: i32,
    /// Sequences at once.
    pub max_batch: i32,
    /// Wanted pods.
    pub replicas: i32,
    /// How ready it is kept while a tier before it serves; the first tier is always hot.
    pub standby: Standby,
    /// Overrides of the container.
    pub engine: EngineOverrides,
    /// What it asks of the model.
    pub setting: atlas_operator_core::vram::Setting,
    /// Bytes of the card that it may use, where the profile's quantities can be read.
    pub available_bytes: Option<u64>,
}

/// Why a specification is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A tier names a profile that does not exist.
    ProfileNotFound {
        /// The tier.
        tier: String,
        /// The profile it names.
        profile: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// A tier asks for more than its profile allows.
    BatchTooLarge {
        /// The tier.
        tier: String,
        /// What it asks for.
        batch: i32,
        /// The profile.
        profile: String,
        /// What the profile allows.
        allowed: i32,
    },
    /// A field that nothing acts on yet.
    NotImplemented {
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
        /// What works today.
        remedy: &'static str,
    },
    /// A profile allocates by claims, and the cluster does not know them.
    ClaimsNotServed {
        /// The tier.
        tier: String,
        /// The profile.
        profile: String,
    },
    /// A warm tier whose model cache ends with each pod.
    NoWarmCache {
        /// The tier.
        tier: String,
        /// Its profile.
        profile: String,
    },
    /// A source that cannot be read.
    InvalidSource {
        /// The tier.
        tier: String,
        /// Why.
        error: atlas_crds::source::SourceError,
    },
    /// A quantity that is no number of bytes.
    InvalidQuantity {
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
    },
}

impl Refusal {
    /// The reason in the condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ProfileNotFound { .. } => "ProfileNotFound",
            Self::BatchTooLarge { .. } => "BatchTooLarge",
            Self::NotImplemented { .. } => "NotImplemented",
            Self::ClaimsNotServed { .. } => "ClaimsNotServed",
            Self::NoWarmCache { .. } => "NoWarmCache",
            Self::InvalidSource { .. } => "InvalidSource",
            Self::InvalidQuantity { .. } => "InvalidQuantity",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProfileNotFound { tier, profile, known } => {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                write!(
                    f,
                    "tier {tier}: GpuProfile {profile:?} does not exist (there are: {known}): create it, or use one of these"
                )
            }
            Self::BatchTooLarge { tier, batch, profile, allowed } => write!(
                f,
                "tier {tier}: maxBatch {batch} is above the {allowed} of GpuProfile {profile}: lower tiers[].maxBatch, or raise maxBatch of the profile"
            ),
            Self::NotImplemented { field, value, remedy } => {
                write!(f, "{field}: {value} is not implemented yet: {remedy}")
            }
            Self::ClaimsNotServed { tier, profile } => write!(
                f,
                "tier {tier}: GpuProfile {profile} has allocation ResourceClaim, and this cluster does not serve {}: use Kubernetes 1.34 or later (restart the operator after an upgrade), or allocation DevicePlugin",
                atlas_crds::names::CLAIMS_API
            ),
            Self::NoWarmCache { tier, profile } => write!(
                f,
                "tier {tier}: standby Warm keeps weights on nodes, and the model cache of GpuProfile {profile} ends with each pod: set modelCache.hostPath or modelCache.claim of the profile, or use Hot or Cold"
            ),
            Self::InvalidSource { tier, error } => write!(f, "tier {tier}: {error}"),
            Self::InvalidQuantity { field, value } => {
                write!(f, "{field}: {value:?} is no number of bytes: write for example 8Mi")
            }
        }
    }
}

/// Checks that the cluster can allocate what the model's profiles ask for.
///
/// # Errors
///
/// Every tier whose profile allocates by claims, where the cluster serves none.
pub fn check_claims(model: ValidatedModel, serves_claims: bool) -> Result<ValidatedModel, Vec<Refusal>> {
    let claimed = model.tiers.iter().filter(|tier| tier.profile.spec.allocation == Allocation::ResourceClaim);
    let refusals: Vec<Refusal> = claimed
        .filter(|_| !serves_claims)
        .map(|tier| Refusal::ClaimsNotServed { tier: tier.name.clone(), profile: tier.profile.name_any() })
        .collect();
    if refusals.is_empty() { Ok(model) } else { Err(refusals) }
}

/// Checks a model against the profiles that exist.
///
/// # Errors
///
/// Every refusal, in the order of the specification.
pub fn validate(model: &AtlasModel, profiles: &[Arc<GpuProfile>]) -> Result<ValidatedModel, Vec<Refusal>> {
    let spec = &model.spec;
    let mut refusals = Vec::new();
    let mut not_implemented = |field: &str, value: &str, remedy| {
        refusals.push(Refusal::NotImplemented { field: field.to_owned(), value: value.to_owned(), remedy });
    };
    let service_type = match spec.expose.type_ {
        ExposeType::ClusterIP => "ClusterIP",
        ExposeType::NodePort => "NodePort",
        ExposeType::LoadBalancer => "LoadBalancer",
        ExposeType::HTTPRoute => {
            not_implemented(
                "expose.type",
                "HTTPRoute",
                "use ClusterIP and write the HTTPRoute to the Service by hand",
            );
            "ClusterIP"
        }
    };
    let max_body_bytes = parse_bytes(&spec.requests.max_body_bytes).unwrap_or_else(|| {
        refusals.push(Refusal::InvalidQuantity {
            field: "requests.maxBodyBytes".to_owned(),
            value: spec.requests.max_body_bytes.0.clone(),
        });
        0
    });
    let mut tiers = Vec::with_capacity(spec.tiers.len());
    for (index, tier) in spec.tiers.iter().enumerate() {
        match validate_tier(model, index, tier, profiles) {
            Ok(tier) => tiers.push(tier),
            Err(mut more) => refusals.append(&mut more),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    Ok(ValidatedModel {
        name: model.name_any(),
        namespace: model.namespace().unwrap_or_default(),
        uid: model.uid().unwrap_or_default(),
        generation: model.metadata.generation.unwrap_or_default(),
        aliases: spec.aliases.clone(),
        tiers,
        suspended: spec.suspend,
        pinned: match spec.failover.mode {
            FailoverMode::Auto => None,
            FailoverMode::Pinned => spec.failover.pinned_tier.clone(),
        },
        strategy: spec.rollout.strategy,
        ready_timeout: spec.rollout.ready_timeout.into(),
        drain_timeout: spec.rollout.drain_timeout.into(),
        request_timeout: spec.requests.timeout.into(),
        queue: spec.requests.queue,
        max_body_bytes,
        service_type,
    })
}

fn validate_tier(
    model: &AtlasModel,
    index: usize,
    tier: &atlas_crds::Tier,
    profiles: &[Arc<GpuProfile>],
) -> Result<ValidatedTier, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let field = |name: &str| format!("tiers[{}].{name}", tier.name);
    let source = match tier.model.source.parse::<ModelSource>() {
        Ok(source) => Some(source),
        Err(error) => {
            refusals.push(Refusal::InvalidSource { tier: tier.name.clone(), error });
            None
        }
    };
    let profile = profiles.iter().find(|profile| profile.name_any() == tier.gpu_profile);
    match profile {
        None => {
            let mut known: Vec<String> = profiles.iter().map(|profile| profile.name_any()).collect();
            known.sort();
            refusals.push(Refusal::ProfileNotFound {
                tier: tier.name.clone(),
                profile: tier.gpu_profile.clone(),
                known,
            });
        }
        Some(profile) => {
            let cache = &profile.spec.model_cache;
            if index > 0
                && tier.standby == Standby::Warm
                && cache.host_path.is_none()
                && cache.claim.is_none()
            {
                refusals.push(Refusal::NoWarmCache { tier: tier.name.clone(), profile: profile.name_any() });
            }
            if tier.cpu_offload_layers > 0 && profile.spec.backend == Backend::Cpu {
                refusals.push(Refusal::NotImplemented {
                    field: field("cpuOffloadLayers"),
                    value: tier.cpu_offload_layers.to_string(),
                    remedy: "leave it out: all layers of this profile are on the processor",
                });
            }
            if tier.max_batch > profile.spec.max_batch {
                refusals.push(Refusal::BatchTooLarge {
                    tier: tier.name.clone(),
                    batch: tier.max_batch,
                    profile: profile.name_any(),
                    allowed: profile.spec.max_batch,
                });
            }
        }
    }
    match (source, profile) {
        (Some(source), Some(profile)) if refusals.is_empty() => Ok(ValidatedTier {
            name: tier.name.clone(),
            profile: Arc::clone(profile),
            display_name: source.display_name().to_owned(),
            source: tier.model.source.clone(),
            wanted: Wanted::of(&model.namespace().unwrap_or_default(), &tier.model),
            parsed_source: source,
            sha256: tier.model.sha256.clone(),
            context_tokens: tier.context_tokens,
            max_batch: tier.max_batch,
            replicas: if index == 0 { model.spec.replicas } else { tier.replicas.unwrap_or(1) },
            standby: if index == 0 { Standby::Hot } else { tier.standby },
            engine: tier.engine.clone().unwrap_or_default(),
            setting: crate::fit::setting_of(tier),
            available_bytes: atlas_operator_core::vram::available_bytes(&profile.spec, tier),
        }),
        _ => Err(refusals),
    }
}
