//! One watch: kept going over every break, written to its store, and told to whoever triggers reconciles.
//!
//! What an event means is not decided here.

use std::{fmt::Debug, sync::Arc};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, reflector::store::Writer, watcher},
};
use prometheus::IntCounterVec;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::error::tell;

/// Where kubectl keeps what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is watched, and what is kept of it.
pub struct Watch<K: Resource>
where
    K: Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    /// Where it comes from.
    pub api: Api<K>,
    /// Which of it.
    pub config: watcher::Config,
    /// Where it is kept; nowhere where there is none.
    pub writer: Option<Writer<K>>,
    /// What its Rust type does not say.
    pub dyntype: K::DynamicType,
    /// Takes away what nobody reads.
    pub prune: fn(&mut K),
}

/// Where watches run, and what ends them.
pub struct Spawn<'a> {
    /// Where they run.
    pub tasks: &'a TaskTracker,
    /// What ends them.
    pub stop: &'a CancellationToken,
    /// Counts by kind how often they broke.
    pub broken: &'a IntCounterVec,
}

impl Spawn<'_> {
    /// Watches a kind whose Rust type is known; what is returned begins the watch anew.
    pub fn watch<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        writer: Option<Writer<K>>,
        on_event: impl FnMut(&watcher::Event<K>) + Send + 'static,
    ) -> Arc<Notify>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.watch_with(Watch { api, config, writer, dyntype: (), prune: |_| {} }, on_event)
    }

    /// Watches a kind; what is returned begins the watch anew.
    ///
    /// The store is written before `on_event` sees an event, so a reconcile never reads what is older than its cause.
    pub fn watch_with<K>(
        &self,
        watch: Watch<K>,
        mut on_event: impl FnMut(&watcher::Event<K>) + Send + 'static,
    ) -> Arc<Notify>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync + Unpin + Debug,
    {
        let Watch { api, config, mut writer, dyntype, prune } = watch;
        let kind = K::kind(&dyntype).into_owned();
        let open = move || {
            watcher(api.clone(), config.clone()).default_backoff().modify(move |object| {
                let metadata = object.meta_mut();
                metadata.managed_fields = None;
                // kubectl's copy of the whole object, which nobody reads.
                if let Some(annotations) = &mut metadata.annotations {
                    annotations.remove(LAST_APPLIED);
                }
                prune(object);
            })
        };
        let again = Arc::new(Notify::new());
        let called = Arc::clone(&again);
        let stop = self.stop.clone();
        let broken = self.broken.with_label_values(&[&kind]);
        self.tasks.spawn(async move {
            let mut stream = Box::pin(open());
            loop {
                let event = tokio::select! {
                    event = stream.next() => event,
                    // What the store holds stays until the new list is complete.
                    () = called.notified() => {
                        stream.set(open());
                        continue;
                    }
                    () = stop.cancelled() => return,
                };
                match event {
                    Some(Ok(event)) => {
                        if let Some(writer) = &mut writer {
                            writer.apply_watcher_event(&event);
                        }
                        on_event(&event);
                    }
                    Some(Err(error)) => {
                        broken.inc();
                        tracing::warn!(
                            kind,
                            error = %tell(&error),
                            "a watch broke and is begun anew"
                        );
                    }
                    None => return,
                }
            }
        });
        again
    }
}
