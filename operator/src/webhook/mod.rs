//! The validating webhook: what needs the cluster's knowledge is refused before it is stored.
//!
//! Every replica answers. It fails open: without it, or before its certificate is trusted, the same mistakes show as
//! conditions. It never waits for a header: what was not read before is no reason to refuse.

mod certificate;
mod keeper;
mod review;
#[cfg(test)]
mod review_tests;
mod server;

use std::{net::SocketAddr, sync::Arc};

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{headers::Headers, metrics::Metrics, stores::Stores};
use keeper::Keeper;
use server::{Answering, Identity};

/// What the webhook needs.
pub struct Webhook {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Name of its Service, Secret and ValidatingWebhookConfiguration.
    pub name: String,
    /// The operator's namespace.
    pub namespace: String,
    /// What its certificate is valid for.
    pub dns_names: Vec<String>,
    /// The API server.
    pub client: Client,
    /// Reflected copies.
    pub stores: Arc<Stores>,
    /// Headers that were read, where they are read.
    pub headers: Option<Arc<Headers>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Webhook {
    /// Answers until the token is cancelled.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on.
    pub async fn run(self, stop: CancellationToken) -> std::io::Result<()> {
        let Self { listen, name, namespace, dns_names, client, stores, headers, metrics } = self;
        let identity = Arc::new(Identity::default());
        let keeper =
            Keeper::new(client, &namespace, name, dns_names, Arc::clone(&identity), Arc::clone(&metrics));
        let answering = Answering { stores, headers, metrics };
        tokio::select! {
            served = server::serve(listen, identity, answering) => served,
            () = keeper.run() => Ok(()),
            () = stop.cancelled() => Ok(()),
        }
    }
}
