//! What is the same for every model of a profile, kept until something that it was made from changes.
//!
//! A change is noted after its store was written, and read before the store is: what is kept may be newer than its
//! number says, never older.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use atlas_crds::{AtlasModel, GpuProfile};
use atlas_operator_core::vram::Calibrations;
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::Stores;
use crate::{
    kinds::Kind,
    place::{Ground, Shares, World, most_wanted},
};

/// What has changed.
#[derive(Debug, Clone, Copy)]
pub enum Changed {
    /// A node, as far as it matters.
    Nodes,
    /// What pods of others hold.
    Others,
    /// A profile's specification, or the nodes that it excludes.
    Profiles,
    /// A model's specification.
    Models,
    /// A pod of ours.
    Pods,
    /// A Deployment of ours.
    Deployments,
    /// What is known of headers.
    Headers,
}

const KINDS_OF_CHANGES: usize = 7;
/// What shares are made from.
const OF_SHARES: [Changed; KINDS_OF_CHANGES] = [
    Changed::Nodes,
    Changed::Others,
    Changed::Profiles,
    Changed::Models,
    Changed::Pods,
    Changed::Deployments,
    Changed::Headers,
];

/// Whether a tier of any model, on a card of this profile, is known not to fit.
type Refusals = Box<dyn Fn(&Stores, &Calibrations, (&AtlasModel, usize), &GpuProfile) -> bool + Send + Sync>;
/// Namespace and name of a model.
type Key = (String, String);

/// Something that was made when the changes were so many.
type Kept<const N: usize, T> = Mutex<HashMap<String, ([u64; N], Arc<T>)>>;

/// What is kept.
#[derive(Default)]
pub struct CardCache {
    changes: [AtomicU64; KINDS_OF_CHANGES],
    most_wanted: Kept<1, HashMap<String, i32>>,
    grounds: Kept<3, Ground>,
    shares: Kept<KINDS_OF_CHANGES, Shares>,
    /// Models that wait for cards or nodes of these profiles, and say which nodes refuse them.
    waiting: Mutex<HashMap<Key, BTreeSet<String>>>,
    refusals: OnceLock<Refusals>,
}

impl CardCache {
    /// Notes a change.
    pub fn note(&self, what: Changed) {
        self.changes[what as usize].fetch_add(1, Ordering::Release);
    }

    fn count<const N: usize>(&self, of: [Changed; N]) -> [u64; N] {
        of.map(|what| self.changes[what as usize].load(Ordering::Acquire))
    }
}

/// What was made from as many changes, or what is made now. Whoever asks meanwhile waits for it.
fn keep<const N: usize, T>(
    kept: &Kept<N, T>,
    name: &str,
    count: [u64; N],
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.get(name) {
        Some((then, made)) if *then == count => Arc::clone(made),
        _ => {
            let made = Arc::new(make());
            kept.insert(name.to_owned(), (count, Arc::clone(&made)));
            made
        }
    }
}

impl Stores {
    /// Tells how to find out whether a tier is known not to fit.
    pub fn refuse_by(&self, refusals: Refusals) {
        let _ = self.cards.refusals.set(refusals);
    }

    /// Notes that a header was read, or could not be.
    pub fn note_header(&self) {
        self.cards.note(Changed::Headers);
    }

    /// What the nodes of a profile offer.
    #[must_use]
    pub fn ground(&self, profile: &GpuProfile) -> Arc<Ground> {
        let count = self.cards.count([Changed::Nodes, Changed::Others, Changed::Profiles]);
        let name = profile.name_any();
        keep(&self.cards.grounds, &name, count, || {
            let profiles = self.profiles.state();
            let profiles: Vec<&GpuProfile> = profiles.iter().map(AsRef::as_ref).collect();
            // Not the caller's, which may be older than the changes that were counted.
            let newest = profiles.iter().find(|known| known.name_any() == name).copied().unwrap_or(profile);
            Ground::survey(newest, &profiles, &self.nodes(), &self.others())
        })
    }

    /// How a profile's cards are shared out.
    #[must_use]
    pub fn shares(&self, profile: &GpuProfile, ground: &Ground) -> Arc<Shares> {
        let count = self.cards.count(OF_SHARES);
        let name = profile.name_any();
        let models = self.cards.count([Changed::Models]);
        let most = keep(&self.cards.most_wanted, "", models, || most_wanted(&self.models.state()));
        // Where the nodes that take pods have cards for all, nothing else has to be looked at.
        if ground.open > 0 && most.get(&name).is_none_or(|most| *most <= ground.open) {
            return Arc::new(Shares::Ample);
        }
        keep(&self.cards.shares, &name, count, || {
            let granted = |namespace: &str, name: &str| {
                self.child(Kind::Deployment, namespace, name).map_or(0, |live| live.replicas())
            };
            let profiles = self.profiles.state();
            let calibrations = Calibrations::of(profiles.iter().map(AsRef::as_ref));
            let refused = |model: &AtlasModel, index: usize, profile: &GpuProfile| {
                let refusals = self.cards.refusals.get();
                refusals.is_some_and(|refuses| refuses(self, &calibrations, (model, index), profile))
            };
            let world = World {
                models: &self.models.state(),
                nodes: &self.nodes(),
                pods: &|namespace, name| self.engine_pods(namespace, name),
                granted: &granted,
                refused: &refused,
            };
            Shares::of(profile, ground, &world)
        })
    }

    /// Notes for cards or nodes of which profiles a model waits.
    pub fn note_waiting(&self, namespace: &str, name: &str, profiles: BTreeSet<String>) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut all = self.cards.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if profiles.is_empty() {
            all.remove(&key);
        } else {
            all.insert(key, profiles);
        }
    }

    pub(super) fn model_is_gone(&self, model: &AtlasModel) {
        self.note_waiting(&model.namespace().unwrap_or_default(), &model.name_any(), BTreeSet::new());
    }

    /// Asks for a reconcile of every model that waits for cards or nodes of a profile.
    pub(super) fn trigger_waiting(&self, profile: &str) {
        let all = self.cards.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for ((namespace, name), _) in all.iter().filter(|(_, profiles)| profiles.contains(profile)) {
            self.trigger_model(ObjectRef::new(name).within(namespace));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_kept_until_what_it_was_made_from_changes() {
        let cache = CardCache::default();
        let made = std::cell::Cell::new(0);
        let look = |name: &str| {
            let count = cache.count([Changed::Models]);
            keep(&cache.most_wanted, name, count, || {
                made.set(made.get() + 1);
                HashMap::new()
            });
            made.get()
        };
        assert_eq!((look("a"), look("a"), look("b")), (1, 1, 2));
        cache.note(Changed::Pods);
        assert_eq!(look("a"), 2);
        cache.note(Changed::Models);
        assert_eq!((look("a"), look("a"), look("b")), (3, 3, 4));
    }
}
