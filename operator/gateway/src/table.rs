//! The gateway's view of its namespace: models and the addresses of their engines, parsed once.
//!
//! Pure: AtlasModels and EndpointSlices come in as values. Tests write tables by hand.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use crate::keys::KeyRing;
use atlas_crds::{AtlasModel, ModelSource, model::FailoverMode, names, quantity};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Everything that is served, as the watches last said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelTable {
    /// The models by name.
    pub models: BTreeMap<String, Arc<ModelConfig>>,
    /// Their engines.
    pub endpoints: Vec<EndpointConfig>,
    /// The keys of every Secret that a model names, as far as they were read.
    pub keys: KeyRing,
}

/// One model as requests need it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Its name, which is a model id.
    pub name: String,
    /// Further ids.
    pub aliases: Vec<String>,
    /// Whether every engine was taken down on purpose.
    pub suspended: bool,
    /// The Secret whose keys callers must hold, where they must.
    pub api_keys_secret: Option<String>,
    /// Its tiers, best first.
    pub tiers: Vec<TierConfig>,
    /// The only tier that may serve, in mode Pinned.
    pub pinned_tier: Option<String>,
    /// The tier that the gateways serve from, as the controller last recorded it.
    pub active_tier_hint: Option<String>,
    /// Time without a sign of life after which an engine is lost.
    pub unhealthy_after: Duration,
    /// Unbroken health after which traffic returns to a better tier.
    pub failback_after: Duration,
    /// Whether an engine of another model may go on with a broken stream, where the client does not say.
    pub across_models: bool,
    /// Whether clients may say how urgent a request is.
    pub client_priority: bool,
    /// Web origins whose pages may use it; `*` is all.
    pub cors_origins: Vec<String>,
    /// Longest time of a request.
    pub timeout: Duration,
    /// Requests that may wait for an engine, per engine.
    pub queue: usize,
    /// Largest request body.
    pub max_body_bytes: usize,
}

/// One tier as requests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierConfig {
    /// Its name, for `x-atlas-tier`.
    pub name: String,
    /// Its model file, for `x-atlas-model`.
    pub display_model: String,
    /// Context window in tokens.
    pub context_tokens: u64,
    /// What the controller says about it while it does not serve.
    pub message: Option<String>,
}

/// One engine pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The model that it serves.
    pub model: String,
    /// The tier that it belongs to.
    pub tier: String,
    /// Its API port.
    pub api: SocketAddr,
    /// Its internal port, which is probed.
    pub internal: SocketAddr,
    /// The pod's name, where the slice says.
    pub pod: Option<String>,
    /// The node's name, where the slice says.
    pub node: Option<String>,
    /// Whether Kubernetes counts it as ready.
    pub ready: bool,
}

impl ModelConfig {
    /// Whether clients may use this id for the model.
    #[must_use]
    pub fn answers_to(&self, id: &str) -> bool {
        self.name == id || self.aliases.iter().any(|alias| alias == id)
    }

    /// Every id of the model, the name first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// The model file of a tier, for `x-atlas-model`; empty where there is no such tier.
    #[must_use]
    pub fn display_model(&self, tier: &str) -> &str {
        let known = self.tiers.iter().find(|known| known.name == tier);
        known.map_or("", |known| known.display_model.as_str())
    }

    /// Reads what the gateway needs of an AtlasModel.
    #[must_use]
    pub fn from_model(model: &AtlasModel) -> Self {
        let spec = &model.spec;
        let statuses = model.status.as_ref().map_or(&[][..], |status| &status.tiers);
        let tiers = spec.tiers.iter().map(|tier| TierConfig {
            name: tier.name.clone(),
            display_model: tier
                .model
                .source
                .parse::<ModelSource>()
                .map_or_else(|_| tier.model.source.clone(), |source| source.display_name().to_owned()),
            context_tokens: u64::try_from(tier.context_tokens).unwrap_or(0),
            message: statuses.iter().find(|status| status.name == tier.name).and_then(|s| s.message.clone()),
        });
        let max_body_bytes = quantity::parse_bytes(&spec.requests.max_body_bytes);
        Self {
            name: model.metadata.name.clone().unwrap_or_default(),
            aliases: spec.aliases.clone(),
            suspended: spec.suspend,
            api_keys_secret: spec.access.as_ref().map(|access| access.api_keys_secret.clone()),
            tiers: tiers.collect(),
            pinned_tier: match spec.failover.mode {
                FailoverMode::Auto => None,
                FailoverMode::Pinned => spec.failover.pinned_tier.clone(),
            },
            active_tier_hint: model.status.as_ref().and_then(|status| status.active_tier.clone()),
            unhealthy_after: Duration::from(spec.failover.unhealthy_after),
            failback_after: Duration::from(spec.failover.failback_after),
            across_models: spec.resume.across_models,
            client_priority: spec.requests.client_priority,
            cors_origins: spec.requests.cors_origins.clone(),
            timeout: Duration::from(spec.requests.timeout),
            queue: usize::try_from(spec.requests.queue).unwrap_or(0),
            max_body_bytes: max_body_bytes.and_then(|b| usize::try_from(b).ok()).unwrap_or(8 << 20),
        }
    }
}

