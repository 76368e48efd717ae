//! Watches the AtlasModels and EndpointSlices of the namespace and writes them as a table.
//!
//! While the API server is away the last table stands; a new list replaces it only when it is complete.

use atlas_crds::{AtlasModel, names};
use futures::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::table::ModelTable;

/// Keeps the table in step with the cluster until the token is cancelled. `listed` is cancelled once both first
/// lists are in the table.
pub async fn run(
    client: Client,
    namespace: &str,
    table: watch::Sender<ModelTable>,
    listed: CancellationToken,
    stop: CancellationToken,
) {
    let with_model = watcher::Config::default().labels(names::LABEL_MODEL);
    let (models, model_events) =
        follow::<AtlasModel>(Api::namespaced(client.clone(), namespace), watcher::Config::default());
    let (slices, slice_events) = follow::<EndpointSlice>(Api::namespaced(client, namespace), with_model);
    let mut events = std::pin::pin!(futures::stream::select(model_events, slice_events));
    let (mut models_listed, mut slices_listed) = (false, false);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Event::Failed { kind, error }) => {
                warn!(kind, %error, "the watch failed: serving from the last view, and trying again");
                continue;
            }
            Some(Event::Listed { kind }) => {
                models_listed |= kind == AtlasModel::kind(&());
                slices_listed |= kind == EndpointSlice::kind(&());
            }
            Some(Event::Changed) => {}
        }
        // A table of one half would take every endpoint away from its model.
        if models_listed && slices_listed {
            let mut new = ModelTable::from_objects(&models.state(), &slices.state());
            table.send_if_modified(|old| {
                new.keys.clone_from(&old.keys);
                let changed = *old != new;
                *old = new;
                changed
            });
            listed.cancel();
        }
    }
}

/// What matters of a watch's events once the store has taken them in.
enum Event {
    Listed { kind: String },
    Changed,
    Failed { kind: String, error: watcher::Error },
}

fn follow<K>(api: Api<K>, config: watcher::Config) -> (Store<K>, impl Stream<Item = Event>)
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let events =
        reflector::reflector(writer, watcher(api, config).default_backoff()).filter_map(|event| async {
            let kind = || K::kind(&()).into_owned();
            match event {
                Ok(watcher::Event::InitDone) => Some(Event::Listed { kind: kind() }),
                Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_)) => Some(Event::Changed),
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
                Err(error) => Some(Event::Failed { kind: kind(), error }),
            }
        });
    (store, events)
}
