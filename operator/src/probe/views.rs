//! What gateways say of themselves, as far as the controller needs it, and what each one said last.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use atlas_operator_core::routing::Cause;
use serde::Deserialize;

/// Answer of a gateway's `/internal/status`, as far as the controller needs it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Every model of its namespace.
    #[serde(default)]
    pub models: Vec<GatewayModel>,
}

/// One model as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayModel {
    /// Name of the AtlasModel.
    pub model: String,
    /// The tier that it sends requests to.
    pub active_tier: Option<String>,
    /// The engines that it knows.
    #[serde(default)]
    pub endpoints: Vec<GatewayEndpoint>,
    /// Its last moves.
    #[serde(default)]
    pub switches: Vec<Switch>,
    /// Why the certificate that its Secret holds cannot be used.
    #[serde(default)]
    pub certificate_problem: Option<String>,
    /// That it has no older one either, and lets no client in.
    #[serde(default)]
    pub lets_nobody_in: bool,
}

/// Health of an endpoint that takes requests, as a gateway writes it.
pub const HEALTHY: &str = "Healthy";
/// Health of an endpoint that was not asked yet.
const UNKNOWN: &str = "Unknown";

/// One engine as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayEndpoint {
    /// Its tier.
    pub tier: String,
    /// `Unknown`, [`HEALTHY`] or `Unhealthy`.
    pub health: String,
    /// Why it is not healthy.
    pub cause: Option<String>,
    /// The model file that it serves.
    #[serde(default)]
    pub model_file: Option<String>,
    /// Its context window.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// Sequences that it generates at once.
    #[serde(default)]
    pub max_batch: Option<u64>,
    /// What it uses of its card, where it has one.
    #[serde(default)]
    pub vram: Option<EndpointVram>,
}

impl GatewayEndpoint {
    /// Whether the gateway found out for itself how the engine is. That a pod is not ready it has from Kubernetes alone, whose
    /// own word may be newer.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.health != UNKNOWN && self.cause.as_deref() != Some(Cause::PodNotReady.as_str())
    }
}

/// What an engine uses of its card.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointVram {
    /// Target of the card.
    pub gfx_target: String,
    /// Highest use by the engine itself.
    pub own_peak_bytes: u64,
    /// Weights on the card.
    pub weight_bytes: u64,
    /// KV cache on the card.
    pub kv_cache_bytes: u64,
}

/// One move of a gateway from one tier to another.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Switch {
    /// Number of the move.
    pub seq: u64,
    /// Where requests went before.
    pub from: Option<String>,
    /// Where they go since.
    pub to: Option<String>,
    /// Why.
    pub cause: Option<String>,
    /// From the first sign of trouble to the move.
    #[serde(default)]
    pub millis: i64,
    /// When.
    pub at: jiff::Timestamp,
}

/// A model of which a gateway tells something else than before.
pub(super) struct Changed {
    /// The model.
    pub(super) model: String,
    /// Whether that concerns what engines use of their cards.
    pub(super) measured: bool,
}

/// What each gateway said last, by namespace and pod.
#[derive(Debug, Default)]
pub struct GatewayViews(Mutex<BTreeMap<(String, String), GatewayStatus>>);

impl GatewayViews {
    /// What the gateways of a namespace say of one model, by pod.
    #[must_use]
    pub fn of_model(&self, namespace: &str, model: &str) -> Vec<GatewayModel> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views
            .iter()
            .filter(|((at, _), _)| at == namespace)
            .filter_map(|(_, status)| status.models.iter().find(|m| m.model == model).cloned())
            .collect()
    }

    /// Every engine that tells what it uses of its card, with its namespace and model.
    #[must_use]
    pub fn measured(&self) -> Vec<(String, String, GatewayEndpoint)> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let models = views.iter().flat_map(|((at, _), status)| status.models.iter().map(move |m| (at, m)));
        let engines = models.flat_map(|(at, model)| model.endpoints.iter().map(move |e| (at, model, e)));
        let measured = engines.filter(|(_, _, engine)| engine.vram.is_some());
        measured.map(|(at, model, engine)| (at.clone(), model.model.clone(), engine.clone())).collect()
    }

    /// Takes a new answer and names the models whose part of it changed.
    pub(super) fn replace(&self, key: (String, String), status: Option<GatewayStatus>) -> Vec<Changed> {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match status.clone() {
            Some(status) => views.insert(key, status),
            None => views.remove(&key),
        };
        let (old, new) =
            (old.map(|s| s.models).unwrap_or_default(), status.map(|s| s.models).unwrap_or_default());
        let gone = old.iter().filter(|m| !new.iter().any(|n| n.model == m.model));
        let changed = new.iter().filter(|m| !old.contains(m)).chain(gone);
        let measured = |models: &[GatewayModel], name: &str| -> Vec<Option<EndpointVram>> {
            let engines = models.iter().filter(|m| m.model == name).flat_map(|m| &m.endpoints);
            engines.map(|engine| engine.vram.clone()).collect()
        };
        changed
            .map(|m| Changed {
                model: m.model.clone(),
                measured: measured(&old, &m.model) != measured(&new, &m.model),
            })
            .collect()
    }

    /// Every gateway that is heard of, by namespace and pod.
    pub(super) fn known(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
