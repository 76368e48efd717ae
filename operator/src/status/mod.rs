//! The status of a model, computed anew from what was observed.
//!
//! Pure: time is an argument, and nothing is patched piecemeal.

mod cached;
mod conditions;
mod failover;
mod scheduled;
mod serving;
mod vram;

use atlas_crds::{
    AtlasModel, ModelCondition, names,
    status::{AtlasModelStatus, DownloadStatus, TierStatus},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use conditions::{Draft, compute_conditions};
pub use failover::{Move, MoveKind, fold_switches};

use crate::{
    error::RefusedWrite,
    fit::TierVram,
    measure::measured_peak,
    observe::TierPods,
    plan::Plan,
    probe::GatewayModel,
    reports::Reports,
    validate::{Refusal, ValidatedModel},
};

/// The outcome of the stages before `observe`.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// The specification is not acted on.
    Refused(&'a [Refusal]),
    /// It is, up to names that belong to somebody else.
    Planned {
        /// The model.
        model: &'a ValidatedModel,
        /// Its plan.
        plan: &'a Plan,
        /// Objects of a wanted name that are not ours.
        taken: &'a [String],
        /// Objects of a deleted model of the same name that are about to go.
        leaving: &'a [String],
        /// Objects that the API server does not take.
        refused: &'a [RefusedWrite],
    },
}

/// What a status is computed from.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The model as it was read.
    pub object: &'a AtlasModel,
    /// The status before.
    pub previous: &'a AtlasModelStatus,
    /// What was decided.
    pub verdict: Verdict<'a>,
    /// Pods by tier, in the order of the specification.
    pub tiers: &'a [TierPods],
    /// What each gateway says.
    pub gateways: &'a [GatewayModel],
    /// Why no gateway lets clients in, where none does.
    pub no_gateway: Option<&'a str>,
    /// Why there are fewer gateways than there should be, where some let clients in.
    pub fewer_gateways: Option<&'a str>,
    /// What engines told of headers that nobody else reads.
    pub reported: &'a Reports,
    /// The URL's host.
    pub host: String,
    /// What clients speak.
    pub scheme: &'static str,
    /// Name of the Secret with the gateways' certificate, where they speak TLS.
    pub tls_secret: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
}

impl Observed<'_> {
    /// Index of the tier that serves: the gateways' word where there is one, else the first with a ready pod.
    ///
    /// Where gateways differ, the later tier counts: it is the news, or the last that has not moved back yet.
    #[must_use]
    pub fn active_tier(&self) -> Option<usize> {
        let index = |name: &str| self.tiers.iter().position(|tier| tier.tier == name);
        if !self.gateways.is_empty() {
            return self.gateways.iter().filter_map(|g| index(g.active_tier.as_deref()?)).max();
        }
        let pinned = match &self.verdict {
            Verdict::Planned { model, .. } => model.pinned.as_deref().and_then(index),
            Verdict::Refused(_) => None,
        };
        match pinned {
            Some(at) => self.tiers.get(at).filter(|tier| tier.ready() > 0).map(|_| at),
            None => self.tiers.iter().position(|tier| tier.ready() > 0),
        }
    }
}

