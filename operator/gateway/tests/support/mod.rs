//! A gateway over scripted engines on loopback; no API server.

// Every suite uses a part of it.
#![allow(dead_code)]

pub mod tokens;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use atlas_gateway::{
    EndpointConfig, GatewayConfig, Listeners, ModelConfig, ModelTable, TierConfig, Timing, serve,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What an engine does with a request.
#[derive(Clone)]
pub enum Script {
    /// 200 with this text, as JSON.
    Answer(&'static str),
    /// This status.
    Status(u16),
    /// Closes the connection without an answer.
    Reset,
    /// Answers nothing, on neither port: a frozen node.
    Freeze,
    /// Headers of a stream and nothing else, and the probes fall silent.
    FreezeAfterHeaders,
    /// Half of the answer, then the connection closes.
    BreakMidBody,
    /// One event and a half, then the connection closes.
    BreakMidStream,
    /// One event, and the second one once the test says so.
    SlowStream(Arc<Notify>),
    /// `/readyz` says no, and so do requests.
    Loading,
    /// Says that it computes one request at a time, and answers each once the test says so.
    OneAtATime(Arc<Notify>),
    /// A stream without an end; counts what could be written of it.
    Flood(Arc<Mutex<usize>>),
    /// 400 with the code of a prompt that is too long.
    TooLong,
    /// A stream in the form of the resume contract.
    Tokens(tokens::Tokens),
    /// The same, broken off, by an engine that serves no more then.
    BreakOnceWithIds,
    /// Probes are answered, the engine says that it works, and nothing comes: a card that hangs.
    Hang,
}

/// A scripted engine. Dropping it closes its ports and connections.
pub struct Engine {
    pub api: SocketAddr,
    internal: SocketAddr,
    script: Arc<Mutex<Script>>,
    pub seen: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Engine {
    pub async fn start(script: Script) -> Self {
        Self::start_at(script, [SocketAddr::from(([127, 0, 0, 1], 0)); 2]).await
    }

    async fn start_at(script: Script, addresses: [SocketAddr; 2]) -> Self {
        let api = TcpListener::bind(addresses[0]).await.unwrap();
        let internal = TcpListener::bind(addresses[1]).await.unwrap();
        let mut engine = Self {
            api: api.local_addr().unwrap(),
            internal: internal.local_addr().unwrap(),
            script: Arc::new(Mutex::new(script)),
            seen: Arc::default(),
            tasks: JoinSet::new(),
        };
        for (listener, is_api) in [(api, true), (internal, false)] {
            let (script, seen) = (Arc::clone(&engine.script), Arc::clone(&engine.seen));
            engine.tasks.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(converse(stream, is_api, Arc::clone(&script), Arc::clone(&seen)));
                }
            });
        }
        engine
    }

