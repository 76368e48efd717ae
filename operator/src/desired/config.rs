//! The clients' configuration of a model.

use atlas_crds::{names, quantity::parse_bytes};
use atlas_operator_core::llm_config::{FILE_NAME, GpuSection, ServerSection, build_llm_config as render};
use serde_json::json;

use super::{
    Desired, RenderError, Settings,
    meta::{Labels, Parts, assemble, base_labels, controller_of},
};
use super::{Template, engine::tier_labels};
use crate::{
    kinds::Kind,
    validate::{ValidatedModel, ValidatedTier},
};

/// Key of the record of a tier's last good revision.
pub const GOOD: &str = "last-good";
/// Key of the record of a tier's change that was taken back.
pub const TAKEN_BACK: &str = "taken-back";

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
        protocol: settings.scheme(),
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

/// What a tier remembers of its revisions, once there is anything.
///
/// An object of its own: an annotation of the Deployment would count as a change of it and look like a rollout.
pub fn build_revision_record(
    model: &ValidatedModel,
    tier: &ValidatedTier,
    template: &Template,
) -> Option<Desired> {
    let mut data = Labels::new();
    for (key, record) in [(GOOD, &template.good), (TAKEN_BACK, &template.taken_back)] {
        data.extend(record.as_ref().map(|record| (key.to_owned(), record.as_str().into())));
    }
    (!data.is_empty()).then(|| {
        assemble(Parts {
            kind: Kind::ConfigMap,
            namespace: &model.namespace,
            name: names::tier_object_name(&model.name, &tier.name),
            labels: tier_labels(model, tier),
            owners: &controller_of(model),
            annotations: Labels::new(),
            fields: json!({"data": data}),
        })
    })
}
