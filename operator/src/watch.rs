//! One watch: kept going over every break, written to its store, and told to whoever triggers reconciles.
//!
//! What an event means is not decided here.

use std::fmt::Debug;

use futures::{StreamExt, pin_mut};
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, reflector::store::Writer, watcher},
};
use serde::de::DeserializeOwned;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where watches run, and what ends them.
pub struct Spawn<'a> {
    /// Where they run.
    pub tasks: &'a TaskTracker,
    /// What ends them.
    pub stop: &'a CancellationToken,
}

impl Spawn<'_> {
    /// Watches a kind whose Rust type is known.
    pub fn watch<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        writer: Option<Writer<K>>,
        on_event: impl FnMut(&watcher::Event<K>) + Send + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.watch_with(api, config, writer, (), on_event);
    }

    /// Watches a kind.
    ///
    /// The store is written before `on_event` sees an event, so a reconcile never reads what is older than its cause.
    pub fn watch_with<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        writer: Option<Writer<K>>,
        dyntype: K::DynamicType,
        mut on_event: impl FnMut(&watcher::Event<K>) + Send + 'static,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync + Unpin + Debug,
    {
        let kind = K::kind(&dyntype).into_owned();
        let mut writer = writer;
        let stream = watcher(api, config).default_backoff().modify(|object| {
            object.meta_mut().managed_fields = None;
        });
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            pin_mut!(stream);
            loop {
                let event = tokio::select! {
                    event = stream.next() => event,
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
                        tracing::warn!(
                            kind,
                            error = &error as &dyn std::error::Error,
                            "a watch broke and is begun anew"
                        );
                    }
                    None => return,
                }
            }
        });
    }
}
