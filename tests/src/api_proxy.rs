//! A proxy on loopback between one client and an API server: it counts what passes, and breaks one thing as planned.
//!
//! It speaks plain HTTP to its client and uses a client of its own towards the server, whose rights it lends.
//! Which fault comes when is decided by whoever starts it, or drawn from a seed; without a plan everything passes unchanged.

mod faults;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, header, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

pub use faults::Fault;
use faults::Faults;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type ProxyBody = UnsyncBoxBody<Bytes, BoxError>;

/// A write that reached the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// The API server's answer.
    pub status: u16,
}

/// The client's connection is to break.
#[derive(Debug, thiserror::Error)]
#[error("the connection breaks here")]
struct Cut;

#[derive(Default)]
struct Plan {
    /// Namespace whose writes and events count; the cluster's GpuProfiles count too.
    scope: String,
    faults: Faults,
    writes_begun: usize,
    events: usize,
    struck: bool,
    writes: Vec<Write>,
    last_write: Option<Instant>,
    lists: BTreeSet<String>,
    stale: HashMap<String, Bytes>,
}

impl Plan {
    fn concerns(&self, path: &str) -> bool {
        path.contains(&format!("/namespaces/{}/", self.scope)) || path.contains("/gpuprofiles/")
    }

    /// Counts a write or an event, and gives the fault if it is its turn.
    fn strike(&mut self, of_watches: bool) -> Option<Fault> {
        let count = if of_watches { &mut self.events } else { &mut self.writes_begun };
        *count += 1;
        let fault = self.faults.next(of_watches, *count);
        self.struck |= fault.is_some();
        fault
    }
}

struct Shared {
    client: kube::Client,
    plan: Mutex<Plan>,
    requests: std::sync::atomic::AtomicU64,
    struck: Notify,
    released: Notify,
}

