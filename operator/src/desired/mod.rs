//! The objects that should exist, as the API server reads them.
//!
//! Pure: a model and settings in, JSON out. Only what the operator decides is in them; defaults are the server's.

mod access;
mod claim;
pub mod config;
mod engine;
pub mod gateway;
mod meta;
mod service;
#[cfg(test)]
mod tests;
mod weights;

use serde_json::{Value, json};

pub use engine::{build_pod_template, excluded_nodes, kept_runtime, template_hash};
pub use meta::{APPLIED_ANNOTATION, GENERATION_ANNOTATION, Owner, TEMPLATE_ANNOTATION};

use crate::{kinds::Kind, plan::Plan, validate::ValidatedModel};

/// The operator's settings that show in objects.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of the gateways.
    pub operator_image: String,
    /// Image of engines on AMD cards.
    pub engine_hip_image: String,
    /// Image of engines on CPUs.
    pub engine_cpu_image: String,
    /// Pull policy of these.
    pub image_pull_policy: String,
    /// Secrets, in each namespace that holds an AtlasModel, that these are pulled with.
    pub image_pull_secrets: Vec<String>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Gateways per namespace.
    pub gateway_replicas: i32,
    /// Secret with the certificate of the gateways' API, where they have one.
    pub gateway_tls_secret: Option<String>,
}

impl Settings {
    /// Has a pod's images pulled with what they are to be pulled with.
    fn pull_images_of(&self, pod: &mut Value) {
        if !self.image_pull_secrets.is_empty() {
            let secrets = self.image_pull_secrets.iter().map(|name| json!({"name": name}));
            pod["imagePullSecrets"] = secrets.collect();
        }
    }

    /// What clients speak.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.gateway_tls_secret.is_some() { "https" } else { "http" }
    }
}

/// Why an object could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The clients' configuration is no YAML.
    #[error("llm_config.yaml could not be written")]
    LlmConfig(#[source] serde_yaml_ng::Error),
    /// A value is no JSON.
    #[error("a field could not be written as JSON")]
    Json(#[source] serde_json::Error),
}

/// An object that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it, with the hash of itself as an annotation.
    pub body: Value,
}

impl Desired {
    /// Notes the generation of the model that the object is made from; a new one alone is no reason to write.
    pub fn note_generation(&mut self, generation: i64) {
        self.body["metadata"]["annotations"][GENERATION_ANNOTATION] = generation.to_string().into();
    }

    /// Has the API server refuse the object where it is no longer at this version.
    pub fn expect_version(&mut self, version: &str) {
        self.body["metadata"]["resourceVersion"] = version.into();
    }
}

/// A tier's pod template: the wanted one, or the live one while a rollout waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// The template.
    pub body: Value,
    /// Hash of the template as the operator rendered it.
    pub hash: String,
    /// The runtime's share of the card that it was planned with.
    pub runtime: u64,
    /// The last good one, as its record holds it.
    pub good: Option<String>,
    /// The change that was taken back, as its record holds it.
    pub taken_back: Option<String>,
}

/// Everything that one model owns.
///
/// # Errors
///
/// The clients' configuration or an override cannot be serialised.
pub fn build_objects(
    model: &ValidatedModel,
    plan: &Plan,
    templates: Vec<Template>,
    settings: &Settings,
) -> Result<Vec<Desired>, RenderError> {
    let mut objects = Vec::with_capacity(4 + 2 * model.tiers.len());
    for ((tier, planned), template) in model.tiers.iter().zip(&plan.tiers).zip(templates) {
        objects.extend(config::build_revision_record(model, tier, &template));
        objects.push(engine::build_deployment(model, tier, planned.replicas, template));
        objects.extend(claim::build_claim_template(model, tier));
        objects.extend(weights::build_weights(model, tier, planned.weights, settings));
        objects.push(service::build_tier_service(model, tier));
    }
    objects.push(service::build_url_service(model, settings));
    objects.push(config::build_llm_config(model, settings)?);
    objects.push(access::build_disruption_budget(model, plan.last_may_go));
    objects.push(access::build_network_policy(model));
    Ok(objects)
}
