//! The data path: one OpenAI-compatible URL in front of every tier of a model.
//!
//! ```text
//! HTTP -> identify model -> authorise -> choose (pure routing policy over the tiers' live health)
//!      -> forward -> [error before the first byte: next endpoint, then next tier] -> stream back
//! probes + request outcomes + watch events -> health state -> routing policy
//! ```
//!
//! The gateway reads the cluster and never writes to it, and it needs the controller for nothing: with the
//! controller or the API server away it serves and fails over from its last view.

mod api;
mod attempt;
mod auth;
mod balance;
mod body;
mod budget;
mod call;
mod config;
mod connection;
mod cors;
mod crossing;
mod detached;
mod dialect;
mod error;
mod events;
mod forward;
mod headers;
mod health;
mod hold;
mod identify;
mod internal;
mod keys;
mod limits;
mod linger;
mod marks;
mod metrics;
mod model;
mod pace;
mod pool;
mod queue;
mod registry;
mod relay;
mod resume;
mod secrets;
mod server;
mod slow;
mod status;
mod table;
mod tls;
mod transcript;
mod validity;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kube::Api;
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

pub use config::{GatewayConfig, Timing};
pub use keys::{KeyRing, Keys};
pub use table::{EndpointConfig, ModelConfig, ModelTable, TierConfig};
pub use tls::{TlsError, TlsFiles};

/// Why a gateway could not run.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// A listener's port is taken, or its address is not this host's.
    #[error("cannot listen on {address}: is the port in use? choose another address with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A metric could not be registered.
    #[error("the metrics could not be registered")]
    Metrics(#[from] prometheus::Error),
}

/// Serves the models of a namespace until the token is cancelled, then finishes what runs.
///
/// # Errors
///
/// A listener's port is taken.
pub async fn run(
    config: GatewayConfig,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let (writer, table) = watch::channel(ModelTable::default());
    let (listed, watching) = (CancellationToken::new(), CancellationToken::new());
    let listeners = Listeners::bind(&config).await?;
    let (namespace, watch_seconds) = (config.namespace.clone(), config.timing.watch_seconds);
    let (first_lists, stop) = (listed.clone(), watching.clone());
    let watcher = tokio::spawn(async move {
        tokio::join!(
            health::watch::run(
                Api::namespaced(client.clone(), &namespace),
                Api::namespaced(client.clone(), &namespace),
                watch_seconds,
                writer.clone(),
                first_lists,
                stop.clone()
            ),
            secrets::run(client, &namespace, writer, stop),
        );
    });
    let served = serve(config, listeners, table, listed, shutdown).await;
    watching.cancel();
    if watcher.await.is_err() {
        warn!("the watches ended by a panic");
    }
    served
}

/// The two listeners of a gateway.
#[derive(Debug)]
pub struct Listeners {
    /// Of the API.
    pub api: TcpListener,
    /// Of the internal paths.
    pub internal: TcpListener,
}

impl Listeners {
    /// Opens both.
    ///
    /// # Errors
    ///
    /// A port is taken.
    pub async fn bind(config: &GatewayConfig) -> Result<Self, GatewayError> {
        let bind = async |address: SocketAddr, flag| {
            TcpListener::bind(address).await.map_err(|source| GatewayError::Listen { address, flag, source })
        };
        Ok(Self {
            api: bind(config.listen, "--listen").await?,
            internal: bind(config.internal_listen, "--internal-listen").await?,
        })
    }
}

/// Serves the models of a table until the token is cancelled, then finishes what runs. `listed` is cancelled by
/// whoever writes the table once it is complete for the first time.
///
/// # Errors
///
/// The metrics cannot be registered, or TLS cannot be set up.
pub async fn serve(
    config: GatewayConfig,
    listeners: Listeners,
    table: watch::Receiver<ModelTable>,
    listed: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let identity = config.tls.map(tls::Identity::open);
    let tls = identity.as_ref().map(tls::Identity::acceptor).transpose()?;
    let metrics = Arc::new(metrics::Metrics::register()?);
    let registry = Arc::new(registry::Registry::new(config.timing, Arc::clone(&metrics)));
    let internal = Arc::new(internal::Internal {
        pod: config.pod_name.clone(),
        identity: identity.clone(),
        registry: Arc::clone(&registry),
        metrics: Arc::clone(&metrics),
        listed: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
    });
    let api = Arc::new(api::Api {
        registry: Arc::clone(&registry),
        metrics,
        names: identify::HostNames { namespace: config.namespace, cluster_domain: config.cluster_domain },
        timing: config.timing,
        usage: Arc::default(),
    });
    let (stop_accepting, stop_all, running) =
        (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let background = TaskTracker::new();
    background.spawn({
        let stop = stop_all.clone();
        async move { registry.run(table, stop).await }
    });
    background.spawn({
        let (stop, router) = (stop_all.clone(), internal::router(Arc::clone(&internal)));
        async move {
            let served =
                axum::serve(listeners.internal, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                warn!(%error, "the internal listener ended");
            }
        }
    });
    if let Some(identity) = identity {
        background.spawn(identity.follow(config.timing.tls_reload, stop_all.clone()));
    }
    let door = server::Door { listener: listeners.api, tls };
    let closing = server::Closing { asked: shutdown.clone(), closes: stop_accepting.clone() };
    let accepting = background.spawn(server::accept(door, api, closing, running.clone()));

    tokio::select! {
        () = listed.cancelled() => {
            internal.listed.store(true, Ordering::Relaxed);
            info!("the first view of the cluster is complete");
            shutdown.cancelled().await;
        }
        () = shutdown.cancelled() => {}
    }
    // First unready, so that no new connections come; then closed, behind whoever came all the same; then what runs is
    // finished.
    internal.stopping.store(true, Ordering::Relaxed);
    tokio::time::sleep(config.timing.drain_grace).await;
    stop_accepting.cancel();
    if accepting.await.is_err() {
        warn!("the listener ended by a panic");
    }
    running.close();
    if tokio::time::timeout(config.timing.drain_timeout, running.wait()).await.is_err() {
        warn!(connections = running.len(), "stopping although requests still run: drain timeout reached");
    }
    stop_all.cancel();
    background.close();
    background.wait().await;
    Ok(())
}
