//! Asks every gateway four times a second and deletes the pod of one that stays silent.
//!
//! Every question is a knock: a connection of its own and, where that is accepted, a request on it, whatever became of the
//! questions before it. Questions do not wait for one another and a late answer is a sign of life too, so a gateway is
//! silent only where nothing at all comes from it.
//!
//! Before its pod is deleted, the API server has to answer and then the gateway once more not to: a controller that is cut
//! off hears nobody but a gateway of its own node, and a deletion that it sent then would arrive when the cut is healed.
//! And nobody else may be deleting another one: `claim`.
//! What follows from all of it is `judge`'s.

use std::{pin::Pin, sync::Arc, time::Duration};

use atlas_crds::names;
use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    claim::Claim,
    judge::{Found, Judge, Sentence, Shown},
    question::{ProbeError, fetch_status},
    silence::Gateway,
    views::{GatewayStatus, GatewayViews},
};
use crate::{error::tell, metrics::Metrics, stores::Stores};

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
    Check { gateway: Gateway, found: Found, last: Last },
    Deletion { gateway: Gateway },
}

/// What a last look leaves for the deletion: who may delete, and how the gateway did not answer.
#[derive(Default)]
struct Last {
    claim: Option<Claim>,
    error: Option<ProbeError>,
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send>>>;

/// What the task knows, and what it waits for.
struct Watch {
    judge: Judge,
    next_round: Duration,
    work: Work,
}

impl GatewayProber {
    /// Watches until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut pulses = tokio::time::interval(PULSE);
        pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch {
            judge: Judge::begin(Instant::now(), self.silence, LONGEST_PULSE),
            next_round: Duration::ZERO,
            work: Work::new(),
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
        self.listen(watch);
        let awake = watch.judge.awake();
        if awake >= watch.next_round {
            watch.next_round = awake + PERIOD;
            watch.judge.observe(self.gateways());
            watch.work.extend(watch.judge.gateways().iter().filter_map(|gateway| self.question(gateway)));
            self.forget_others(&watch.judge);
        }
        for gateway in watch.judge.suspect(KNOCK_LIMIT) {
            watch.work.push(self.check(gateway));
        }
    }

    fn take(&self, watch: &mut Watch, ended: Ended) {
        self.listen(watch);
        match ended {
            Ended::Question { gateway, answer } => {
                if answer.is_ok() {
                    watch.judge.hear(&gateway.uid);
                }
                if watch.judge.knows(&gateway.uid) {
                    self.note(gateway, answer);
                }
            }
            Ended::Check { gateway, found, last } => {
                watch.judge.observe(self.gateways());
                if let Some(sentence) = watch.judge.conclude(&gateway, found) {
                    watch.work.push(self.deletion(gateway, sentence, last));
                }
            }
            Ended::Deletion { gateway } => watch.judge.close(&gateway.uid),
        }
    }

    fn listen(&self, watch: &mut Watch) {
        let stalled = watch.judge.pulse(Instant::now());
        self.metrics.watch_stalled.inc_by(stalled.as_secs_f64());
    }

    /// Asks the API server for the gateways of the namespace and then knocks at this one once more.
    fn check(&self, gateway: Gateway) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
        let client = self.client.clone();
        Box::pin(async move {
            let look = tokio::time::timeout(LOOK_LIMIT, look(&client, &gateway)).await;
            let (Ok(Ok((claim, shown))), Some(address)) = (look, gateway.address.clone()) else {
                // Not at once again.
                tokio::time::sleep(PERIOD).await;
                return Ended::Check { gateway, found: Found::Nothing, last: Last::default() };
            };
            let (port, over) = (names::GATEWAY_INTERNAL_PORT, Instant::now() + KNOCK_LIMIT);
            match fetch_status::<GatewayStatus>(&address, port, KNOCK_LIMIT).await {
                Ok(_) => Ended::Check { gateway, found: Found::Alive, last: Last::default() },
                Err(error) => {
                    // One that refuses at once has not been silent for too long yet.
                    tokio::time::sleep_until(over).await;
                    let last = Last { claim, error: Some(error) };
                    Ended::Check { gateway, found: Found::Silent(shown), last }
                }
            }
        })
    }

    fn gateways(&self) -> Vec<Gateway> {
        let pods = self.stores.pods.state_filter(|pod| {
            pod.labels().get(names::LABEL_COMPONENT).is_some_and(|c| c == names::COMPONENT_GATEWAY)
        });
        pods.iter().filter_map(|pod| view(pod)).collect()
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
                error = %tell(&error),
                "a gateway did not answer"
            ),
        }
    }

    fn replace(&self, key: (String, String), status: Option<GatewayStatus>) {
        let namespace = key.0.clone();
        for changed in self.views.replace(key, status, jiff::Timestamp::now()) {
            let model = ObjectRef::new(&changed.model).within(&namespace);
            if changed.measured {
                self.stores.trigger_profiles_of(&model);
            }
            self.stores.trigger_model(model);
        }
    }

    fn forget_others(&self, judge: &Judge) {
        for key in self.views.known() {
            let speaks = judge.gateways().iter().any(|gateway| {
                (&gateway.namespace, &gateway.name) == (&key.0, &key.1) && !judge.is_silent(gateway)
            });
            if !speaks {
                self.replace(key, None);
            }
        }
    }

    fn deletion(
        &self,
        gateway: Gateway,
        sentence: Sentence,
        last: Last,
    ) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
        let Sentence { version, silent } = sentence;
        let client = self.client.clone();
        let api: Api<Pod> = Api::namespaced(client.clone(), &gateway.namespace);
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
            let deletion = async {
                if let Some(claim) = &last.claim
                    && !claim.take(&client, &gateway.namespace, &gateway.uid).await?
                {
                    return Ok(false);
                }
                api.delete(&gateway.name, &params).await.map(|_| true)
            };
            match tokio::time::timeout(DELETE_LIMIT, deletion).await {
                // Another controller deletes one; the next look tells which.
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    metrics.silent_gateways.inc();
                    tracing::warn!(
                        namespace = gateway.namespace,
                        pod = gateway.name,
                        address = gateway.address,
                        silent_millis,
                        // Whether its node is out of reach or it took the connection and stands still.
                        last = last.error.as_ref().map(|error| tell(error)),
                        "deleted a silent gateway"
                    );
                }
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
                Ok(Err(error)) => tracing::warn!(
                    pod = gateway.name,
                    error = %tell(&error),
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

/// The gateways of a gateway's namespace that are there and stay, and who may delete one of them.
///
/// The claim is read first: whoever gives one up after that makes it void, and whoever did before is in it.
async fn look(client: &Client, gateway: &Gateway) -> Result<(Option<Claim>, Vec<Shown>), kube::Error> {
    let claim = Claim::read(client, &gateway.namespace).await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), &gateway.namespace);
    let ours = format!("{}={}", names::LABEL_COMPONENT, names::COMPONENT_GATEWAY);
    let pods = api.list(&ListParams::default().labels(&ours)).await?;
    let stays = |other: &Gateway| {
        other.uid == gateway.uid || claim.as_ref().is_none_or(|claim| claim.leaves(&other.uid))
    };
    let shown = pods.items.iter().filter_map(|pod| {
        let (gateway, version) = (view(pod).filter(stays)?, pod.resource_version()?);
        Some(Shown { gateway, version })
    });
    let shown = shown.collect();
    Ok((claim, shown))
}

/// A pod as a gateway; none where it is being deleted.
fn view(pod: &Pod) -> Option<Gateway> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(Gateway {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        uid: pod.uid()?,
        address: pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
        ready: is_ready(pod),
    })
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
