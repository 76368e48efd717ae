//! `atlas-engine serve`: the life of the process, from its listeners to the last drained request.

use crate::backend::check;
use crate::config::Serve;
use crate::error::Fatal;
use crate::fetch::FetchError;
use crate::load::load;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::runtime::{Worker, watchdog};
use crate::server::listen::{self, ConnectionLimits};
use crate::server::{App, api, internal};
use crate::status::{Phase, Status};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// How often draining looks whether the last request is done.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// Time for connections to take their last bytes after the last request.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the process ends, and what the model's header said, where it had been read.
pub struct Failed {
    /// The reason.
    pub error: Fatal,
    /// The header, as the contract has it.
    pub header: Option<Value>,
}

impl From<Fatal> for Box<Failed> {
    fn from(error: Fatal) -> Self {
        Self::new(Failed { error, header: None })
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the model from being served; the caller turns it into the exit code.
pub fn serve(arguments: &Serve) -> Result<(), Box<Failed>> {
    let card = check(arguments)?;
    let metrics = Metrics::new(card.as_ref()).map_err(|error| Fatal::Worker { reason: error.to_string() })?;
    let status = Arc::new(Status::new(arguments, card));
    let api = listen(SocketAddr::new(arguments.host, arguments.port), "the API")?;
    let internal = listen(SocketAddr::new(arguments.host, arguments.internal_port), "the internal port")?;
    let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
    tracing::info!(api = ?address(&api).ok(), internal = ?address(&internal).ok(), "listening");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| Fatal::System { what: "starting the runtime", source })?;
    let spans = {
        let _inside = runtime.enter();
        let start = |endpoint: &String| Exporter::start(endpoint, metrics.dropped_spans.clone());
        let started = arguments.otlp_endpoint.as_ref().map(start).transpose();
        started.map_err(|error| Fatal::from(FetchError::Client(error)))?
    };
    let app = Arc::new(App::new(arguments, status, Arc::new(metrics), spans)?);
    let limits = ConnectionLimits {
        connections: arguments.max_connections.get(),
        headers: arguments.header_timeout,
        write: arguments.write_timeout,
    };
    let (stop, stopping) = watch::channel(false);
    let handle = runtime.handle().clone();
    let internal = internal::spawn(internal, app.clone(), handle, limits, stopping)?;
    let result = runtime.block_on(run(arguments, &app, api, limits, Stop { stop, internal }));
    let result = result.map_err(|error| error.on(app.status.card.as_ref()));
    if let Err(error) = &result {
        app.status.fail(&error.message());
    }
    // The worker cannot be interrupted within a step, and nobody waits for it any more.
    runtime.shutdown_background();
    result.map_err(|error| Box::new(Failed { error, header: app.status.header.get().cloned() }))
}

fn listen(address: SocketAddr, what: &'static str) -> Result<TcpListener, Fatal> {
    let listener = TcpListener::bind(address).map_err(|source| Fatal::Listen { address, what, source })?;
    let set = listener.set_nonblocking(true);
    set.map_err(|source| Fatal::System { what: "setting up a listener", source })?;
    Ok(listener)
}

/// How both listeners are told to end.
struct Stop {
    stop: watch::Sender<bool>,
    /// Resolves when the internal port has ended.
    internal: oneshot::Receiver<()>,
}

async fn run(
    arguments: &Serve,
    app: &Arc<App>,
    listener: TcpListener,
    limits: ConnectionLimits,
    Stop { stop, internal }: Stop,
) -> Result<(), Fatal> {
    let failed = |what| move |source| Fatal::System { what, source };
    let mut terminate = Signals::new().map_err(failed("listening for signals"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed("setting up a listener"))?;
    let server = tokio::spawn(listen::serve(listener, api::router(app.clone()), limits, stop.subscribe()));
    let worker = tokio::select! {
        worker = load(arguments, app) => worker?,
        () = terminate.wait() => return Ok(()),
    };
    let mut stopped = spawn(worker, app.status.clone())?;
    app.status.enter(Phase::Serving);
    let ended = tokio::select! {
        reason = stopped.recv() => Err(worker_error(reason)),
        () = terminate.wait() => {
            app.status.enter(Phase::Draining);
            tokio::select! {
                reason = stopped.recv() => Err(worker_error(reason)),
                () = drained(app) => Ok(()),
                () = tokio::time::sleep(arguments.drain_timeout) => {
                    tracing::warn!(requests = api::in_flight(app), "the drain timeout ended requests");
                    // Each client is told so, as long as the servers are given time to.
                    app.cut_off.send_replace(true);
                    Ok(())
                }
            }
        }
    };
    if let Err(error) = &ended {
        app.status.fail(&error.message());
        // A worker that hangs answers nobody, so nothing is left to send. One that ended told every request why.
        if matches!(error, Fatal::Hang { .. }) {
            return ended;
        }
    }
    // Probes see the port close with the API's; nobody listens only when both have ended already.
    let _ = stop.send(true);
    // Whether the servers ended by themselves or by the clock, the process ends now.
    let _ = tokio::time::timeout(FLUSH_TIMEOUT, async { (server.await, internal.await) }).await;
    if let Some(spans) = &app.spans {
        // A collector that does not answer must not keep the process.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, spans.flush()).await;
    }
    ended
}

/// SIGTERM and SIGINT.
pub struct Signals(Signal, Signal);

impl Signals {
    /// Listens from now on.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    /// Waits for the first of them.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

async fn drained(app: &App) {
    while api::in_flight(app) > 0 {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Runs the worker on its own thread, and a watchdog beside it; the receiver gets the reason when the worker stops or
/// hangs, which it never should.
fn spawn(worker: Worker, status: Arc<Status>) -> Result<mpsc::Receiver<Fatal>, Fatal> {
    let (stopped, receiver) = mpsc::channel(2);
    let hung = stopped.clone();
    let thread = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run()));
        let error = match result {
            Ok(Ok(())) => Fatal::Worker { reason: "it ended without being asked to".to_owned() },
            Ok(Err(error)) => Fatal::from(error),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Fatal::Worker { reason: format!("it panicked: {}", text.unwrap_or("without a message")) }
            }
        };
        // Nobody listens only when the process is ending anyway; the same goes for the watchdog.
        let _ = stopped.try_send(error);
    };
    let spawned = std::thread::Builder::new().name("worker".into()).spawn(thread);
    spawned.map_err(|source| Fatal::System { what: "starting the worker", source })?;
    watchdog::spawn(status, move |error| {
        let _ = hung.try_send(error);
    })?;
    Ok(receiver)
}

fn worker_error(reason: Option<Fatal>) -> Fatal {
    reason.unwrap_or_else(|| Fatal::Worker { reason: "it vanished".to_owned() })
}
