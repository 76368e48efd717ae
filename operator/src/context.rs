//! What reconciles share, and what they remember of each model between two passes.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use atlas_crds::{AtlasModel, profile::GpuProfileStatus, status::AtlasModelStatus};
use jiff::Timestamp;
use kube::{Client, ResourceExt};

use crate::{
    apply::Applier,
    config::NodeMark,
    desired::Settings,
    events::Events,
    gateway_set::GatewayTroubles,
    headers::Headers,
    metrics::Metrics,
    probe::GatewayViews,
    reports::Heard,
    status::{Move, MoveKind},
    status_write::Kept,
    stores::Stores,
    wrong_card::Tries,
};

/// What reconciles share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Reflected copies.
    pub stores: Arc<Stores>,
    /// Writer of objects.
    pub applier: Applier,
    /// What headers of model files say, where they are read.
    pub headers: Option<Arc<Headers>>,
    /// What the gateways say.
    pub gateways: Arc<GatewayViews>,
    /// Settings that show in objects.
    pub settings: Settings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writer of Events.
    pub events: Events,
    /// Per model uid, what the stores may not show yet.
    pub memory: Mutex<HashMap<String, Memory>>,
    /// Per namespace, what keeps its gateways from what they should be.
    pub gateway_troubles: Mutex<HashMap<String, GatewayTroubles>>,
    /// Moves before this are an earlier process's news.
    pub started: Timestamp,
    /// What nodes with failed cards show.
    pub mark_nodes: NodeMark,
    /// Per profile uid, its status as it was written.
    pub profiles: Mutex<HashMap<String, Kept<GpuProfileStatus>>>,
}

/// What a model's last reconcile left behind.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The status as it was written.
    pub status: Option<Kept<AtlasModelStatus>>,
    /// Time of the last failback that was told.
    pub last_failback: Option<Timestamp>,
    /// Failures in a row.
    pub failures: u32,
    /// New pods in the place of some that got another card.
    pub tries: Tries,
    /// Engines that have told what their headers say.
    pub heard: Heard,
}

impl Context {
    /// What is remembered of a model.
    pub fn memory_of(&self, uid: &str) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// What keeps the gateways of a namespace from what they should be.
    pub fn gateway_troubles_of(&self, namespace: &str) -> GatewayTroubles {
        let all = self.gateway_troubles.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(namespace).cloned().unwrap_or_default()
    }

    /// Changes what is remembered of a model.
    pub fn remember(&self, object: &AtlasModel, change: impl FnOnce(&mut Memory)) {
        let Some(uid) = object.uid() else { return };
        change(self.memory.lock().unwrap_or_else(PoisonError::into_inner).entry(uid).or_default());
    }

    /// Forgets models that are gone, whichever way they were deleted.
    pub fn forget_gone(&self) {
        if !self.stores.take_models_gone() {
            return;
        }
        let models = self.stores.models.state();
        let uids: HashSet<&str> = models.iter().filter_map(|model| model.metadata.uid.as_deref()).collect();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.retain(|uid, _| uids.contains(uid.as_str()));
        drop(memory);
        self.metrics.forget_models(|namespace, name| {
            models.iter().any(|m| m.metadata.namespace.as_deref() == Some(namespace) && m.name_any() == name)
        });
    }

    /// Moves that were not told yet.
    pub fn news(&self, uid: &str, mut moves: Vec<Move>) -> Vec<Move> {
        let mut all = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = all.entry(uid.to_owned()).or_default();
        let told = memory.last_failback.unwrap_or(self.started);
        moves.retain(|m| m.kind == MoveKind::FailedOver || m.at > told);
        if let Some(last) = moves.iter().filter(|m| m.kind != MoveKind::FailedOver).map(|m| m.at).max() {
            memory.last_failback = Some(last);
        }
        moves
    }
}
