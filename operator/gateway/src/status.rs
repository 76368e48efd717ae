//! `/internal/status`: what this gateway sees and measured, for the controller.

use std::sync::atomic::Ordering;

use atlas_operator_core::routing::Health;
use serde::Serialize;

use crate::{
    health::facts::MeasuredVram,
    model::{Model, SwitchRecord},
    registry::View,
};

/// The whole document.
#[derive(Debug, Serialize)]
pub struct Status {
    pod: String,
    models: Vec<ModelStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelStatus {
    model: String,
    active_tier: Option<String>,
    endpoints: Vec<EndpointStatus>,
    requests: RequestStatus,
    switches: Vec<SwitchRecord>,
    /// Why the files of the listener's certificate cannot be used, so that an older one is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_problem: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointStatus {
    tier: String,
    address: String,
    node: Option<String>,
    pod: Option<String>,
    health: &'static str,
    cause: Option<&'static str>,
    model_file: Option<String>,
    context_tokens: Option<u64>,
    max_batch: Option<usize>,
    vram: Option<MeasuredVram>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestStatus {
    total: u64,
    retried: u64,
    failed: u64,
    resumed: u64,
    held: usize,
    queued: usize,
    retry_budget: u64,
}

/// Reads the status off the models, and takes what is wrong with the listener's certificate.
#[must_use]
pub fn compute_status(pod: &str, view: &View, certificate_problem: Option<&str>) -> Status {
    Status {
        pod: pod.to_owned(),
        models: view.models.iter().map(|(name, model)| of_model(name, model, certificate_problem)).collect(),
    }
}

fn of_model(name: &str, model: &Model, certificate_problem: Option<&str>) -> ModelStatus {
    let endpoints = model.endpoints().into_iter().map(|endpoint| {
        let (health, cause) = match endpoint.health() {
            Health::Unknown => ("Unknown", None),
            Health::Healthy => ("Healthy", None),
            Health::Unhealthy(cause) => ("Unhealthy", Some(cause.as_str())),
        };
        let facts = endpoint.facts();
        EndpointStatus {
            tier: endpoint.config.tier.clone(),
            address: endpoint.config.api.to_string(),
            node: endpoint.config.node.clone(),
            pod: endpoint.config.pod.clone(),
            health,
            cause,
            model_file: facts.model_file.clone(),
            context_tokens: facts.context_tokens,
            max_batch: facts.max_batch,
            vram: facts.vram.clone(),
        }
    });
    ModelStatus {
        model: name.to_owned(),
        active_tier: model.routes().borrow().active_tier.clone(),
        endpoints: endpoints.collect(),
        requests: RequestStatus {
            total: model.counts.total.load(Ordering::Relaxed),
            retried: model.counts.retried.load(Ordering::Relaxed),
            failed: model.counts.failed.load(Ordering::Relaxed),
            resumed: model.counts.resumed.load(Ordering::Relaxed),
            held: model.held(),
            queued: model.queue.queued(),
            retry_budget: model.budget.left(std::time::Instant::now()),
        },
        switches: model.switches(),
        certificate_problem: certificate_problem.map(str::to_owned),
    }
}
