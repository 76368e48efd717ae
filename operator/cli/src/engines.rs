//! What engines say of themselves, read through the API server, which reaches every pod's internal port.
//!
//! It takes the right `get` on `pods/proxy`; where a network policy of the cluster keeps the API server from pods, the
//! answer is that the engine cannot be asked.

use std::time::Duration;

use atlas_crds::{AtlasModel, names};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::Deserialize;

use crate::error::CliError;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// An engine pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its tier.
    pub tier: String,
    /// Its node.
    pub node: String,
}

/// Answer of `/internal/status`, as far as people look at it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EngineStatus {
    /// What it does.
    pub phase: String,
    /// `cpu` or `hip`.
    pub backend: String,
    /// Sequences that it computes at once.
    pub max_batch: u64,
    /// Its work.
    pub queue: Queue,
    /// Its card.
    pub card: Option<Card>,
    /// The card's memory.
    pub vram: Option<Vram>,
}

/// Requests in an engine.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Being computed.
    pub running: u64,
    /// Waiting.
    pub waiting: u64,
}

/// A card.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Card {
    /// Its address in the machine.
    pub pci_address: String,
    /// Its target.
    pub gfx_target: String,
    /// All of its memory.
    pub vram_bytes: u64,
}

/// Memory of a card.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Vram {
    /// In use, by anyone.
    pub used_bytes: Option<u64>,
    /// The highest that the engine itself was seen to use.
    pub own_peak_bytes: Option<u64>,
    /// Its weights.
    pub weight_bytes: Option<u64>,
}

/// The running engine pods of a model.
pub async fn list(client: &Client, model: &AtlasModel) -> Result<Vec<Engine>, CliError> {
    let namespace = model.namespace().unwrap_or_default();
    let selector = format!(
        "{}={},{}={}",
        names::LABEL_MODEL,
        model.name_any(),
        names::LABEL_COMPONENT,
        names::COMPONENT_ENGINE
    );
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let listed = api.list(&ListParams::default().labels(&selector)).await;
    let what = format!("the engine pods of AtlasModel {}", model.name_any());
    let pods = listed.map_err(|source| CliError::Read { what, source })?;
    let running = pods.into_iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    let mut engines: Vec<Engine> = running
        .map(|pod| Engine {
            namespace: namespace.clone(),
            pod: pod.name_any(),
            tier: pod.labels().get(names::LABEL_TIER).cloned().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        })
        .collect();
    engines.sort_by(|a, b| (&a.tier, &a.pod).cmp(&(&b.tier, &b.pod)));
    Ok(engines)
}

/// Asks an engine's internal port for a path; the error is for people.
pub async fn ask(client: &Client, engine: &Engine, path: &str) -> Result<String, String> {
    let Engine { namespace, pod, .. } = engine;
    let port = names::ENGINE_INTERNAL_PORT;
    let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
    let request = http::Request::get(uri).body(Vec::new()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, client.request_text(request)).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(kube::Error::Api(status))) => Err(format!("{} ({})", status.message, status.code)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Asks an engine how it is.
pub async fn ask_status(client: &Client, engine: &Engine) -> Result<EngineStatus, String> {
    let text = ask(client, engine, "/internal/status").await?;
    serde_json::from_str(&text).map_err(|error| format!("its status cannot be read: {error}"))
}
