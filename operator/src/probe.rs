//! Short HTTP questions to gateways and engines, each on a connection of its own and with a deadline.
//!
//! Every replica asks every gateway four times a second, leader or not: a gateway on a lost node keeps its endpoint
//! for most of a minute, and deleting its pod takes the endpoint out within half a second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atlas_crds::names;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, stores::Stores};

const PERIOD: Duration = Duration::from_millis(250);
const MAX_BODY_BYTES: usize = 4 << 20;

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The connection failed.
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    /// The peer does not speak HTTP.
    #[error("no HTTP answer")]
    Http(#[source] hyper::Error),
    /// The request could not be made.
    #[error("the address makes no request")]
    Request(#[source] http::Error),
    /// The body broke off or is too long.
    #[error("the answer could not be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body is not what the contract says.
    #[error("the answer is no status")]
    Json(#[source] serde_json::Error),
}

/// Asks `http://ADDRESS:PORT/internal/status`.
///
/// # Errors
///
/// No connection, no answer in time, or an answer that the contract does not know.
pub async fn fetch_status<T: DeserializeOwned>(
    address: &str,
    port: u16,
    limit: Duration,
) -> Result<T, ProbeError> {
    let ask = async {
        let ip: std::net::IpAddr = address.parse().map_err(|_| {
            ProbeError::Connect(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the pod has no address",
            ))
        })?;
        let stream = TcpStream::connect((ip, port)).await.map_err(ProbeError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                .await
                .map_err(ProbeError::Http)?;
        let request = http::Request::get("/internal/status")
            .header(http::header::HOST, format!("{ip}:{port}"))
            .body(Empty::<Bytes>::new())
            .map_err(ProbeError::Request)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(ProbeError::Http)?;
            let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
                .collect()
                .await
                .map_err(ProbeError::Body)?;
            serde_json::from_slice(&body.to_bytes()).map_err(ProbeError::Json)
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        // The connection is driven here and dropped with the answer, so nothing outlives the question.
        tokio::select! {
            answer = &mut answer => answer,
            end = &mut connection => match end {
                Ok(()) => answer.await,
                Err(error) => Err(ProbeError::Http(error)),
            },
        }
    };
    tokio::time::timeout(limit, ask).await.unwrap_or(Err(ProbeError::Late(limit)))
}

/// Answer of a gateway's `/internal/status`, as far as the controller needs it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
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
}

/// Health of an endpoint that takes requests, as a gateway writes it.
pub const HEALTHY: &str = "Healthy";

/// One engine as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GatewayEndpoint {
    /// Its tier.
    pub tier: String,
    /// `Unknown`, [`HEALTHY`] or `Unhealthy`.
    pub health: String,
    /// Why it is not healthy.
    pub cause: Option<String>,
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
    pub at: jiff::Timestamp,
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

    /// Takes a new answer and names the models whose part of it changed.
    fn replace(&self, key: (String, String), status: Option<GatewayStatus>) -> Vec<String> {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match status.clone() {
            Some(status) => views.insert(key, status),
            None => views.remove(&key),
        };
        let (old, new) =
            (old.map(|s| s.models).unwrap_or_default(), status.map(|s| s.models).unwrap_or_default());
        let gone = old.iter().filter(|m| !new.iter().any(|n| n.model == m.model));
        new.iter().filter(|m| !old.contains(m)).chain(gone).map(|m| m.model.clone()).collect()
    }
}

/// The task that watches over the gateways.
pub struct GatewayProber {
    /// The API server, to delete a silent gateway.
    pub client: Client,
    /// Reflected copies: which gateways there are.
    pub stores: Arc<Stores>,
    /// Where answers go.
    pub views: Arc<GatewayViews>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Silence after which a ready gateway is deleted.
    pub silence: Duration,
}

/// One gateway pod and when it last gave a sign of life.
struct Gateway {
    namespace: String,
    name: String,
    uid: String,
    address: String,
    ready: bool,
    silent: Duration,
}

