//! What gateways say of themselves, as far as the controller needs it, and what each one said last.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

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
}

/// Health of an endpoint that takes requests, as a gateway writes it.
pub const HEALTHY: &str = "Healthy";

/// One engine as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GatewayEndpoint {
    /// Its tier.
    pub tier: String,
    /// `Unknown`, [`HEALTHY`] or `Unhealthy`.
    pub health: String,
    /// Why it is not healthy.
    pub cause: Option<String>,
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

    /// Takes a new answer and names the models whose part of it changed.
    pub(super) fn replace(&self, key: (String, String), status: Option<GatewayStatus>) -> Vec<String> {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match status.clone() {
            Some(status) => views.insert(key, status),
            None => views.remove(&key),
        };
        let (old, new) =
            (old.map(|s| s.models).unwrap_or_default(), status.map(|s| s.models).unwrap_or_default());
        let gone = old.iter().filter(|m| !new.iter().any(|n| n.model == m.model));
        new.iter().filter(|m| !old.contains(m)).chain(gone).map(|m| m.model.clone()).collect()
    }

    /// Every gateway that is heard of, by namespace and pod.
    pub(super) fn known(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