impl ModelTable {
    /// Builds the table from what the watches hold; keys are not among it.
    #[must_use]
    pub fn from_objects(models: &[Arc<AtlasModel>], slices: &[Arc<EndpointSlice>]) -> Self {
        let models = models.iter().map(|model| {
            let config = ModelConfig::from_model(model);
            (config.name.clone(), Arc::new(config))
        });
        let mut endpoints: Vec<EndpointConfig> = slices.iter().flat_map(|slice| read_slice(slice)).collect();
        // A pod stands in two slices for a moment when they are rewritten: ready in one of them is ready.
        // In an order of their own: the slices come in any, and an engine that looks another one each time would be given up
        // each time.
        endpoints.sort_by(|a, b| {
            let place = |e: &EndpointConfig| (e.pod.clone(), e.node.clone(), e.internal);
            let key = (&a.model, &a.tier, a.api).cmp(&(&b.model, &b.tier, b.api));
            key.then(b.ready.cmp(&a.ready)).then_with(|| place(b).cmp(&place(a)))
        });
        endpoints.dedup_by(|b, a| {
            let same = (&a.model, &a.tier, a.api) == (&b.model, &b.tier, b.api);
            if same {
                a.pod = a.pod.take().or_else(|| b.pod.take());
                a.node = a.node.take().or_else(|| b.node.take());
            }
            same
        });
        Self { models: models.collect(), endpoints, keys: KeyRing::new() }
    }
}

fn read_slice(slice: &EndpointSlice) -> Vec<EndpointConfig> {
    let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
    let (Some(model), Some(tier)) = (label(names::LABEL_MODEL), label(names::LABEL_TIER)) else {
        return Vec::new();
    };
    let port = |name: &str, default: u16| {
        let mut ports = slice.ports.iter().flatten();
        let found = ports.find(|port| port.name.as_deref() == Some(name)).and_then(|port| port.port);
        found.and_then(|port| u16::try_from(port).ok()).unwrap_or(default)
    };
    let (api, internal) = (port("api", names::ENGINE_PORT), port("internal", names::ENGINE_INTERNAL_PORT));
    let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| {
        endpoint.addresses.iter().filter_map(move |text| Some((endpoint, text.parse().ok()?)))
    });
    addresses
        .map(|(endpoint, ip)| EndpointConfig {
            model: model.clone(),
            tier: tier.clone(),
            api: SocketAddr::new(ip, api),
            internal: SocketAddr::new(ip, internal),
            pod: endpoint.target_ref.as_ref().and_then(|target| target.name.clone()),
            node: endpoint.node_name.clone(),
            // An absent condition means "unknown", which the API says to read as ready.
            ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        let value = json!({
            "metadata": {"name": "s", "labels": {names::LABEL_MODEL: "code", names::LABEL_TIER: "primary"}},
            "addressType": "IPv4",
            "ports": [{"name": "internal", "port": 9001}, {"name": "api", "port": 9000}],
            "endpoints": endpoints,
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn slices_become_endpoints_and_ready_wins_over_a_stale_copy() {
        let old = slice(json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]));
        let new = slice(json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n1",
             "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": ["not an address"]},
        ]));
        let unlabelled = Arc::new(EndpointSlice::default());
        let table = ModelTable::from_objects(&[], &[old, new, unlabelled]);
        let expected = EndpointConfig {
            model: "code".into(),
            tier: "primary".into(),
            api: "10.0.0.1:9000".parse().unwrap(),
            internal: "10.0.0.1:9001".parse().unwrap(),
            pod: Some("p".into()),
            node: Some("n1".into()),
            ready: true,
        };
        assert_eq!(table.endpoints, [expected]);
    }

    #[test]
    fn an_engine_that_stands_in_several_slices_looks_the_same_in_whatever_order_they_come() {
        let bare = slice(json!([{"addresses": ["10.0.0.1"]}]));
        let full = slice(json!([{"addresses": ["10.0.0.1"], "nodeName": "n1",
            "targetRef": {"kind": "Pod", "name": "p"}}]));
        let node =
            slice(json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": null}, "nodeName": "n1"}]));
        let orders = [[&bare, &full, &node], [&full, &node, &bare], [&node, &bare, &full]];
        let tables = orders.map(|order| ModelTable::from_objects(&[], &order.map(Arc::clone)).endpoints);
        assert_eq!(tables[0].len(), 1);
        assert_eq!((tables[0][0].pod.as_deref(), tables[0][0].node.as_deref()), (Some("p"), Some("n1")));
        assert!(tables.iter().all(|table| *table == tables[0]), "{tables:?}");
    }

    #[test]
    fn a_model_keeps_what_requests_need() {
        let model: AtlasModel = serde_json::from_value(json!({
            "metadata": {"name": "code"},
            "spec": {
                "aliases": ["gpt-patch"],
                "tiers": [{"name": "primary", "gpuProfile": "big", "model": {"source": "hf://o/r/big-13b.gguf"}},
                          {"name": "fallback", "gpuProfile": "small", "model": {"source": "nonsense"}}],
                "failover": {"mode": "Pinned", "pinnedTier": "fallback", "unhealthyAfter": "700ms"},
                "requests": {"maxBodyBytes": "1Mi", "timeout": "20s", "queue": 7},
                "access": {"apiKeysSecret": "keys"},
            },
            "status": {"activeTier": "primary", "tiers": [{"name": "fallback", "message": "loading"}]},
        }))
        .unwrap();
        let config = ModelConfig::from_model(&model);
        assert_eq!(config.ids().collect::<Vec<_>>(), ["code", "gpt-patch"]);
        assert_eq!(config.tiers[0].display_model, "big-13b");
        assert_eq!(config.tiers[1].display_model, "nonsense");
        assert_eq!(config.tiers[1].message.as_deref(), Some("loading"));
        assert_eq!(config.pinned_tier.as_deref(), Some("fallback"));
        assert_eq!(config.active_tier_hint.as_deref(), Some("primary"));
        assert_eq!(config.unhealthy_after, Duration::from_millis(700));
        assert_eq!((config.queue, config.api_keys_secret.as_deref()), (7, Some("keys")));
        assert_eq!((config.max_body_bytes, config.timeout), (1 << 20, Duration::from_secs(20)));
    }
}