/// The proxy; dropping it ends it.
pub struct ApiProxy {
    url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApiProxy {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub async fn start(client: kube::Client) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            client,
            plan: Mutex::default(),
            requests: std::sync::atomic::AtomicU64::new(0),
            struck: Notify::new(),
            released: Notify::new(),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let shared = Arc::clone(&shared);
                        async move { shared.handle(request).await }
                    });
                    // It ends with its client, or by a fault.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { url, shared, task })
    }

    /// A kubeconfig that leads through the proxy.
    pub fn kubeconfig(&self) -> String {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        })
        .to_string()
    }

    /// Begins anew: counts writes and events of this namespace, and strikes at the one whose turn it is.
    pub fn begin(&self, scope: &str, fault: Option<(Fault, usize)>) {
        self.begin_with(scope, fault.map_or(Faults::Never, |(fault, at)| Faults::Once(fault, at)));
    }

    /// Begins anew: writes and events of this namespace meet faults again and again, drawn from a seed.
    pub fn begin_storm(&self, scope: &str, seed: u64) {
        self.begin_with(scope, Faults::Storm(Box::new(StdRng::seed_from_u64(seed))));
    }

    /// Ends every fault that has not begun.
    pub fn calm(&self) {
        self.plan().faults = Faults::Never;
    }

    fn begin_with(&self, scope: &str, faults: Faults) {
        let mut plan = self.plan();
        let lists = std::mem::take(&mut plan.lists);
        *plan = Plan { scope: scope.to_owned(), faults, lists, ..Plan::default() };
    }

    /// Waits until the fault has struck.
    pub async fn wait_for_strike(&self) {
        loop {
            let struck = self.shared.struck.notified();
            if self.has_struck() {
                return;
            }
            struck.await;
        }
    }

    /// Whether the fault has struck.
    pub fn has_struck(&self) -> bool {
        self.plan().struck
    }

    /// Lets a held write take place.
    pub fn release(&self) {
        self.shared.released.notify_one();
    }

    /// The writes that reached the API server.
    pub fn writes(&self) -> Vec<Write> {
        self.plan().writes.clone()
    }

    /// Writes and events so far.
    pub fn counts(&self) -> (usize, usize) {
        let plan = self.plan();
        (plan.writes_begun, plan.events)
    }

    /// Requests of any kind since the start.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Time since the last write; since ever, where there was none.
    pub fn quiet_for(&self) -> Duration {
        self.plan().last_write.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Takes every list that the client asked for so far, as it is now.
    ///
    /// # Errors
    /// When the API server does not answer one.
    pub async fn take_lists(&self) -> Result<HashMap<String, Bytes>, kube::Error> {
        let paths = self.plan().lists.clone();
        let mut taken = HashMap::new();
        for path in paths {
            let request = Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?;
            taken.insert(path, Bytes::from(self.shared.client.request_text(request).await?));
        }
        Ok(taken)
    }

    /// Answers these lists, each once, in place of what is true now.
    pub fn serve_stale(&self, lists: HashMap<String, Bytes>) {
        self.plan().stale = lists;
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan()
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<ProxyBody>, Cut> {
        self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        if parts.method == Method::GET {
            return self.read(parts, body).await;
        }
        let fault = {
            let mut plan = self.plan();
            if plan.concerns(parts.uri.path()) { plan.strike(false) } else { None }
        };
        let Some(fault) = fault else { return self.forward(&parts, body).await };
        match fault {
            Fault::Answer(code) => {
                self.struck.notify_waiters();
                Ok(refusal(code))
            }
            Fault::Hold => {
                self.struck.notify_waiters();
                // A task of its own: it goes on when its client is gone.
                let shared = Arc::clone(&self);
                let late = tokio::spawn(async move {
                    shared.released.notified().await;
                    shared.forward(&parts, body).await
                });
                late.await.unwrap_or(Err(Cut))
            }
            Fault::LoseAnswer | Fault::Hang | Fault::CutWatch | Fault::ExpireWatch | Fault::DropEvent => {
                // The write is a matter of the API server from here on, whoever ends meanwhile.
                let shared = Arc::clone(&self);
                let done = tokio::spawn(async move { shared.forward(&parts, body).await });
                let _ = done.await;
                self.struck.notify_waiters();
                if fault == Fault::Hang {
                    std::future::pending::<()>().await;
                }
                Err(Cut)
            }
        }
    }

    async fn read(self: Arc<Self>, parts: Parts, body: Bytes) -> Result<Response<ProxyBody>, Cut> {
        let path = path_and_query(&parts);
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if query.split('&').any(|part| part == "watch=true") {
            let answer = self.forward(&parts, body).await?;
            return Ok(if answer.status().is_success() { self.inspect(answer) } else { answer });
        }
        if query.contains("limit=") {
            let stale = {
                let mut plan = self.plan();
                plan.lists.insert(path.clone());
                plan.stale.remove(&path)
            };
            if let Some(stale) = stale {
                return Ok(json(200, stale));
            }
        }
        self.forward(&parts, body).await
    }

    async fn forward(&self, parts: &Parts, body: Bytes) -> Result<Response<ProxyBody>, Cut> {
        let mut request = Request::builder().method(parts.method.clone()).uri(path_and_query(parts));
        if let Some(headers) = request.headers_mut() {
            *headers = parts.headers.clone();
            for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
            {
                headers.remove(name);
            }
        }
        let request = request.body(kube::client::Body::from(body)).map_err(|_| Cut)?;
        let answer = self.client.send(request).await.map_err(|_| Cut)?;
        if parts.method != Method::GET {
            let mut plan = self.plan();
            if plan.concerns(parts.uri.path()) {
                plan.last_write = Some(Instant::now());
                let path = parts.uri.path().to_owned();
                plan.writes.push(Write {
                    method: parts.method.clone(),
                    path,
                    status: answer.status().as_u16(),
                });
            }
        }
        let (mut head, body) = answer.into_parts();
        head.headers.remove(header::CONNECTION);
        head.headers.remove(header::TRANSFER_ENCODING);
        Ok(Response::from_parts(head, body.map_err(BoxError::from).boxed_unsync()))
    }

    /// Passes a watch on line by line, and strikes where it is an event's turn.
    fn inspect(self: Arc<Self>, answer: Response<ProxyBody>) -> Response<ProxyBody> {
        let (head, body) = answer.into_parts();
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(64);
        tokio::spawn(async move {
            let mut chunks = body.into_data_stream();
            let mut pending: Vec<u8> = Vec::new();
            while let Some(Ok(chunk)) = tokio::select! {
                chunk = chunks.next() => chunk,
                () = sender.closed() => None,
            } {
                pending.extend_from_slice(&chunk);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let fault = self.fault_of(&line);
                    if fault == Some(Fault::DropEvent) {
                        self.struck.notify_waiters();
                        continue;
                    }
                    let frame = match fault {
                        None => Ok(Frame::data(line.into())),
                        Some(Fault::ExpireWatch) => Ok(Frame::data(Bytes::from_static(EXPIRED))),
                        Some(_) => Err(Cut.into()),
                    };
                    let gone = sender.send(frame).await.is_err();
                    if fault.is_some() {
                        self.struck.notify_waiters();
                    }
                    if gone || fault.is_some() {
                        return;
                    }
                }
            }
        });
        Response::from_parts(head, StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync())
    }

    fn fault_of(&self, line: &[u8]) -> Option<Fault> {
        let event: serde_json::Value = serde_json::from_slice(line).ok()?;
        let object = &event["object"];
        let ours = ["ADDED", "MODIFIED", "DELETED"].iter().any(|type_| event["type"] == *type_);
        let mut plan = self.plan();
        let concerned = object["metadata"]["namespace"] == plan.scope || object["kind"] == "GpuProfile";
        if ours && concerned { plan.strike(true) } else { None }
    }
}

const EXPIRED: &[u8] =
    b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\
\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n";

fn path_and_query(parts: &Parts) -> String {
    parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
}

fn json(code: u16, body: Bytes) -> Response<ProxyBody> {
    let mut answer = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn refusal(code: u16) -> Response<ProxyBody> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault that the proxy was asked for", "reason": reason, "code": code,
    });
    json(code, status.to_string().into())
}
