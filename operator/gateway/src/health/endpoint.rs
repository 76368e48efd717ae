//! One engine as the gateway holds it: address, connections, health, and who waits on it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use atlas_operator_core::routing::{Cause, EndpointHealth, Health, HealthEvent, HealthSettings, Millis};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::facts::EngineFacts;
use crate::{
    balance::{self, Candidate},
    dialect::Dialect,
    pool::Pool,
    table::EndpointConfig,
};

/// A port of an engine that requests go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The public API.
    Api,
    /// The internal one, where streams can be resumed.
    Internal,
}

/// One engine.
#[derive(Debug)]
pub struct Endpoint {
    /// What the cluster says about it; readiness is in the health.
    pub config: EndpointConfig,
    /// Tokens of the requests that it holds, roughly.
    outstanding: AtomicU64,
    identity: u64,
    /// Those of them without a byte of their answer.
    awaiting: AtomicUsize,
    /// Ends its prober.
    pub removed: CancellationToken,
    /// Asks its prober to look at once.
    pub look: tokio::sync::Notify,
    /// Connections for requests; probes have their own.
    api_pool: Pool,
    internal_pool: Pool,
    /// By API: chats and completions, and those that tell tokens in comments.
    no_resume: [AtomicBool; 2],
    health: Mutex<EndpointHealth>,
    facts: RwLock<Arc<EngineFacts>>,
    last_byte: AtomicU64,
    lost: watch::Sender<Option<Cause>>,
}

impl Endpoint {
    /// An endpoint that was seen for the first time.
    #[must_use]
    pub fn new(config: EndpointConfig, now: Millis) -> Self {
        Self {
            health: Mutex::new(EndpointHealth::new(config.ready, now)),
            identity: balance::hash(config.api.to_string().as_bytes()),
            config,
            api_pool: Pool::default(),
            internal_pool: Pool::default(),
            no_resume: Default::default(),
            outstanding: AtomicU64::new(0),
            awaiting: AtomicUsize::new(0),
            facts: RwLock::default(),
            removed: CancellationToken::new(),
            look: tokio::sync::Notify::new(),
            last_byte: AtomicU64::new(0),
            lost: watch::Sender::new(None),
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lock().health()
    }

    /// What is known of it, and the first sign of the trouble that is going on.
    #[must_use]
    pub fn health_and_trouble(&self) -> (Health, Option<Millis>) {
        let health = self.lock();
        (health.health(), health.trouble_since())
    }

    /// The idle connections to a port.
    #[must_use]
    pub fn pool(&self, port: Port) -> &Pool {
        match port {
            Port::Api => &self.api_pool,
            Port::Internal => &self.internal_pool,
        }
    }

    /// Where a port is.
    #[must_use]
    pub fn address(&self, port: Port) -> SocketAddr {
        match port {
            Port::Api => self.config.api,
            Port::Internal => self.config.internal,
        }
    }

    /// Whether its streams of this API can be resumed, as far as is known.
    #[must_use]
    pub fn takes_resume(&self, dialect: Dialect) -> bool {
        !self.no_resume[usize::from(dialect != Dialect::OpenAi)].load(Ordering::Relaxed)
    }

    /// It does not know the resume contract for this API: there are engines that know it for chats and completions only.
    pub fn refuses_resume(&self, dialect: Dialect) {
        self.no_resume[usize::from(dialect != Dialect::OpenAi)].store(true, Ordering::Relaxed);
    }

    /// What it has to do, for the choice among equals.
    #[must_use]
    pub fn load(&self) -> Candidate {
        Candidate { identity: self.identity, outstanding: self.outstanding.load(Ordering::Relaxed) }
    }

    /// What the engine last said about itself.
    #[must_use]
    pub fn facts(&self) -> Arc<EngineFacts> {
        Arc::clone(&self.facts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in what the engine says about itself.
    pub fn learn(&self, facts: EngineFacts) {
        if *self.facts() != facts {
            *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        }
    }

    /// Whether requests wait here without a byte of their answer.
    #[must_use]
    pub fn owes_answers(&self) -> bool {
        self.awaiting.load(Ordering::Relaxed) > 0
    }

    /// Notes that bytes of an answer arrived; cheap enough for every frame. The next tick looks at it.
    pub fn saw_bytes(&self, now: Millis) {
        self.last_byte.store(now, Ordering::Relaxed);
    }

    /// Applies one event and returns the health before and after it.
    pub fn apply(&self, event: HealthEvent, now: Millis, settings: HealthSettings) -> (Health, Health) {
        let (before, after) = {
            let mut health = self.lock();
            let before = health.health();
            health.apply(
                HealthEvent::BytesSeen { at: self.last_byte.load(Ordering::Relaxed) },
                now,
                settings,
            );
            health.apply(event, now, settings);
            (before, health.health())
        };
        if before != after {
            self.tell_waiters(match after {
                Health::Unhealthy(cause) => Some(cause),
                Health::Healthy | Health::Unknown => None,
            });
        }
        (before, after)
    }

    /// Ends everything that has to do with the endpoint, because its pod is gone.
    pub fn remove(&self) {
        self.removed.cancel();
        self.tell_waiters(Some(Cause::Gone));
    }

    fn tell_waiters(&self, cause: Option<Cause>) {
        let fatal = cause.filter(|cause| cause.ends_running_requests());
        if fatal.is_some() {
            self.api_pool.clear();
            self.internal_pool.clear();
        }
        self.lost.send_if_modified(|lost| std::mem::replace(lost, fatal) != fatal);
    }

    /// A handle on the moment at which waiting for the endpoint becomes pointless.
    #[must_use]
    pub fn loss(&self) -> Loss {
        Loss { receiver: self.lost.subscribe() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, EndpointHealth> {
        // The state machine cannot panic half-way, so a poisoned lock holds a whole state.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the loss of an endpoint.
#[derive(Debug)]
pub struct Loss {
    receiver: watch::Receiver<Option<Cause>>,
}

impl Loss {
    /// Returns once the endpoint is lost, with the cause; never if it is not.
    pub async fn wait(&mut self) -> Cause {
        match self.receiver.wait_for(Option::is_some).await {
            Ok(cause) => cause.unwrap_or(Cause::Gone),
            Err(_) => Cause::Gone,
        }
    }
}

/// Counts a request on its endpoint for as long as it lives.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    tokens: u64,
}

impl InFlight {
    /// Counts one request of so many tokens.
    #[must_use]
    pub fn begin(endpoint: Arc<Endpoint>, tokens: u64) -> Self {
        endpoint.outstanding.fetch_add(tokens, Ordering::Relaxed);
        Self { endpoint, tokens }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.outstanding.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// Counts a request that has no byte of its answer yet. A stream whose client reads slowly is none: what it waits for
/// is not the engine.
#[derive(Debug)]
pub struct Awaiting<'e> {
    endpoint: &'e Endpoint,
}

impl<'e> Awaiting<'e> {
    /// Counts one request.
    #[must_use]
    pub fn begin(endpoint: &'e Endpoint) -> Self {
        endpoint.awaiting.fetch_add(1, Ordering::Relaxed);
        Self { endpoint }
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.endpoint.awaiting.fetch_sub(1, Ordering::Relaxed);
    }
}
