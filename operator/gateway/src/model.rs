//! One model at run time: its endpoints, where requests go now, and the moves of its traffic.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use atlas_operator_core::routing::{
    EndpointView, FailbackState, Health, HealthEvent, HealthSettings, Millis, Mode, Patience, RouteInput,
    TierView, route,
};
use serde::Serialize;
use tokio::sync::watch;
use tracing::info;

use crate::{
    balance::{self, Candidate},
    budget::RetryBudget,
    call::Needs,
    config::Timing,
    health::{Clock, endpoint::Endpoint},
    metrics::Metrics,
    queue::FairQueue,
    table::ModelConfig,
};

/// Moves that the status keeps.
const KEPT_SWITCHES: usize = 32;

/// Where requests go now, best first.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// Name of the tier that serves.
    pub active_tier: Option<String>,
    /// What to try, in order.
    pub order: Vec<Route>,
}

/// One endpoint to try.
#[derive(Debug, Clone)]
pub struct Route {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Whether it is known to be healthy, rather than only not known to be unhealthy.
    pub healthy: bool,
}

impl Routes {
    /// Whether a tier has an engine that serves, be it the tier that requests go to or another one.
    #[must_use]
    pub fn serves(&self, tier: &str) -> bool {
        self.order.iter().any(|route| route.healthy && route.endpoint.config.tier == tier)
    }

    /// The best endpoint that `may_try` accepts; `balance` picks among equals.
    #[must_use]
    pub fn choose(&self, needs: &Needs, may_try: impl Fn(&Arc<Endpoint>) -> bool) -> Option<Arc<Endpoint>> {
        let mut candidates = self.order.iter().filter(|route| may_try(&route.endpoint));
        let first = candidates.next()?;
        let equals = candidates.take_while(|route| {
            route.healthy == first.healthy && route.endpoint.config.tier == first.endpoint.config.tier
        });
        let all: Vec<&Route> = std::iter::once(first).chain(equals).collect();
        let loads: Vec<Candidate> = all.iter().map(|route| route.endpoint.load()).collect();
        let at = balance::pick(&loads, needs.head, needs.load_tokens)?;
        all.get(at).map(|route| Arc::clone(&route.endpoint))
    }
}

/// Requests that the serving tier is given at once: what its engines compute, and as many again that they have at hand.
/// Without a limit where an engine does not say, and while nothing serves: then requests are held elsewhere.
fn capacity(routes: &Routes) -> Option<usize> {
    let tier = routes.active_tier.as_ref()?;
    let serving = routes.order.iter().filter(|route| route.healthy && route.endpoint.config.tier == *tier);
    serving.map(|route| route.endpoint.facts().max_batch.map(|batch| 2 * batch.max(1))).sum()
}

/// A move of the traffic, as the status shows it.
#[derive(Debug, Clone, Serialize)]
pub struct SwitchRecord {
    /// Counts the moves of this gateway.
    pub seq: u64,
    /// The tier that served.
    pub from: String,
    /// The tier that serves.
    pub to: String,
    /// Why it moved.
    pub cause: &'static str,
    /// Milliseconds from the first sign of trouble to the move.
    pub millis: u64,
    /// When.
    pub at: jiff::Timestamp,
}

/// Counts of requests of one model.
#[derive(Debug, Default)]
pub struct RequestCounts {
    /// All that were resolved to the model.
    pub total: AtomicU64,
    /// Attempts that were made again elsewhere.
    pub retried: AtomicU64,
    /// Requests that ended in an error of the gateway's own.
    pub failed: AtomicU64,
    /// Breaks of streams that another engine went on from.
    pub resumed: AtomicU64,
}

#[derive(Debug, Default)]
struct Memory {
    failback: FailbackState,
    switches: VecDeque<SwitchRecord>,
    seq: u64,
    /// The model is gone: what still runs of it is not shown any more.
    retired: bool,
}

/// One model.
#[derive(Debug)]
pub struct Model {
    /// The clock of everything about it.
    pub clock: Clock,
    /// Waits and limits.
    pub timing: Timing,
    /// Its requests.
    pub counts: RequestCounts,
    /// What its requests may try again.
    pub budget: RetryBudget,
    /// Who may send next.
    pub queue: Arc<FairQueue>,
    held: AtomicUsize,
    metrics: Arc<Metrics>,
    config: RwLock<Arc<ModelConfig>>,
    endpoints: RwLock<Vec<Arc<Endpoint>>>,
    memory: Mutex<Memory>,
    routes: watch::Sender<Arc<Routes>>,
}

