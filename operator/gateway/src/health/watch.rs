//! Watches the AtlasModels and EndpointSlices of the namespace and writes them as a table.
//!
//! While the API server is away the last table stands; a new list replaces it only when it is complete.

use atlas_crds::{AtlasModel, names};
use futures::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Resource,
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
    models: Api<AtlasModel>,
    slices: Api<EndpointSlice>,
    watch_seconds: u32,
    table: watch::Sender<ModelTable>,
    listed: CancellationToken,
    stop: CancellationToken,
) {
    let all = watcher::Config::default().timeout(watch_seconds);
    let with_model = all.clone().labels(names::LABEL_MODEL);
    let (models, model_events) = follow(models, all);
    let (slices, slice_events) = follow(slices, with_model);
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

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use axum::{Json, Router, body::Body, extract::Query, response::IntoResponse, routing::get};
    use serde_json::{Value, json};

    use super::*;

    /// A list without items.
    fn list(kind: &str, version: &str) -> Json<Value> {
        Json(json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": []}))
    }

    /// A watch that says this and is silent then, and does not end.
    fn silent_after(event: Option<&Value>) -> Body {
        let said = event.map(|event| Ok::<_, std::io::Error>(format!("{event}\n")));
        Body::from_stream(futures::stream::iter(said).chain(futures::stream::pending()))
    }

    /// An API server whose first watches are gone without a word, as with a node that lost its power.
    async fn api_server() -> std::net::SocketAddr {
        let watches = Arc::new(AtomicUsize::new(0));
        let model = json!({"type": "ADDED", "object": {
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
            "metadata": {"name": "code", "namespace": "atlas", "resourceVersion": "2"},
            "spec": {"tiers": [{"name": "primary", "gpuProfile": "p", "model": {"source": "https://h/m.gguf"}}]},
        }});
        let models = async move |Query(query): Query<HashMap<String, String>>| {
            if !query.contains_key("watch") {
                return list("AtlasModelList", "atlas.gillsystems.com/v1alpha1").into_response();
            }
            let again = watches.fetch_add(1, Ordering::Relaxed) > 0;
            silent_after(again.then_some(&model)).into_response()
        };
        let slices = async |Query(query): Query<HashMap<String, String>>| match query.contains_key("watch") {
            false => list("EndpointSliceList", "discovery.k8s.io/v1").into_response(),
            true => silent_after(None).into_response(),
        };
        let router = Router::new()
            .route("/apis/atlas.gillsystems.com/v1alpha1/namespaces/atlas/atlasmodels", get(models))
            .route("/apis/discovery.k8s.io/v1/namespaces/atlas/endpointslices", get(slices));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn a_watch_whose_server_is_gone_without_a_word_is_begun_again() {
        let server = format!("http://{}", api_server().await).parse().unwrap();
        let client = kube::Client::try_from(kube::Config::new(server)).unwrap();
        let (writer, mut table) = watch::channel(ModelTable::default());
        let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let (models, slices) =
            (Api::namespaced(client.clone(), "atlas"), Api::namespaced(client.clone(), "atlas"));
        tokio::spawn(async move { run(models, slices, 1, writer, listed, stop).await });
        let seen = table.wait_for(|table| table.models.contains_key("code"));
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        seen.expect("what the second watch says is taken over").unwrap();
    }
}
