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
    /// What this clock says, so that times of several gateways can be compared.
    now: jiff::Timestamp,
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
    /// Why the files of the listener's certificate cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_problem: Option<String>,
    /// That there is no older one either, so that no client is let in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lets_nobody_in: bool,
}

/// What is wrong with the certificate of the API's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateProblem {
    /// Why the files cannot be used.
    pub text: String,
    /// Whether there is no older one either.
    pub lets_nobody_in: bool,
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
pub fn compute_status(pod: &str, view: &View, certificate: Option<&CertificateProblem>) -> Status {
    Status {
        pod: pod.to_owned(),
        now: jiff::Timestamp::now(),
        models: view.models.iter().map(|(name, model)| of_model(name, model, certificate)).collect(),
    }
}

fn of_model(name: &str, model: &Model, certificate: Option<&CertificateProblem>) -> ModelStatus {
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
        active_tier: model.active_tier(),
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
        certificate_problem: certificate.map(|problem| problem.text.clone()),
        lets_nobody_in: certificate.is_some_and(|problem| problem.lets_nobody_in),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicBool, mpsc},
        time::Duration,
    };

    use atlas_crds::AtlasModel;
    use atlas_operator_core::routing::{Cause, HealthEvent};
    use serde_json::json;

    use super::*;
    use crate::{
        config::Timing,
        health::{Clock, endpoint::Endpoint},
        metrics::Metrics,
        table::{EndpointConfig, ModelConfig},
    };

    fn model() -> (Arc<Model>, Arc<Endpoint>) {
        let tier =
            |name: &str| json!({"name": name, "gpuProfile": name, "model": {"source": "https://h/m.gguf"}});
        let model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel", "metadata": {"name": "code"},
            "spec": {"tiers": [tier("primary"), tier("fallback")], "failover": {"failbackAfter": "0s"}},
        }))
        .unwrap();
        let config = Arc::new(ModelConfig::from_model(&model));
        let clock = Clock::start();
        let endpoint = |tier: &str, port: u16| {
            let config = EndpointConfig {
                model: "code".into(),
                tier: tier.into(),
                api: ([127, 0, 0, 1], port).into(),
                internal: ([127, 0, 0, 1], port + 1).into(),
                pod: None,
                node: None,
                ready: true,
            };
            Arc::new(Endpoint::new(config, clock.now()))
        };
        let metrics = Arc::new(Metrics::register().unwrap());
        let model = Model::new(Arc::clone(&config), clock, Timing::production(), metrics);
        let (primary, fallback) = (endpoint("primary", 8000), endpoint("fallback", 9000));
        model.update(config, vec![Arc::clone(&primary), Arc::clone(&fallback)]);
        model.report(&fallback, HealthEvent::ProbeOk { sent_at: clock.now() });
        (Arc::new(model), primary)
    }

    #[test]
    fn the_status_can_be_asked_for_at_any_moment_of_a_move() {
        let (model, primary) = model();
        let (done, ended) = mpsc::channel();
        let moving = Arc::new(AtomicBool::new(true));
        let asked: Vec<_> = (0..2)
            .map(|_| {
                let (model, moving, done) = (Arc::clone(&model), Arc::clone(&moving), done.clone());
                std::thread::spawn(move || {
                    while moving.load(Ordering::Relaxed) {
                        let _ = of_model("code", &model, None);
                    }
                    done.send("asked").unwrap();
                })
            })
            .collect();
        let mover = std::thread::spawn({
            let model = Arc::clone(&model);
            move || {
                for _ in 0..20_000 {
                    model.report(&primary, HealthEvent::ConnectionFailed(Cause::ConnectionRefused));
                    model.report(&primary, HealthEvent::ProbeOk { sent_at: model.clock.now() + 1 });
                }
                moving.store(false, Ordering::Relaxed);
                done.send("moved").unwrap();
            }
        });
        // A thread that waits for a lock for ever would hold the test with it, so none is joined before all have ended.
        for left in (1..=3).rev() {
            assert!(
                ended.recv_timeout(Duration::from_secs(60)).is_ok(),
                "{left} threads wait for each other"
            );
        }
        assert!(model.switches().len() > 1, "traffic moved: {:?}", model.switches());
        asked.into_iter().chain([mover]).for_each(|thread| thread.join().unwrap());
    }
}
