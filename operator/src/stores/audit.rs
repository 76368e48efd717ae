//! Finds events that a watch has lost without breaking, and begins that watch anew.
//!
//! Such a watch cannot notice by itself: it goes on with the next event, and the client's libraries list again only
//! when a watch breaks. So every watched kind is compared from time to time with a list of names and versions, which
//! the API server answers from its cache; only the replica that leads asks.
//! Pods of other workloads are not compared: a cluster has too many, and the scheduler knows them anyway.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{
    Client, Resource, ResourceExt,
    api::ListParams,
    core::Request,
    runtime::{reflector::Store, watcher::Event},
};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Stores;
use crate::{error::tell, metrics::Metrics};

/// Namespace and name.
type Key = (String, String);
/// Versions of objects; the API server promises that they grow.
type Versions = HashMap<Key, u64>;

/// A watch whose store is compared with lists.
pub struct Audited {
    kind: String,
    path: String,
    labels: Option<String>,
    known: Box<dyn Fn() -> Versions + Send + Sync>,
    again: Arc<Notify>,
}

impl Audited {
    /// A watch whose objects a store holds; `labels` select them, `again` begins it anew.
    pub fn of<K>(
        store: &Store<K>,
        dyntype: &K::DynamicType,
        labels: Option<String>,
        again: Arc<Notify>,
    ) -> Self
    where
        K: Resource + Clone + Send + Sync + 'static,
        K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
    {
        let store = store.clone();
        let known = move || store.state().iter().filter_map(|object| version_of(&**object)).collect();
        Self {
            kind: K::kind(dyntype).into_owned(),
            path: K::url_path(dyntype, None),
            labels,
            known: Box::new(known),
            again,
        }
    }

    /// A watch of which only versions are kept.
    pub fn of_versions<K: Resource<DynamicType = ()>>(log: &Arc<VersionLog>, again: Arc<Notify>) -> Self {
        let log = Arc::clone(log);
        Self {
            kind: K::kind(&()).into_owned(),
            path: K::url_path(&(), None),
            labels: None,
            known: Box::new(move || log.0.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            again,
        }
    }

    async fn list(&self, client: &Client) -> Result<List, kube::Error> {
        let mut params = ListParams::default().match_any();
        params.label_selector.clone_from(&self.labels);
        let request = Request::new(&self.path).list_metadata(&params).map_err(kube::Error::BuildRequest)?;
        client.request(request).await
    }
}

/// The versions of a watch whose objects are not kept.
#[derive(Debug, Default)]
pub struct VersionLog(Mutex<Versions>);

impl VersionLog {
    /// Takes an event over; `listed` holds a list that is not complete yet.
    pub fn follow<K: Resource>(&self, event: &Event<K>, listed: &mut HashMap<(String, String), u64>) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => listed.extend(version_of(object)),
            Event::InitDone => *log = std::mem::take(listed),
            Event::Apply(object) => log.extend(version_of(object)),
            Event::Delete(object) => {
                log.remove(&(object.namespace().unwrap_or_default(), object.name_any()));
            }
        }
    }
}

fn version_of(object: &impl ResourceExt) -> Option<(Key, u64)> {
    let version = object.meta().resource_version.as_ref()?.parse().ok()?;
    Some(((object.namespace().unwrap_or_default(), object.name_any()), version))
}

/// A list, of which nothing is read but names and versions.
#[derive(Debug, Deserialize)]
struct List {
    metadata: Meta,
    /// Of an empty list the API server says null.
    items: Option<Vec<Item>>,
}

#[derive(Debug, Deserialize)]
struct Item {
    metadata: Meta,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource_version: String,
}

/// What a list shows and the store does not, with the version that the store has: an event that is on its way, or one
/// that was lost.
fn find_suspects(list: List, known: &Versions) -> BTreeMap<Key, Option<u64>> {
    let mut suspects = BTreeMap::new();
    // Some versions are no numbers: nothing can be said of these.
    let Ok(taken_at) = list.metadata.resource_version.parse::<u64>() else { return suspects };
    let items = list.items.unwrap_or_default();
    let mut listed = Versions::with_capacity(items.len());
    for Item { metadata: Meta { name, namespace, resource_version } } in items {
        listed.insert((namespace, name), resource_version.parse().unwrap_or(0));
    }
    for (key, version) in &listed {
        let has = known.get(key).copied();
        if has.is_none_or(|has| has < *version) {
            suspects.insert(key.clone(), has);
        }
    }
    for (key, has) in known.iter().filter(|(key, has)| **has <= taken_at && !listed.contains_key(*key)) {
        suspects.insert(key.clone(), Some(*has));
    }
    suspects
}

