//! Reads the Secrets that models name for their API keys, again and again, so that a changed key works without a restart.
//!
//! The gateway may get Secrets by name and not list them, so it asks instead of watching. While the API server is away
//! the keys that were read last stand.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    keys::{KeyRing, Keys},
    table::ModelTable,
};

/// Distance of two looks at a Secret.
const PERIOD: Duration = Duration::from_secs(3);
/// Longest wait for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps the table's keys in step with the Secrets until the token is cancelled.
pub async fn run(client: Client, namespace: &str, table: watch::Sender<ModelTable>, stop: CancellationToken) {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let mut changes = table.subscribe();
    let mut failing = BTreeSet::new();
    loop {
        let (wanted, known) = {
            let table = changes.borrow_and_update();
            let wanted: BTreeSet<String> =
                table.models.values().filter_map(|model| model.api_keys_secret.clone()).collect();
            (wanted, table.keys.clone())
        };
        let mut keys = KeyRing::new();
        for name in wanted {
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = fetch(&secrets, &name) => read,
            };
            let read = match read {
                Ok(read) => {
                    if failing.remove(&name) {
                        info!(name, "the Secret with API keys can be read again");
                    }
                    Some(read)
                }
                Err(problem) => {
                    // Once, and not every three seconds for as long as the API server is away.
                    if failing.insert(name.clone()) {
                        warn!(name, problem, "the Secret with API keys cannot be read: the last keys stand");
                    }
                    None
                }
            };
            if let Some(read) = read.or_else(|| known.get(&name).cloned()) {
                keys.insert(name, read);
            }
        }
        table.send_if_modified(|table| {
            let changed = table.keys != keys;
            if changed {
                info!(secrets = keys.len(), "API keys changed");
                table.keys = keys;
            }
            changed
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// The keys of a Secret, and of one that is missing none; or why nobody knows.
async fn fetch(secrets: &Api<Secret>, name: &str) -> Result<Arc<Keys>, String> {
    match tokio::time::timeout(PATIENCE, secrets.get_opt(name)).await {
        Ok(Ok(secret)) => {
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            Ok(Arc::new(Keys::read(data.iter().map(|(name, value)| (name, value.0.as_slice())))))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
