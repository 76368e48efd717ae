//! Memory of the card as this process uses it, for whoever plans with estimates.
//!
//! The driver counts everybody's memory together, so what was in use before the runtime was opened is taken off. Who
//! takes or gives back memory of the same card later disturbs the figure; readers bound what they make of it.

use atlas_engine_core::backend::MemoryUse;
use atlas_kernels::hip::{Card, Health};
use serde_json::{Value, json};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Memory of one card, watched since before this process took any of it.
#[derive(Debug)]
pub struct Vram {
    card: Card,
    /// In use by others, when the process began.
    before: Option<u64>,
    own_peak: AtomicU64,
    /// What the backend took, once the model is loaded.
    held: OnceLock<MemoryUse>,
}

impl Vram {
    /// Looks at the card before anything is taken of it.
    pub fn watch(card: Card) -> Self {
        let before = Health::read(&card).vram_used_bytes;
        Self { card, before, own_peak: AtomicU64::new(0), held: OnceLock::new() }
    }

    /// Notes what the backend took for the model.
    pub fn hold(&self, memory: MemoryUse) {
        // A process loads one model; a second figure would be of the same one.
        let _ = self.held.set(memory);
    }

    /// Reads the card, and the highest that this process was seen to use; nothing before the model is loaded.
    pub fn json(&self) -> Value {
        let used = Health::read(&self.card).vram_used_bytes;
        let own = used.zip(self.before).map(|(used, before)| used.saturating_sub(before));
        let peak = own.map(|own| self.own_peak.fetch_max(own, Relaxed).max(own));
        let held = self.held.get();
        json!({
            "usedBytes": used,
            "ownPeakBytes": peak.filter(|_| held.is_some()),
            "weightBytes": held.map(|held| held.weights),
            "kvCacheBytes": held.map(|held| held.kv_cache),
        })
    }
}
