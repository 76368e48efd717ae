//! The models at run time, kept in step with the table.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use atlas_operator_core::routing::HealthEvent;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    config::Timing,
    health::{Clock, endpoint::Endpoint, probe},
    keys::KeyRing,
    metrics::Metrics,
    model::Model,
    table::{EndpointConfig, ModelConfig, ModelTable},
};

/// What requests are resolved against, replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the AtlasModels say, by name.
    pub configs: BTreeMap<String, Arc<ModelConfig>>,
    /// The same models at run time.
    pub models: BTreeMap<String, Arc<Model>>,
    /// The keys of callers.
    pub keys: KeyRing,
}

/// All models of the gateway.
#[derive(Debug)]
pub struct Registry {
    view: RwLock<Arc<View>>,
    clock: Clock,
    timing: Timing,
    metrics: Arc<Metrics>,
    probers: TaskTracker,
}

impl Registry {
    /// Without models.
    #[must_use]
    pub fn new(timing: Timing, metrics: Arc<Metrics>) -> Self {
        Self { view: RwLock::default(), clock: Clock::start(), timing, metrics, probers: TaskTracker::new() }
    }

    /// The models now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the table and the clock until the token is cancelled.
    pub async fn run(&self, mut table: watch::Receiver<ModelTable>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.timing.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = true;
        self.take_over(&table.borrow_and_update().clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = table.changed(), if changes => match changed {
                    Ok(()) => {
                        let table = table.borrow_and_update().clone();
                        self.take_over(&table);
                    }
                    // Without its writer the last view still serves.
                    Err(_) => changes = false,
                },
                _ = ticks.tick() => for model in self.view().models.values() {
                    model.tick();
                },
            }
        }
        for model in self.view().models.values() {
            for endpoint in model.endpoints() {
                endpoint.removed.cancel();
            }
        }
        self.probers.close();
        self.probers.wait().await;
    }

    fn take_over(&self, table: &ModelTable) {
        let old = self.view();
        let mut models = BTreeMap::new();
        for (name, config) in &table.models {
            let model = old.models.get(name).cloned().unwrap_or_else(|| {
                info!(model = %name, "model added");
                let (clock, timing) = (self.clock, self.timing);
                Arc::new(Model::new(Arc::clone(config), clock, timing, Arc::clone(&self.metrics)))
            });
            let wanted = table.endpoints.iter().filter(|endpoint| endpoint.model == *name);
            let endpoints = self.keep_endpoints(&model, wanted);
            model.update(Arc::clone(config), endpoints);
            models.insert(name.clone(), model);
        }
        for (name, model) in &old.models {
            if !models.contains_key(name) {
                info!(model = %name, "model removed");
                model.retire();
            }
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(View { configs: table.models.clone(), models, keys: table.keys.clone() });
    }

    /// The endpoints that are wanted: known ones are kept with their health, new ones are probed from now on, and
    /// those that are gone are ended.
    fn keep_endpoints<'t>(
        &self,
        model: &Arc<Model>,
        wanted: impl Iterator<Item = &'t EndpointConfig>,
    ) -> Vec<Arc<Endpoint>> {
        let mut known = model.endpoints();
        let mut kept = Vec::new();
        for config in wanted {
            let same = |endpoint: &Arc<Endpoint>| {
                EndpointConfig { ready: config.ready, ..endpoint.config.clone() } == *config
            };
            if let Some(at) = known.iter().position(same) {
                let endpoint = known.swap_remove(at);
                model.report(&endpoint, HealthEvent::PodReady(config.ready));
                kept.push(endpoint);
            } else {
                let endpoint = Arc::new(Endpoint::new(config.clone(), self.clock.now()));
                self.probers.spawn(probe::run(Arc::clone(model), Arc::clone(&endpoint)));
                kept.push(endpoint);
            }
        }
        known.iter().for_each(|endpoint| endpoint.remove());
        kept
    }
}
