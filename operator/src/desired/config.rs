//! The clients' configuration of a model.

use atlas_crds::{names, quantity::parse_bytes};
use atlas_operator_core::llm_config::{FILE_NAME, GpuSection, ServerSection, build_llm_config as render};
use serde_json::json;

use super::{
    Desired, RenderError, Settings,
    meta::{Labels, Parts, assemble, base_labels, controller_of},
};
use crate::{kinds::Kind, validate::ValidatedModel};

const GIB: u64 = 1 << 30;

pub fn build_llm_config(model: &ValidatedModel, settings: &Settings) -> Result<Desired, RenderError> {
    let gpus: Vec<GpuSection> = model
        .tiers
        .iter()
        .map(|tier| GpuSection {
            model: tier.profile.spec.product.clone(),
            // The driver reports a little less than the product is sold with: 24560Mi is a 24 GB card.
            vram_gb: parse_bytes(&tier.profile.spec.vram).map_or(0, |bytes| (bytes + GIB / 2) / GIB),
            recommended_models: vec![tier.display_name.clone()],
            max_batch_size: tier.max_batch,
        })
        .collect();
    let server = ServerSection {
        host: format!("{}.{}.svc.{}", model.name, model.namespace, settings.cluster_domain),
        port: names::GATEWAY_PORT,
        protocol: "http",
        timeout_seconds: model.request_timeout.as_secs(),
    };
    let mut labels = base_labels("atlas-model");
    labels.insert(names::LABEL_MODEL.into(), model.name.clone().into());
    Ok(assemble(Parts {
        kind: Kind::ConfigMap,
        namespace: &model.namespace,
        name: names::llm_config_name(&model.name),
        labels,
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"data": {FILE_NAME: render(&gpus, &server).map_err(RenderError::LlmConfig)?}}),
    }))
}