/// The status, and the moves between tiers that it is the first to count.
#[must_use]
pub fn compute_status(observed: &Observed<'_>) -> (AtlasModelStatus, Vec<Move>) {
    let spec = &observed.object.spec;
    let active = observed.active_tier();
    let validated = |index: usize| match &observed.verdict {
        Verdict::Planned { model, .. } => model.tiers.get(index),
        Verdict::Refused(_) => None,
    };
    let order: Vec<&str> = spec.tiers.iter().map(|tier| tier.name.as_str()).collect();
    let (failover, moves) = fold_switches(observed.previous.failover.as_ref(), observed.gateways, &order);
    let drafts = compute_conditions(observed, active);
    let name = observed.object.name_any();
    let tiers: Vec<TierStatus> = observed
        .tiers
        .iter()
        .enumerate()
        .map(|(index, tier)| {
            tier_status(observed, index, tier, validated(index).and_then(|t| t.available_bytes))
        })
        .collect();
    let accepted = match &observed.verdict {
        Verdict::Planned { taken, leaving, refused, .. } => {
            taken.is_empty() && leaving.is_empty() && refused.iter().all(|write| write.leftover)
        }
        Verdict::Refused(_) => false,
    };
    let status = AtlasModelStatus {
        observed_generation: observed.object.metadata.generation,
        url: accepted.then(|| format!("{}://{}:{}/v1", observed.scheme, observed.host, names::GATEWAY_PORT)),
        active_tier: active.and_then(|index| order.get(index)).map(|tier| (*tier).to_owned()),
        active_model: active.and_then(validated).map(|tier| tier.display_name.clone()),
        active_gpu: active.and_then(validated).map(|tier| tier.profile.spec.product.clone()),
        active_vram: active.and_then(|index| tiers.get(index)?.vram.as_ref()).and_then(vram::vram_column),
        download: download_column(&tiers),
        replicas: observed
            .tiers
            .first()
            .map(|tier| i32::try_from(tier.current().count()).unwrap_or(i32::MAX)),
        selector: order.first().map(|tier| {
            format!(
                "{}={name},{}={tier},{}={}",
                names::LABEL_MODEL,
                names::LABEL_TIER,
                names::LABEL_COMPONENT,
                names::COMPONENT_ENGINE
            )
        }),
        tiers,
        failover,
        conditions: stamp(
            &observed.previous.conditions,
            drafts,
            observed.object.metadata.generation,
            observed.now,
        ),
    };
    (status, moves)
}

fn tier_status(observed: &Observed<'_>, index: usize, tier: &TierPods, available: Option<u64>) -> TierStatus {
    let download =
        tier.current().find_map(|pod| pod.engine.as_ref()?.download.as_ref()).map(|d| DownloadStatus {
            bytes: d.bytes,
            total_bytes: d.total_bytes,
            percent: d
                .total_bytes
                .filter(|total| *total > 0)
                .and_then(|total| i32::try_from(d.bytes.saturating_mul(100) / total).ok()),
            attempts: d.attempts,
        });
    let vram = match &observed.verdict {
        Verdict::Planned { plan, .. } => plan.tiers.get(index).map(|planned| &planned.vram),
        Verdict::Refused(_) => None,
    };
    let source = observed.object.spec.tiers.get(index).map(|tier| tier.model.source.as_str());
    // Where the operator has read the header itself, nobody's word is kept.
    let reported = source.filter(|_| !matches!(vram, Some(TierVram::Planned(_))));
    TierStatus {
        name: tier.tier.clone(),
        node: tier.current().find_map(|pod| pod.node.clone()),
        ready: tier.ready(),
        replicas: match &observed.verdict {
            Verdict::Planned { plan, .. } => plan.tiers.get(index).map_or(0, |planned| planned.wanted),
            Verdict::Refused(_) => 0,
        },
        message: conditions::tier_message(observed, index),
        vram: vram::vram_status(
            vram.and_then(TierVram::plan),
            available,
            measured_peak(observed.gateways, &tier.tier),
        ),
        download,
        header: reported.and_then(|source| observed.reported.of_tier(&tier.tier, source)).cloned(),
    }
}

/// What is being downloaded, for the printer column: tier and percent of each.
fn download_column(tiers: &[TierStatus]) -> Option<String> {
    let parts: Vec<String> = tiers
        .iter()
        .filter_map(|tier| {
            let percent = tier.download.as_ref()?.percent.filter(|percent| *percent < 100)?;
            Some(format!("{} {percent}%", tier.name))
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Turns drafts into conditions; a condition that keeps its status keeps its time.
fn stamp(
    previous: &[Condition],
    drafts: Vec<(ModelCondition, Draft)>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    drafts
        .into_iter()
        .map(|(type_, Draft { state, reason, message })| {
            let before = previous.iter().find(|c| c.type_ == type_.as_str() && c.status == state.as_str());
            Condition {
                type_: type_.as_str().to_owned(),
                status: state.as_str().to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: generation,
                // Seconds are what the API server keeps.
                last_transition_time: before
                    .map_or_else(|| Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// Cuts a time to what the API server keeps of it.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