    pub fn now(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    /// Closes the ports; returns what is needed to come back on the same ones.
    pub async fn kill(mut self) -> [SocketAddr; 2] {
        self.tasks.shutdown().await;
        [self.api, self.internal]
    }

    pub async fn come_back(addresses: [SocketAddr; 2], script: Script) -> Self {
        Self::start_at(script, addresses).await
    }

    pub fn endpoint(&self, tier: &str) -> EndpointConfig {
        EndpointConfig {
            model: "code".into(),
            tier: tier.into(),
            api: self.api,
            internal: self.internal,
            pod: Some(format!("pod-{tier}")),
            node: None,
            ready: true,
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    is_api: bool,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let now = script.lock().unwrap().clone();
        let whole = |status: u16, body: &str| {
            format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let stream_head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
        let resumable = match now {
            Script::Tokens(tokens) => Some(tokens),
            Script::BreakOnceWithIds => Some(tokens::Tokens {
                model_file: "m",
                total: 10,
                per_connection: 3,
                how: tokens::Break::Cut,
            }),
            _ => None,
        };
        if !is_api && request.starts_with("POST /v1/") {
            if matches!(now, Script::Loading) {
                send(&mut stream, &whole(503, "{}")).await;
                continue;
            }
            let Some(tokens) = resumable else {
                // An engine of before the resume contract.
                send(&mut stream, &whole(404, "")).await;
                continue;
            };
            if matches!(now, Script::BreakOnceWithIds) {
                *script.lock().unwrap() = Script::Loading;
            }
            let (events, complete) = tokens.events(&request);
            seen.lock().unwrap().push(request);
            send(&mut stream, &format!("{stream_head}{}", chunk(&events))).await;
            if !complete && tokens.how == tokens::Break::Cut {
                return;
            }
            send(&mut stream, "0\r\n\r\n").await;
            continue;
        }
        if !is_api {
            if let Some(tokens) = resumable {
                send(&mut stream, &whole(200, &tokens.status().to_string())).await;
                continue;
            }
            match now {
                Script::OneAtATime(_) => {
                    send(&mut stream, &whole(200, r#"{"ready": true, "maxBatch": 1}"#)).await;
                }
                Script::Freeze | Script::FreezeAfterHeaders => std::future::pending().await,
                Script::Loading => send(&mut stream, &whole(503, "Loading")).await,
                Script::Hang => send(&mut stream, &whole(200, &status_of_a_hang().to_string())).await,
                _ => send(&mut stream, &whole(200, "Serving")).await,
            }
            continue;
        }
        seen.lock().unwrap().push(request);
        match now {
            Script::Answer(text) => send(&mut stream, &whole(200, &json!({"text": text}).to_string())).await,
            Script::Status(status) => send(&mut stream, &whole(status, "{}")).await,
            Script::Loading => send(&mut stream, &whole(503, "{}")).await,
            Script::OneAtATime(go) => {
                go.notified().await;
                send(&mut stream, &whole(200, "{}")).await;
            }
            Script::Flood(written) => {
                send(&mut stream, stream_head).await;
                let event = chunk(&format!("data: {}\n\n", "x".repeat(10_000)));
                while stream.write_all(event.as_bytes()).await.is_ok() {
                    *written.lock().unwrap() += event.len();
                }
                seen.lock().unwrap().push("the connection was ended".into());
                return;
            }
            Script::TooLong => {
                send(&mut stream, &whole(400, r#"{"error": {"code": "context_length_exceeded"}}"#)).await;
            }
            Script::Tokens(_) | Script::BreakOnceWithIds => send(&mut stream, &whole(500, "{}")).await,
            Script::Reset => return,
            Script::Freeze | Script::Hang => std::future::pending().await,
            Script::FreezeAfterHeaders => {
                send(&mut stream, stream_head).await;
                std::future::pending::<()>().await;
            }
            Script::BreakMidBody => {
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half").await;
                return;
            }
            Script::BreakMidStream => {
                send(&mut stream, &format!("{stream_head}{}", chunk("data: one\n\ndata: ha"))).await;
                return;
            }
            Script::SlowStream(go) => {
                send(&mut stream, &format!("{stream_head}{}", chunk("data: one\n\n"))).await;
                go.notified().await;
                send(&mut stream, &format!("{}0\r\n\r\n", chunk("data: two\n\n"))).await;
            }
        }
    }
}

fn status_of_a_hang() -> Value {
    json!({"ready": true, "queue": {"running": 1, "waiting": 0}, "progress": {"steps": 9, "tokensGenerated": 5}})
}

async fn send(stream: &mut TcpStream, text: &str) {
    // A peer that is gone already is part of what the tests play.
    let _ = stream.write_all(text.as_bytes()).await;
}

/// Head and body of one request, as text.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let read = stream.read_buf(&mut text).await.ok()?;
        if read == 0 {
            return None;
        }
        let all = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = all.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if body.len() >= length {
            return Some(all);
        }
    }
}

pub fn model(tiers: &[&str]) -> ModelConfig {
    ModelConfig {
        name: "code".into(),
        aliases: vec!["gpt-patch".into()],
        suspended: false,
        api_keys_secret: None,
        tiers: tiers
            .iter()
            .map(|name| TierConfig {
                name: (*name).into(),
                display_model: format!("{name}-file"),
                context_tokens: 4096,
                message: Some(format!("{name} was told about")),
            })
            .collect(),
        pinned_tier: None,
        active_tier_hint: None,
        unhealthy_after: Duration::from_millis(400),
        failback_after: Duration::from_millis(300),
        timeout: Duration::from_secs(20),
        queue: 1,
        across_models: false,
        client_priority: false,
        cors_origins: Vec::new(),
        max_body_bytes: 1 << 16,
    }
}

pub fn table(model: ModelConfig, endpoints: Vec<EndpointConfig>) -> ModelTable {
    ModelTable { models: [(model.name.clone(), Arc::new(model))].into(), endpoints, ..ModelTable::default() }
}

/// Quick enough for tests.
pub fn timing() -> Timing {
    Timing {
        probe_interval: Duration::from_millis(20),
        tick: Duration::from_millis(10),
        hold: Duration::from_secs(2),
        hang_after: Duration::from_millis(300),
        drain_grace: Duration::ZERO,
        drain_quiet: Duration::from_millis(200),
        drain_timeout: Duration::from_secs(5),
        ..Timing::production()
    }
}

/// A running gateway.
pub struct Gateway {
    pub api: SocketAddr,
    pub internal: SocketAddr,
    pub table: watch::Sender<ModelTable>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Gateway {
    pub async fn start(table: ModelTable) -> Self {
        Self::start_with(table, timing()).await
    }

    pub async fn start_with(table: ModelTable, timing: Timing) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = GatewayConfig {
            namespace: "atlas".into(),
            listen: any,
            internal_listen: any,
            tls: None,
            cluster_domain: "cluster.local".into(),
            pod_name: "atlas-gateway-x".into(),
            timing,
        };
        let listeners = Listeners::bind(&config).await.unwrap();
        let (api, internal) = (listeners.api.local_addr().unwrap(), listeners.internal.local_addr().unwrap());
        let (table, view) = watch::channel(table);
        let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
        listed.cancel();
        tokio::spawn(serve(config, listeners, view, listed, stop.clone()));
        Self { api, internal, table, _guard: stop.clone().drop_guard(), stop }
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub async fn status(&self) -> Value {
        serde_json::from_slice(&get(self.internal, "/internal/status").await.1).unwrap()
    }

    /// Waits until this tier serves.
    pub async fn active(&self, tier: Option<&str>) {
        let wanted = tier.map_or(Value::Null, Value::from);
        let reached = async {
            while self.status().await["models"][0]["activeTier"] != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("the tier serves within 10 s");
    }

    pub async fn ask(&self) -> Answer {
        self.ask_with(&[], r#"{"model": "code"}"#).await
    }

    pub async fn ask_with(&self, headers: &[(&str, &str)], body: &str) -> Answer {
        whole(self.open(headers, body).await).await
    }

    pub async fn ask_path(&self, path: &str, body: &str) -> Answer {
        whole(self.open_path(path, &[], body).await).await
    }

    pub async fn open(&self, headers: &[(&str, &str)], body: &str) -> Response<Incoming> {
        self.open_path("/v1/chat/completions", headers, body).await
    }

    async fn open_path(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Incoming> {
        let mut request = Request::post(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let sent = exchange(self.api, request.body(body).unwrap());
        tokio::time::timeout(Duration::from_secs(15), sent).await.expect("an answer within 15 s")
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub fn tier(&self) -> &str {
        self.headers.get("x-atlas-tier").map_or("none", |value| value.to_str().unwrap())
    }
}

pub async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub async fn get(address: SocketAddr, path: &str) -> (StatusCode, Bytes) {
    let request = Request::get(path).header("host", "127.0.0.1").body(Full::default()).unwrap();
    let response = exchange(address, request).await;
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

/// Asks without a [`Gateway`] at hand.
pub async fn ask_at(address: SocketAddr, body: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    let request = Request::post("/v1/chat/completions").header("host", "127.0.0.1").body(body);
    whole(exchange(address, request.unwrap()).await).await
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}
