//! Who may disturb a model's engines, and who may reach them.

use atlas_crds::names;
use serde_json::{Value, json};

use super::{
    Desired, gateway,
    meta::{Labels, Parts, assemble, base_labels, controller_of, labels},
};
use crate::{kinds::Kind, validate::ValidatedModel};

fn engine_selector(model: &ValidatedModel) -> Labels {
    labels([(names::LABEL_MODEL, model.name.as_str()), (names::LABEL_COMPONENT, names::COMPONENT_ENGINE)])
}

/// The chart's labels of the controller, which runs in a namespace of its own.
fn operator_selector() -> Labels {
    labels([("app.kubernetes.io/name", names::FIELD_MANAGER), (names::LABEL_COMPONENT, "controller")])
}

fn model_labels(model: &ValidatedModel) -> Labels {
    let mut all = base_labels("atlas-model");
    all.insert(names::LABEL_MODEL.into(), model.name.clone().into());
    all
}

/// How many pods may be away: one, so that the others serve, or all where waiting for the others would be in vain.
pub fn max_unavailable(last_may_go: bool) -> Value {
    if last_may_go { "100%".into() } else { 1.into() }
}

/// One budget over all tiers: two budgets over one pod make evictions fail.
pub fn build_disruption_budget(model: &ValidatedModel, last_may_go: bool) -> Desired {
    assemble(Parts {
        kind: Kind::PodDisruptionBudget,
        namespace: &model.namespace,
        name: model.name.clone(),
        labels: model_labels(model),
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"spec": {
            "maxUnavailable": max_unavailable(last_may_go),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": engine_selector(model)},
        }}),
    })
}

/// The engines' ports are for gateways only, and the internal one, where streams are resumed, for the operator that
/// reads its status. Kubelets probe past every policy; who scrapes metrics gets a policy of its own.
pub fn build_network_policy(model: &ValidatedModel) -> Desired {
    assemble(Parts {
        kind: Kind::NetworkPolicy,
        namespace: &model.namespace,
        name: format!("{}-engines", model.name),
        labels: model_labels(model),
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"spec": {
            "podSelector": {"matchLabels": engine_selector(model)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": gateway::selector()}}],
                    "ports": [{"port": names::ENGINE_PORT, "protocol": "TCP"}],
                },
                {
                    "from": [
                        {"podSelector": {"matchLabels": gateway::selector()}},
                        {"namespaceSelector": {}, "podSelector": {"matchLabels": operator_selector()}},
                    ],
                    "ports": [{"port": names::ENGINE_INTERNAL_PORT, "protocol": "TCP"}],
                },
            ],
        }}),
    })
}