/// The first suspect of which nothing was heard since.
fn find_lost(suspects: &BTreeMap<Key, Option<u64>>, known: &Versions) -> Option<Key> {
    let lost = suspects.iter().find(|(key, had)| known.get(*key).copied() == **had);
    lost.map(|(key, _)| key.clone())
}

impl Stores {
    /// Compares one watch after the other, each once in `every`, until it is stopped.
    pub async fn audit(&self, client: &Client, metrics: &Metrics, every: Duration, stop: CancellationToken) {
        let Some(audited) = self.audited.get() else { return };
        let pause = every / u32::try_from(audited.len().max(1)).unwrap_or(1);
        let mut suspected = None;
        for watch in audited.iter().cycle() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            if let Some((before, suspects)) = suspected.take() {
                let before: &Audited = before;
                if let Some((namespace, name)) = find_lost(&suspects, &(before.known)()) {
                    tracing::warn!(
                        kind = before.kind,
                        namespace,
                        name,
                        "a watch has lost an event and is begun anew"
                    );
                    metrics.lost_events.with_label_values(&[&before.kind]).inc();
                    before.again.notify_one();
                }
            }
            match watch.list(client).await {
                Ok(list) => {
                    let suspects = find_suspects(list, &(watch.known)());
                    suspected = (!suspects.is_empty()).then_some((watch, suspects));
                }
                Err(error) => tracing::debug!(
                    kind = watch.kind,
                    error = %tell(&error),
                    "a watch could not be compared with a list"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(name: &str) -> Key {
        ("ns".to_owned(), name.to_owned())
    }

    fn versions(all: &[(&str, u64)]) -> Versions {
        all.iter().map(|(name, version)| (key(name), *version)).collect()
    }

    #[test]
    fn what_a_list_shows_and_the_store_does_not_is_suspected() {
        let check = |listed: &[(&str, u64)], known: &[(&str, u64)], expected: &[(&str, Option<u64>)]| {
            let items: Vec<_> = listed
                .iter()
                .map(|(name, version)| {
                    json!({"metadata": {"namespace": "ns", "name": name, "resourceVersion": version.to_string()}})
                })
                .collect();
            let items = if items.is_empty() { json!(null) } else { json!(items) };
            let list =
                serde_json::from_value(json!({"metadata": {"resourceVersion": "100"}, "items": items}))
                    .unwrap();
            let expected = expected.iter().map(|(name, has)| (key(name), *has)).collect();
            assert_eq!(find_suspects(list, &versions(known)), expected, "{listed:?} {known:?}");
        };
        check(&[("a", 7)], &[("a", 7)], &[]);
        check(&[("a", 9)], &[("a", 7)], &[("a", Some(7))]);
        // The list is older than the store.
        check(&[("a", 7)], &[("a", 9)], &[]);
        check(&[], &[("new", 101)], &[]);
        // Made, and deleted.
        check(&[("a", 7), ("b", 8)], &[("a", 7)], &[("b", None)]);
        check(&[("a", 7)], &[("a", 7), ("b", 8)], &[("b", Some(8))]);
    }

    #[test]
    fn a_suspect_is_lost_when_nothing_was_heard_of_it_since() {
        let check = |had: Option<u64>, known: &[(&str, u64)], lost: bool| {
            let suspects = BTreeMap::from([(key("a"), had)]);
            assert_eq!(find_lost(&suspects, &versions(known)).is_some(), lost, "{had:?} {known:?}");
        };
        check(Some(7), &[("a", 7)], true);
        check(Some(7), &[("a", 9)], false);
        check(Some(7), &[], false);
        check(None, &[], true);
        check(None, &[("a", 9)], false);
    }
}
