//! The stable URL, and one headless Service a tier.

use atlas_crds::names;
use serde_json::json;

use super::{
    Desired, Settings,
    engine::{selector, tier_labels},
    gateway,
    meta::{Labels, Parts, assemble, base_labels, controller_of},
};
use crate::{
    kinds::Kind,
    validate::{ValidatedModel, ValidatedTier},
};

/// The headless Service whose EndpointSlices tell the gateways where a tier's engines are.
pub fn build_tier_service(model: &ValidatedModel, tier: &ValidatedTier) -> Desired {
    assemble(Parts {
        kind: Kind::Service,
        namespace: &model.namespace,
        name: names::tier_object_name(&model.name, &tier.name),
        labels: tier_labels(model, tier),
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": false,
            "selector": selector(model, tier),
            "ports": [
                {"name": "api", "port": names::ENGINE_PORT, "targetPort": names::ENGINE_PORT, "protocol": "TCP"},
                {"name": "internal", "port": names::ENGINE_INTERNAL_PORT, "targetPort": names::ENGINE_INTERNAL_PORT, "protocol": "TCP"},
            ],
        }}),
    })
}

/// The Service of the stable URL, which leads to the namespace's gateways.
///
/// It carries no model label: Kubernetes would copy it to EndpointSlices that hold gateways, not engines.
pub fn build_url_service(model: &ValidatedModel, settings: &Settings) -> Desired {
    // Ingresses and meshes go by the protocol, people by the port's name.
    let name = if settings.gateway_tls_secret.is_some() { "https" } else { "api" };
    let mut labels = base_labels("atlas-model");
    labels.insert("app.kubernetes.io/instance".into(), model.name.clone().into());
    assemble(Parts {
        kind: Kind::Service,
        namespace: &model.namespace,
        name: model.name.clone(),
        labels,
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"spec": {
            "type": model.service_type,
            "selector": gateway::selector(),
            "ports": [{
                "name": name, "port": names::GATEWAY_PORT, "targetPort": names::GATEWAY_PORT,
                "protocol": "TCP", "appProtocol": settings.scheme(),
            }],
        }}),
    })
}