impl Model {
    /// A model without endpoints.
    #[must_use]
    pub fn new(config: Arc<ModelConfig>, clock: Clock, timing: Timing, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            timing,
            counts: RequestCounts::default(),
            budget: RetryBudget::new(std::time::Instant::now()),
            queue: Arc::default(),
            held: AtomicUsize::new(0),
            metrics,
            config: RwLock::new(config),
            endpoints: RwLock::default(),
            memory: Mutex::default(),
            routes: watch::Sender::new(Arc::default()),
        }
    }

    /// What the AtlasModel says.
    #[must_use]
    pub fn config(&self) -> Arc<ModelConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its endpoints, in the order of their addresses.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where requests go, now and later.
    #[must_use]
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// The tier that serves.
    ///
    /// A copy: whoever looked into the routes while asking for the moves would wait for [`Self::reroute`], which has the
    /// moves locked and waits to publish routes.
    #[must_use]
    pub fn active_tier(&self) -> Option<String> {
        self.routes.borrow().active_tier.clone()
    }

    /// A place among the requests that wait for a tier, until it is dropped; `None` where too many wait already.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Option<Held> {
        let held = Held { model: Arc::clone(self) };
        (self.held.fetch_add(1, Ordering::Relaxed) < self.timing.max_held).then_some(held)
    }

    /// Requests that wait for a tier.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The moves so far, oldest first.
    #[must_use]
    pub fn switches(&self) -> Vec<SwitchRecord> {
        self.lock().switches.iter().cloned().collect()
    }

    /// Takes over what the watches say.
    pub fn update(&self, config: Arc<ModelConfig>, endpoints: Vec<Arc<Endpoint>>) {
        let old = std::mem::replace(
            &mut *self.config.write().unwrap_or_else(PoisonError::into_inner),
            Arc::clone(&config),
        );
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
        {
            // Under the lock, behind whoever still shows the old tiers: one that is gone would be shown for ever.
            let _memory = self.lock();
            self.metrics.forget_tiers(&old, |tier| !config.tiers.iter().any(|kept| kept.name == tier));
        }
        self.reroute();
    }

    /// Ends the model, which is gone from the cluster.
    pub fn retire(&self) {
        self.endpoints().iter().for_each(|endpoint| endpoint.remove());
        // Under the lock, so that no reroute shows it again.
        let mut memory = self.lock();
        memory.retired = true;
        self.metrics.forget_model(&self.config());
    }

    /// Applies one event to an endpoint, and moves traffic where that changes something.
    pub fn report(&self, endpoint: &Endpoint, event: HealthEvent) {
        let (before, after) = endpoint.apply(event, self.clock.now(), self.health_settings());
        if before == after {
            return;
        }
        let (model, address) = (&endpoint.config.model, endpoint.config.api);
        info!(%model, tier = %endpoint.config.tier, %address, ?before, ?after, "health of an endpoint changed");
        if let Health::Unhealthy(_) = after {
            endpoint.look.notify_one();
        }
        self.reroute();
    }

    /// Lets time pass: silent endpoints are noticed, a due failback happens.
    pub fn tick(&self) {
        for endpoint in self.endpoints() {
            self.report(&endpoint, HealthEvent::Tick { waiting: endpoint.owes_answers() });
        }
        self.metrics.retry_budget(&self.config().name, self.budget.left(std::time::Instant::now()));
        self.reroute();
    }

    /// Each tier and why it does not serve, as one sentence.
    #[must_use]
    pub fn describe_tiers(&self) -> String {
        let (config, endpoints) = (self.config(), self.endpoints());
        let tiers = config.tiers.iter().map(|tier| {
            let of_tier: Vec<_> = endpoints.iter().filter(|e| e.config.tier == tier.name).collect();
            let states: Vec<String> = of_tier
                .iter()
                .map(|endpoint| match endpoint.health() {
                    Health::Healthy => format!("{} is healthy", endpoint.config.api),
                    Health::Unknown => format!("{} was not probed yet", endpoint.config.api),
                    Health::Unhealthy(cause) => format!("{} is unhealthy: {cause}", endpoint.config.api),
                })
                .collect();
            let state =
                if states.is_empty() { "no pod with an address".to_owned() } else { states.join(", ") };
            let message = tier.message.as_deref().map_or_else(String::new, |text| format!(" ({text})"));
            format!("{}: {state}{message}", tier.name)
        });
        tiers.collect::<Vec<_>>().join("; ")
    }

    fn health_settings(&self) -> HealthSettings {
        let millis =
            |duration: std::time::Duration| Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX);
        HealthSettings {
            unhealthy_after_ms: millis(self.config().unhealthy_after),
            tick_ms: millis(self.timing.tick).saturating_mul(3),
            patience: Patience {
                hang_after_ms: millis(self.timing.hang_after),
                first_byte_after_ms: millis(self.timing.first_byte_after),
            },
        }
    }

    fn reroute(&self) {
        // Held from the look at the healths until the routes are published: of two reroutes at once, the one with
        // the older view must not publish last.
        let mut memory = self.lock();
        let (config, endpoints) = (self.config(), self.endpoints());
        // Looked at once: what is mended a moment later was the cause of a move all the same.
        let seen: Vec<(Health, Option<Millis>)> =
            endpoints.iter().map(|endpoint| endpoint.health_and_trouble()).collect();
        let tiers: Vec<TierView<'_>> = config
            .tiers
            .iter()
            .map(|tier| TierView {
                name: &tier.name,
                endpoints: (0..endpoints.len())
                    .filter(|id| endpoints[*id].config.tier == tier.name)
                    .map(|id| EndpointView { id, health: seen[id].0 })
                    .collect(),
            })
            .collect();
        let now = self.clock.now();
        let failback_after_ms = Millis::try_from(config.failback_after.as_millis()).unwrap_or(Millis::MAX);
        let decision = route(&RouteInput {
            tiers: &tiers,
            mode: config.pinned_tier.as_deref().map_or(Mode::Auto, Mode::Pinned),
            failback_after_ms,
            hint: config.active_tier_hint.as_deref(),
            state: &memory.failback,
            now,
        });
        // What was taken down on purpose starts anew afterwards: which tier is up first then is no failover.
        memory.failback = if config.suspended { FailbackState::default() } else { decision.state };
        let routes = Routes {
            active_tier: decision.active.map(|index| config.tiers[index].name.clone()),
            order: decision
                .order
                .iter()
                .map(|routed| Route { endpoint: Arc::clone(&endpoints[routed.id]), healthy: routed.healthy })
                .collect(),
        };
        if let Some(switch) = decision.switch {
            let (cause, since) = if switch.voluntary && config.pinned_tier.as_ref() == Some(&switch.to) {
                // Nothing was wrong: somebody wanted it so.
                ("Pinned", None)
            } else if switch.voluntary {
                ("FailedBack", memory.failback.healthy_since(&switch.to))
            } else {
                let of_lost = || {
                    let all = endpoints.iter().zip(&seen);
                    all.filter(|(endpoint, _)| endpoint.config.tier == switch.from).map(|(_, seen)| seen)
                };
                let cause = of_lost().find_map(|(health, _)| match health {
                    Health::Unhealthy(cause) => Some(cause.as_str()),
                    Health::Healthy | Health::Unknown => None,
                });
                (cause.unwrap_or("Gone"), of_lost().filter_map(|(_, since)| *since).min())
            };
            memory.seq += 1;
            let record = SwitchRecord {
                seq: memory.seq,
                from: switch.from,
                to: switch.to,
                cause,
                millis: now.saturating_sub(since.unwrap_or(now)),
                at: jiff::Timestamp::now(),
            };
            info!(model = %config.name, from = %record.from, to = %record.to, cause, millis = record.millis,
                "traffic moved to another tier");
            self.metrics.switched(&config.name, &record, switch.voluntary);
            memory.switches.push_back(record);
            if memory.switches.len() > KEPT_SWITCHES {
                memory.switches.pop_front();
            }
        }
        self.queue.set_capacity(capacity(&routes));
        if !memory.retired {
            self.metrics.active_tier(&config, routes.active_tier.as_deref());
        }
        self.routes.send_if_modified(|current| {
            let same = current.active_tier == routes.active_tier
                && current.order.len() == routes.order.len()
                && current
                    .order
                    .iter()
                    .zip(&routes.order)
                    .all(|(a, b)| a.healthy == b.healthy && Arc::ptr_eq(&a.endpoint, &b.endpoint));
            if !same {
                *current = Arc::new(routes);
            }
            !same
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one request.
    pub fn count(&self, counter: impl Fn(&RequestCounts) -> &AtomicU64) {
        counter(&self.counts).fetch_add(1, Ordering::Relaxed);
    }
}

/// A request that waits for a tier.
#[derive(Debug)]
pub struct Held {
    model: Arc<Model>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.model.held.fetch_sub(1, Ordering::Relaxed);
    }
}
