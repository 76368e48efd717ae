//! What gateways say of themselves, as far as the controller needs it, and what each one said last.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use atlas_operator_core::routing::Cause;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// Answer of a gateway's `/internal/status`, as far as the controller needs it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// What its clock says.
    #[serde(default)]
    pub now: Option<Timestamp>,
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
    pub at: Timestamp,
    /// By how much the controller's clock was ahead of the gateway's when the move was heard of first.
    #[serde(skip)]
    pub ahead: SignedDuration,
}

/// Clocks that differ by less than this are the same: a status is on its way for a while.
const SAME_CLOCK: SignedDuration = SignedDuration::from_secs(1);

impl GatewayStatus {
    /// Notes how far apart the clocks are. A move keeps what was noted when it was heard of first: it would look like
    /// another one each time.
    fn compare_clocks(&mut self, old: Option<&Self>, received: Timestamp) {
        let ahead = self.now.map_or(SignedDuration::ZERO, |now| received.duration_since(now));
        let ahead = if ahead.abs() < SAME_CLOCK { SignedDuration::ZERO } else { ahead };
        for model in &mut self.models {
            let known = old.and_then(|old| old.models.iter().find(|known| known.model == model.model));
            for switch in &mut model.switches {
                let mut known = known.iter().flat_map(|known| &known.switches);
                let known = known.find(|known| (known.seq, known.at) == (switch.seq, switch.at));
                switch.ahead = known.map_or(ahead, |known| known.ahead);
            }
        }
    }
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
    pub(super) fn replace(
        &self,
        key: (String, String),
        mut status: Option<GatewayStatus>,
        received: Timestamp,
    ) -> Vec<Changed> {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = &mut status {
            status.compare_clocks(views.get(&key), received);
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::fold_switches;

    #[test]
    fn a_gateway_whose_clock_is_wrong_tells_of_the_same_move_and_not_of_a_new_one_each_time() {
        let views = GatewayViews::default();
        let second = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let say = |pod: &str, wrong_by: i64, received: i64| {
            let status = json!({
                "now": second(received + wrong_by).to_string(),
                "models": [{"model": "code", "activeTier": "f", "switches": [
                    {"seq": 1, "from": "p", "to": "f", "cause": "Silent", "millis": 700, "at": second(wrong_by).to_string()},
                ]}],
            });
            let status = serde_json::from_value(status).unwrap();
            views.replace(("ns".into(), pod.into()), Some(status), second(received)).len()
        };
        assert_eq!((say("right", 0, 1), say("ahead", 600, 2), say("behind", -600, 1)), (1, 1, 1));
        // Another second of difference, as clocks that are set right have it, is no news.
        assert_eq!((say("right", 0, 60), say("ahead", 600, 61)), (0, 0));
        let (status, moves) = fold_switches(None, &views.of_model("ns", "code"), &["p", "f"]);
        let status = status.unwrap();
        assert_eq!((status.count, moves.len()), (1, 1), "{moves:?}");
        assert!((moves[0].at.duration_since(second(0))).abs() <= SignedDuration::from_secs(1));
    }
}