impl GatewayProber {
    /// Asks until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut heard: HashMap<String, Instant> = HashMap::new();
        let mut last_tick = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            // Time in which this process itself did not run is nobody's silence.
            if last_tick.elapsed() > 3 * PERIOD {
                heard.clear();
            }
            last_tick = Instant::now();
            self.round(&mut heard).await;
        }
    }

    async fn round(&self, heard: &mut HashMap<String, Instant>) {
        let pods = self.stores.pods.state_filter(|pod| {
            pod.labels().get(names::LABEL_COMPONENT).is_some_and(|c| c == names::COMPONENT_GATEWAY)
                && pod.metadata.deletion_timestamp.is_none()
        });
        heard.retain(|uid, _| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
        let asked = pods.iter().filter_map(|pod| {
            let address = pod.status.as_ref()?.pod_ip.clone()?;
            Some(async move {
                let answer =
                    fetch_status::<GatewayStatus>(&address, names::GATEWAY_INTERNAL_PORT, PERIOD).await;
                (pod, address, answer)
            })
        });
        let mut gateways = Vec::new();
        for (pod, address, answer) in futures::future::join_all(asked).await {
            let (Some(namespace), Some(uid)) = (pod.namespace(), pod.uid()) else { continue };
            let name = pod.name_any();
            let last = heard.entry(uid.clone()).or_insert_with(Instant::now);
            match answer {
                Ok(status) => {
                    *last = Instant::now();
                    for model in self.views.replace((namespace.clone(), name.clone()), Some(status)) {
                        self.stores.trigger_model(ObjectRef::new(&model).within(&namespace));
                    }
                }
                Err(error) => tracing::debug!(
                    pod = name,
                    error = &error as &dyn std::error::Error,
                    "a gateway did not answer"
                ),
            }
            gateways.push(Gateway {
                namespace,
                name,
                uid,
                address,
                ready: is_ready(pod),
                silent: last.elapsed(),
            });
        }
        self.forget_others(&gateways);
        for gateway in choose_silent(&gateways, self.silence) {
            self.delete(gateway).await;
        }
    }

    fn forget_others(&self, gateways: &[Gateway]) {
        let silent_or_gone: Vec<(String, String)> = {
            let views = self.views.0.lock().unwrap_or_else(PoisonError::into_inner);
            views
                .keys()
                .filter(|(namespace, name)| {
                    !gateways
                        .iter()
                        .any(|g| &g.namespace == namespace && &g.name == name && g.silent < self.silence)
                })
                .cloned()
                .collect()
        };
        for key in silent_or_gone {
            let namespace = key.0.clone();
            for model in self.views.replace(key, None) {
                self.stores.trigger_model(ObjectRef::new(&model).within(&namespace));
            }
        }
    }

    async fn delete(&self, gateway: &Gateway) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &gateway.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(gateway.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let silent_millis = u64::try_from(gateway.silent.as_millis()).unwrap_or(u64::MAX);
        match tokio::time::timeout(Duration::from_secs(2), api.delete(&gateway.name, &params)).await {
            Ok(Ok(_)) => {
                self.metrics.silent_gateways.inc();
                tracing::warn!(
                    namespace = gateway.namespace,
                    pod = gateway.name,
                    address = gateway.address,
                    silent_millis,
                    "deleted a silent gateway"
                );
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    pod = gateway.name,
                    error = &error as &dyn std::error::Error,
                    "a silent gateway could not be deleted"
                );
            }
            Err(_) => tracing::warn!(pod = gateway.name, "a silent gateway could not be deleted in time"),
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Ready gateways that are silent for too long, where another ready one of the namespace answers.
///
/// Where none answers, it is this process that is cut off, or nothing is left to gain.
fn choose_silent(gateways: &[Gateway], silence: Duration) -> Vec<&Gateway> {
    gateways
        .iter()
        .filter(|gateway| gateway.ready && gateway.silent >= silence)
        .filter(|gateway| {
            gateways.iter().any(|other| {
                other.namespace == gateway.namespace
                    && other.ready
                    && other.silent < silence
                    && other.uid != gateway.uid
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_gateway_beside_one_that_answers_is_deleted() {
        let check = |gateways: &[(&str, bool, u64)], expected: &[usize]| {
            let gateways: Vec<Gateway> = gateways
                .iter()
                .enumerate()
                .map(|(i, (namespace, ready, millis))| Gateway {
                    namespace: (*namespace).into(),
                    name: i.to_string(),
                    uid: i.to_string(),
                    address: "127.0.0.1".into(),
                    ready: *ready,
                    silent: Duration::from_millis(*millis),
                })
                .collect();
            let chosen: Vec<usize> = choose_silent(&gateways, Duration::from_millis(750))
                .iter()
                .map(|gateway| gateway.name.parse().unwrap())
                .collect();
            assert_eq!(chosen, expected);
        };
        check(&[("a", true, 800), ("a", true, 10)], &[0]);
        check(&[("a", true, 700), ("a", true, 10)], &[]);
        check(&[("a", true, 800), ("a", true, 800)], &[]);
        check(&[("a", true, 800), ("a", false, 10)], &[]);
        check(&[("a", true, 800), ("b", true, 10)], &[]);
        check(&[("a", false, 800), ("a", true, 10)], &[]);
        check(&[("a", true, 800)], &[]);
    }
}
