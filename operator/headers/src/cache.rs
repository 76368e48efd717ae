//! What was read before, by address and reader, with the version it was read from.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use atlas_operator_core::vram::ModelShape;
use tokio::time::Instant;

use crate::ask::Pass;

/// More models than a cluster has; what was asked for longest ago goes first.
const MAX_ENTRIES: usize = 4096;

/// Who asked for which address. One pass's answers are nobody else's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    url: String,
    pass: u64,
}

impl Key {
    pub fn new(url: &str, pass: &Pass) -> Self {
        let mut hasher = DefaultHasher::new();
        pass.hash(&mut hasher);
        Self { url: url.to_owned(), pass: hasher.finish() }
    }
}

/// A header that was read.
#[derive(Debug, Clone)]
pub struct Entry {
    pub shape: Arc<ModelShape>,
    pub etag: Option<String>,
    pub immutable: bool,
    pub checked: Instant,
    used: Instant,
}

impl Entry {
    pub fn new(shape: Arc<ModelShape>, etag: Option<String>, immutable: bool) -> Self {
        let now = Instant::now();
        Self { shape, etag, immutable, checked: now, used: now }
    }

    /// Whether it needs no look at the server.
    pub fn is_fresh(&self, fresh_for: Duration) -> bool {
        self.immutable || self.checked.elapsed() < fresh_for
    }
}

/// Headers that were read.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
}

impl Cache {
    pub fn get(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.get_mut(key)?;
        entry.used = Instant::now();
        Some(entry.clone())
    }

    pub fn put(&mut self, key: Key, entry: Entry) {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, entry);
    }

    /// Notes that the server still has this version.
    pub fn confirm(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.checked = Instant::now();
        }
    }
}
