//! Asks every gateway four times a second and deletes the pod of one that stays silent.
//!
//! Every question is a knock: a connection of its own and, where that is accepted, a request on it, whatever became of the
//! questions before it. Questions do not wait for one another and a late answer is a sign of life too, so a gateway is
//! silent only where nothing at all comes from it.
//!
//! Before its pod is deleted, the API server has to answer and then the gateway once more not to: a controller that is cut
//! off hears nobody but a gateway of its own node, and a deletion that it sent then would arrive when the cut is healed.

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
/// For the last knock, which begins so long before the silence is too long.
const KNOCK_LIMIT: Duration = Duration::from_millis(250);
/// For the API server to show a pod.
const LOOK_LIMIT: Duration = Duration::from_millis(500);
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
    Check { gateway: Gateway, found: Found },
    Deletion { gateway: Gateway },
}

/// What a last look at a silent gateway found.
enum Found {
    /// The API server has the pod as it was, in this version, and the gateway did not answer after that, for this reason.
    Silent { version: String, error: ProbeError },
    /// It answers.
    Alive,
    /// The API server did not say so: this process may be cut off, or the pod is another one by now.
    Nothing,
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send>>>;

/// What the task knows.
struct Watch {
    attention: Attention,
    silences: Silences,
    gateways: Vec<Gateway>,
    next_round: Duration,
    work: Work,
    /// Uids of gateways that are being looked at or deleted.
    busy: HashSet<String>,
}

impl GatewayProber {
    /// Watches until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut pulses = tokio::time::interval(PULSE);
        pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch {
            attention: Attention::begin(Instant::now(), LONGEST_PULSE),
            silences: Silences::new(self.silence),
            gateways: Vec::new(),
            next_round: Duration::ZERO,
            work: Work::new(),
            busy: HashSet::new(),
        };
        loop {
            tokio::select! {
                // What was said while this process stood still counts before the time that passed.
                biased;
                () = stop.cancelled() => return,
                Some(ended) = watch.work.next() => self.take(&mut watch, ended),
                _ = pulses.tick() => self.pulse(&mut watch),
            }
        }
    }

    fn pulse(&self, watch: &mut Watch) {
        let awake = self.awake(watch);
        if awake >= watch.next_round {
            watch.next_round = awake + PERIOD;
            self.look_around(watch);
            watch.work.extend(watch.gateways.iter().filter_map(|gateway| self.question(gateway)));
            self.forget_others(&watch.gateways, &watch.silences, awake);
        }
        for gateway in watch.silences.choose(&watch.gateways, awake, KNOCK_LIMIT) {
            if let Some(address) = gateway.address.clone()
                && watch.busy.insert(gateway.uid.clone())
            {
                watch.work.push(self.check(gateway.clone(), address));
            }
        }
    }

    fn take(&self, watch: &mut Watch, ended: Ended) {
        let awake = self.awake(watch);
        match ended {
            Ended::Question { gateway, answer } => {
                if answer.is_ok() {
                    watch.silences.hear(&gateway.uid, awake);
                }
                if watch.silences.knows(&gateway.uid) {
                    self.note(gateway, answer);
                }
            }
            Ended::Check { gateway, found } => {
                watch.busy.remove(&gateway.uid);
                match found {
                    Found::Nothing => {}
                    Found::Alive => watch.silences.hear(&gateway.uid, awake),
                    Found::Silent { version, error } => {
                        self.look_around(watch);
                        let chosen = watch.silences.choose(&watch.gateways, awake, Duration::ZERO);
                        if chosen.iter().any(|chosen| chosen.uid == gateway.uid) {
                            let silent = watch.silences.of(&gateway, awake);
                            watch.busy.insert(gateway.uid.clone());
                            watch.work.push(self.deletion(gateway, version, silent, error));
                        }
                    }
                }
            }
            Ended::Deletion { gateway } => {
                watch.busy.remove(&gateway.uid);
            }
        }
    }

    fn awake(&self, watch: &mut Watch) -> Duration {
        let stalled = watch.attention.pulse(Instant::now());
        self.metrics.watch_stalled.inc_by(stalled.as_secs_f64());
        watch.attention.awake()
    }

    fn look_around(&self, watch: &mut Watch) {
        watch.gateways = self.gateways();
        watch.silences.observe(&watch.gateways, watch.attention.awake());
    }

    /// Asks the API server for the pod and then knocks at the gateway once more.
    fn check(&self, gateway: Gateway, address: String) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &gateway.namespace);
        Box::pin(async move {
            let look = tokio::time::timeout(LOOK_LIMIT, api.get(&gateway.name)).await;
            let version = match look {
                Ok(Ok(pod)) if is_same(&pod, &gateway) => pod.resource_version(),
                _ => None,
            };
            let Some(version) = version else {
                // Not at once again.
                tokio::time::sleep(PERIOD).await;
                return Ended::Check { gateway, found: Found::Nothing };
            };
            let (port, over) = (names::GATEWAY_INTERNAL_PORT, Instant::now() + KNOCK_LIMIT);
            let found = match fetch_status::<GatewayStatus>(&address, port, KNOCK_LIMIT).await {
                Ok(_) => Found::Alive,
                Err(error) => {
                    // One that refuses at once has not been silent for too long yet.
                    tokio::time::sleep_until(over).await;
                    Found::Silent { version, error }
                }
            };
            Ended::Check { gateway, found }
        })
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

    fn deletion(
        &self,
        gateway: Gateway,
        version: String,
        silent: Duration,
        error: ProbeError,
    ) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &gateway.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(gateway.uid.clone()),
                resource_version: Some(version),
            }),
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
                        // Whether its node is out of reach or it took the connection and stands still.
                        last = &error as &dyn std::error::Error,
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
            Ended::Deletion { gateway }
        })
    }
}

fn is_same(pod: &Pod, gateway: &Gateway) -> bool {
    pod.metadata.uid.as_ref() == Some(&gateway.uid)
        && pod.metadata.deletion_timestamp.is_none()
        && is_ready(pod)
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
