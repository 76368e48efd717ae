//! Runs the controllers: watches and probes on every replica, reconciles on the leader.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use atlas_crds::names;
use atlas_headers::{Guard, HeaderReader, Limits, Options};
use futures::{StreamExt, channel::mpsc::unbounded};
use jiff::Timestamp;
use kube::{
    Client,
    runtime::{applier, controller},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    act::is_known_misfit,
    apply::Applier,
    config::ControllerArgs,
    context::Context,
    desired::Settings,
    error::{backoff, tell},
    events::Events,
    gateway_set,
    headers::Headers,
    leader::Elector,
    metrics::Metrics,
    probe::GatewayProber,
    probe::GatewayViews,
    profile, reconcile,
    state_metrics::StateMetrics,
    stores::{Queues, Stores},
    telemetry::{self, Health},
    webhook::Webhook,
};

/// Reconciles that run at once; each waits for the API server most of its time.
const CONCURRENCY: u16 = 16;

/// Why the controllers stopped.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The metrics could not be registered.
    #[error("the metrics could not be registered")]
    Metrics(#[source] prometheus::Error),
    /// The listener of the probes or of the webhook failed.
    #[error("{address} cannot be listened on: set another --listen or --webhook-listen")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another replica leads now.
    #[error("the Lease was lost: another replica leads")]
    LeaseLost,
    /// The reader of headers could not be set up.
    #[error("the headers of model files cannot be read: --read-headers=false does without")]
    Headers(#[source] atlas_headers::HeaderError),
    /// A watch ended for good.
    #[error("a watch ended")]
    WatchEnded,
}

/// The two ways to the API server.
pub struct Clients {
    /// For watches, which may be silent for long.
    pub watching: Client,
    /// For everything else: no answer in time is an error.
    pub asking: Client,
}

/// Runs until the token is cancelled.
///
/// # Errors
///
/// A listener failed, or the leadership was lost.
pub async fn run(
    args: ControllerArgs,
    clients: Clients,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let Clients { watching: watching_client, asking: client } = clients;
    let metrics = Arc::new(Metrics::new().map_err(ControllerError::Metrics)?);
    let tasks = TaskTracker::new();
    // Watches outlive the elections and end with the process.
    let watching = CancellationToken::new();
    let _end_of_watches = watching.clone().drop_guard();
    let ready = Arc::new(AtomicBool::new(false));
    let health = Health { ready: Arc::clone(&ready), metrics: Arc::clone(&metrics) };
    let listen = args.listen;
    let mut server = tokio::spawn(telemetry::serve(listen, health, watching.clone()));

    let serves_claims = tokio::select! {
        served = find_claims(&client) => served,
        ended = &mut server => return Err(listen_error(listen, ended)),
        () = stop.cancelled() => return Ok(()),
    };
    let stores = Stores::start(&watching_client, &tasks, &watching, serves_claims, &metrics.broken_watches);
    StateMetrics::new(&stores, metrics.leader.clone())
        .and_then(|state| metrics.register(state))
        .map_err(ControllerError::Metrics)?;
    let views = Arc::new(GatewayViews::default());
    let prober = GatewayProber {
        client: client.clone(),
        stores: Arc::clone(&stores),
        views: Arc::clone(&views),
        metrics: Arc::clone(&metrics),
        silence: args.gateway_silence,
    };
    tokio::select! {
        listed = stores.wait_until_ready() => listed.map_err(|_| ControllerError::WatchEnded)?,
        ended = &mut server => return Err(listen_error(listen, ended)),
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!("the first lists are in");
    tasks.spawn(prober.run(watching.clone()));
    ready.store(true, Ordering::Release);

    let headers = build_headers(&args, &client, &stores, &metrics)?;
    let reviewing = tokio::spawn(run_webhook(
        build_webhook(&args, &client, &stores, headers.as_ref(), &metrics),
        watching.clone(),
    ));
    if let Some(headers) = headers.clone() {
        stores.refuse_by(Box::new(move |stores, calibrations, tier, profile| {
            is_known_misfit(tier, profile, calibrations, &headers, stores)
        }));
    }
    let context = Arc::new(build_context(&args, &client, &stores, views, &metrics, headers));
    let led = tokio::select! {
        led = lead(&args, client, context, &stop) => led,
        ended = &mut server => Err(listen_error(listen, ended)),
        ended = reviewing => Err(listen_error(args.webhook_listen.unwrap_or(listen), ended)),
    };
    metrics.leader.set(0);
    ready.store(false, Ordering::Release);
    led
}

/// Asks whether the cluster serves resource claims, until there is an answer.
async fn find_claims(client: &Client) -> bool {
    let mut tries = 0;
    loop {
        match client.list_api_group_resources(names::CLAIMS_API).await {
            Ok(list) => {
                return list.resources.iter().any(|resource| resource.name == "resourceclaimtemplates");
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return false,
            Err(error) => {
                tries += 1;
                tracing::warn!(
                    tries,
                    error = %tell(&error),
                    "the API server was asked in vain"
                );
                tokio::time::sleep(backoff(tries)).await;
            }
        }
    }
}

fn listen_error(
    address: std::net::SocketAddr,
    ended: Result<std::io::Result<()>, tokio::task::JoinError>,
) -> ControllerError {
    let source = match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => std::io::Error::other("the listener ended"),
        Err(error) => std::io::Error::other(error),
    };
    ControllerError::Listen { address, source }
}

fn build_webhook(
    args: &ControllerArgs,
    client: &Client,
    stores: &Arc<Stores>,
    headers: Option<&Arc<Headers>>,
    metrics: &Arc<Metrics>,
) -> Option<Webhook> {
    let service = format!("{}.{}.svc", args.webhook_name, args.namespace);
    let mut dns_names = vec![format!("{service}.{}", args.cluster_domain), service];
    dns_names.extend(args.webhook_dns_name.iter().cloned());
    Some(Webhook {
        listen: args.webhook_listen?,
        name: args.webhook_name.clone(),
        namespace: args.namespace.clone(),
        dns_names,
        client: client.clone(),
        stores: Arc::clone(stores),
        headers: headers.cloned(),
        metrics: Arc::clone(metrics),
    })
}

async fn run_webhook(webhook: Option<Webhook>, stop: CancellationToken) -> std::io::Result<()> {
    match webhook {
        Some(webhook) => webhook.run(stop).await,
        None => std::future::pending().await,
    }
}

fn build_headers(
    args: &ControllerArgs,
    client: &Client,
    stores: &Arc<Stores>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Headers>>, ControllerError> {
    if !args.read_headers {
        return Ok(None);
    }
    let reader = HeaderReader::new(Options {
        hub: args.hub.clone(),
        token: args.hub_token.clone().filter(|token| !token.is_empty()),
        guard: Guard { allowed: args.header_allow_addresses.clone().into() },
        limits: Limits::default(),
    });
    let reader = reader.map_err(ControllerError::Headers)?;
    let secrets = args.read_secrets.then(|| client.clone());
    Ok(Some(Headers::new(reader, secrets, Arc::clone(stores), Arc::clone(metrics))))
}

fn build_context(
    args: &ControllerArgs,
    client: &Client,
    stores: &Arc<Stores>,
    gateways: Arc<GatewayViews>,
    metrics: &Arc<Metrics>,
    headers: Option<Arc<Headers>>,
) -> Context {
    Context {
        client: client.clone(),
        stores: Arc::clone(stores),
        applier: Applier { client: client.clone(), stores: Arc::clone(stores), metrics: Arc::clone(metrics) },
        gateways,
        headers,
        settings: Settings {
            operator_image: args.operator_image.clone(),
            engine_hip_image: args.engine_hip_image.clone(),
            engine_cpu_image: args.engine_cpu_image.clone(),
            image_pull_policy: args.image_pull_policy.clone(),
            cluster_domain: args.cluster_domain.clone(),
            gateway_replicas: args.gateway_replicas,
            image_pull_secrets: args.image_pull_secret.clone(),
            gateway_tls_secret: args.gateway_tls_secret.clone(),
        },
        metrics: Arc::clone(metrics),
        events: Events::new(client.clone(), args.pod_name.clone()),
        memory: Mutex::default(),
        gateway_troubles: Mutex::default(),
        started: Timestamp::now(),
        mark_nodes: args.mark_nodes,
        profiles: Mutex::default(),
    }
}

/// Waits for the leadership, reconciles while it lasts, and gives it back.
async fn lead(
    args: &ControllerArgs,
    client: Client,
    context: Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), ControllerError> {
    let mut elector =
        args.leader_election.then(|| Elector::new(client.clone(), &args.namespace, args.pod_name.clone()));
    if let Some(elector) = &mut elector
        && !elector.acquire(stop).await
    {
        return Ok(());
    }
    tracing::info!(identity = args.pod_name, "this replica reconciles");
    context.metrics.leader.set(1);
    let reconciling = CancellationToken::new();
    let every = args.audit_interval;
    let work = tokio::spawn(reconcile_until(Arc::clone(&context), every, reconciling.clone()));
    let held = async {
        match &mut elector {
            Some(elector) => elector.hold(stop, finish(&reconciling, work)).await,
            None => {
                stop.cancelled().await;
                finish(&reconciling, work).await;
                true
            }
        }
    };
    let start = async {
        if let Some(path) = &args.default_profiles {
            profile::create_defaults_until_done(&client, path).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        held = held => if held { Ok(()) } else { Err(ControllerError::LeaseLost) },
        () = start => Ok(()),
    }
}

/// Lets running reconciles finish.
async fn finish(reconciling: &CancellationToken, work: tokio::task::JoinHandle<()>) {
    reconciling.cancel();
    if let Err(error) = work.await {
        tracing::error!(error = %tell(&error), "a controller ended by itself");
    }
}

async fn reconcile_until(context: Arc<Context>, audit_interval: Duration, stop: CancellationToken) {
    let (models, model_triggers) = unbounded();
    let (profiles, profile_triggers) = unbounded();
    let (namespaces, namespace_triggers) = unbounded();
    context.stores.lead(Queues { models, profiles, namespaces });
    let config = controller::Config::default().concurrency(CONCURRENCY);
    // An object that went away between trigger and reconcile is no error, and errors were logged by the policy.
    let models = applier(
        |object, context| Box::pin(reconcile::reconcile(object, context)),
        reconcile::on_error,
        Arc::clone(&context),
        context.stores.models.clone(),
        model_triggers.take_until(stop.clone().cancelled_owned()).map(Ok::<_, Infallible>),
        config.clone(),
    )
    .for_each(|_| std::future::ready(()));
    let profiles = applier(
        |object, context| Box::pin(profile::reconcile(object, context)),
        profile::on_error,
        Arc::clone(&context),
        context.stores.profiles.clone(),
        profile_triggers.take_until(stop.clone().cancelled_owned()).map(Ok::<_, Infallible>),
        config,
    )
    .for_each(|_| std::future::ready(()));
    let gateways = gateway_set::run(Arc::clone(&context), namespace_triggers, stop.clone());
    let Context { stores, client, metrics, .. } = &*context;
    let audit = stores.audit(client, metrics, audit_interval, stop.clone());
    tokio::join!(models, profiles, gateways, audit);
}
