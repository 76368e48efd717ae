//! Asks every gateway four times a second and deletes the pod of one that stays silent.
//!
//! Every question is a knock: a connection of its own and, where that is accepted, a request on it, whatever became of the
//! questions before it. Questions do not wait for one another and a late answer is a sign of life too, so a gateway is
//! silent only where nothing at all comes from it: three knocks in a row, the first of which had the whole limit.

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use atlas_crds::names;
use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    question::{ProbeError, fetch_status},
    silence::{Attention, Gateway, Silences},
    views::{GatewayStatus, GatewayViews},
};
use crate::{metrics::Metrics, stores::Stores};

/// Distance of two questions to a gateway.
const PERIOD: Duration = Duration::from_millis(250);
/// Distance of two looks at the clock, which show whether this process runs on time.
const PULSE: Duration = Duration::from_millis(25);
/// Two looks that are further apart show a standstill; a little lateness is the machine's usual one.
const LONGEST_PULSE: Duration = Duration::from_millis(50);
/// No question is waited for longer. Longer than any silence matters, since an answer counts however late it is.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
/// For the API server to delete a pod.
const DELETE_LIMIT: Duration = Duration::from_secs(2);

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

/// Something that ended.
enum Ended {
    Question { gateway: Gateway, answer: Result<GatewayStatus, ProbeError> },
    Deletion { uid: String },
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send>>>;

impl GatewayProber {
    /// Watches until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut pulses = tokio::time::interval(PULSE);
        pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attention = Attention::begin(Instant::now(), LONGEST_PULSE);
        let mut silences = Silences::new(self.silence);
        let (mut gateways, mut next_round) = (Vec::new(), Duration::ZERO);
        let (mut work, mut deleting) = (Work::new(), HashSet::new());
        loop {
            tokio::select! {
                // What was said while this process stood still counts before the time that passed.
                biased;
                () = stop.cancelled() => return,
                Some(ended) = work.next() => match ended {
                    Ended::Question { gateway, answer } => {
                        if answer.is_ok() {
                            silences.hear(&gateway.uid, attention.awake());
                        }
                        if silences.knows(&gateway.uid) {
                            self.note(gateway, answer);
                        }
                    }
                    Ended::Deletion { uid } => {
                        deleting.remove(&uid);
                    }
                },
                _ = pulses.tick() => {
                    let stalled = attention.pulse(Instant::now());
                    self.metrics.watch_stalled.inc_by(stalled.as_secs_f64());
                    let awake = attention.awake();
                    if awake >= next_round {
                        next_round = awake + PERIOD;
                        gateways = self.gateways();
                        silences.observe(&gateways, awake);
                        work.extend(gateways.iter().filter_map(|gateway| self.question(gateway)));
                        self.forget_others(&gateways, &silences, awake);
                    }
                    if silences.choose(&gateways, awake).is_empty() {
                        continue;
                    }
                    // What is known of the pods may be as old as the round.
                    gateways = self.gateways();
                    silences.observe(&gateways, awake);
                    for gateway in silences.choose(&gateways, awake) {
                        if deleting.insert(gateway.uid.clone()) {
                            work.push(self.deletion(gateway.clone(), silences.of(gateway, awake)));
                        }
                    }
                }
            }
        }
    }

    fn gateways(&self) -> Vec<Gateway> {
        let pods = self.stores.pods.state_filter(|pod| {
            pod.labels().get(names::LABEL_COMPONENT).is_some_and(|c| c == names::COMPONENT_GATEWAY)
                && pod.metadata.deletion_timestamp.is_none()
        });
        let gateway = |pod: &Arc<Pod>| {
            Some(Gateway {
                namespace: pod.namespace()?,
                name: pod.name_any(),
                uid: pod.uid()?,
                address: pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
                ready: is_ready(pod),
            })
        };
        pods.iter().filter_map(gateway).collect()
    }

    fn question(&self, gateway: &Gateway) -> Option<Pin<Box<dyn Future<Output = Ended> + Send>>> {
        let address = gateway.address.clone()?;
        let gateway = gateway.clone();
        Some(Box::pin(async move {
            let answer = fetch_status(&address, names::GATEWAY_INTERNAL_PORT, QUESTION_LIMIT).await;
            Ended::Question { gateway, answer }
        }))
    }

    fn note(&self, gateway: Gateway, answer: Result<GatewayStatus, ProbeError>) {
        let Gateway { namespace, name, .. } = gateway;
        match answer {
            Ok(status) => self.replace((namespace, name), Some(status)),
            Err(error) => tracing::debug!(
                pod = name,
                error = &error as &dyn std::error::Error,
                "a gateway did not answer"
            ),
        }
    }

    fn replace(&self, key: (String, String), status: Option<GatewayStatus>) {
        let namespace = key.0.clone();
        for changed in self.views.replace(key, status) {
            let model = ObjectRef::new(&changed.model).within(&namespace);
            if changed.measured {
                self.stores.trigger_profiles_of(&model);
            }
            self.stores.trigger_model(model);
        }
    }

    fn forget_others(&self, gateways: &[Gateway], silences: &Silences, awake: Duration) {
        for key in self.views.known() {
            let speaks = gateways.iter().any(|gateway| {
                (&gateway.namespace, &gateway.name) == (&key.0, &key.1) && !silences.is_silent(gateway, awake)
            });
            if !speaks {
                self.replace(key, None);
            }
        }
    }

    fn deletion(&self, gateway: Gateway, silent: Duration) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &gateway.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(gateway.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let metrics = Arc::clone(&self.metrics);
        Box::pin(async move {
            let silent_millis = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
            let deleted = tokio::time::timeout(DELETE_LIMIT, api.delete(&gateway.name, &params)).await;
            match deleted {
                Ok(Ok(_)) => {
                    metrics.silent_gateways.inc();
                    tracing::warn!(
                        namespace = gateway.namespace,
                        pod = gateway.name,
                        address = gateway.address,
                        silent_millis,
                        "deleted a silent gateway"
                    );
                }
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
                Ok(Err(error)) => tracing::warn!(
                    pod = gateway.name,
                    error = &error as &dyn std::error::Error,
                    "a silent gateway could not be deleted"
                ),
                Err(_) => {
                    tracing::warn!(pod = gateway.name, "a silent gateway could not be deleted in time");
                }
            }
            // Until the watch has told of it, and before a deletion that failed is tried again.
            tokio::time::sleep(PERIOD).await;
            Ended::Deletion { uid: gateway.uid }
        })
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
