//! An HTTP server that serves one file, as well or as badly as a test asks for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};

/// What the server does wrong, or asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behaviour {
    pub ignores_ranges: bool,
    pub changes_every_time: bool,
    pub hangs: bool,
    pub no_index: bool,
    pub token: Option<&'static str>,
}

pub struct Shared {
    file: Bytes,
    behaviour: Behaviour,
    pub requests: AtomicU64,
    pub not_modified: AtomicU64,
    pub sent: AtomicU64,
    pub version: AtomicU64,
}

pub struct Server {
    address: std::net::SocketAddr,
    pub state: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const CONFIG: &str = r#"{"model_type":"llama","num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,"intermediate_size":128,
    "vocab_size":100,"max_position_embeddings":512}"#;
const LIST: &str =
    r#"[{"type":"file","path":"a.Q4_K_M.gguf","size":40},{"type":"file","path":"a.Q2_K.gguf","size":20}]"#;

impl Server {
    pub async fn start(file: Vec<u8>, behaviour: Behaviour) -> Self {
        let state = Arc::new(Shared {
            file: file.into(),
            behaviour,
            requests: AtomicU64::new(0),
            not_modified: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            version: AtomicU64::new(1),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.5:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = |host: &str| {
            let url = format!("http://{host}:{}/m.gguf", address.port());
            get(|| async move { Redirect::temporary(&url) })
        };
        let app = Router::new()
            .route("/config.json", get(|| async { CONFIG }))
            .route("/m/config.json", get(|| async { CONFIG }))
            .route("/acme/m/resolve/{revision}/config.json", get(|| async { CONFIG }))
            .route("/api/models/acme/listed/tree/main", get(|| async { LIST }))
            .route("/status/404", get(|| async { StatusCode::NOT_FOUND }))
            .route("/status/403", get(|| async { StatusCode::FORBIDDEN }))
            .route("/status/503", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/to-address", elsewhere("127.0.0.2"))
            .route("/to-name", elsewhere("localhost"))
            .route("/round", get(|| async { Redirect::temporary("/round") }))
            .fallback(get(serve))
            .with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, state, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn serve(State(state): State<Arc<Shared>>, request: Request) -> Response {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let behaviour = state.behaviour;
    if behaviour.hangs {
        std::future::pending::<()>().await;
    }
    if let Some(token) = behaviour.token
        && text(request.headers(), header::AUTHORIZATION) != Some(&format!("Bearer {token}"))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if behaviour.no_index && request.uri().path().ends_with(".index.json") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let step = u64::from(behaviour.changes_every_time);
    let etag = format!("\"v{}\"", state.version.fetch_add(step, Ordering::Relaxed));
    if text(request.headers(), header::IF_NONE_MATCH) == Some(&etag) {
        state.not_modified.fetch_add(1, Ordering::Relaxed);
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let total = state.file.len();
    let range = text(request.headers(), header::RANGE)
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        .map(|(begin, end)| (begin.parse::<usize>().unwrap(), end.parse::<usize>().unwrap()));
    match range.filter(|_| !behaviour.ignores_ranges) {
        Some((begin, _)) if begin >= total => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some((begin, end)) => {
            let end = end.min(total - 1);
            let body = state.file.slice(begin..=end);
            state.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
            let range = format!("bytes {begin}-{end}/{total}");
            (StatusCode::PARTIAL_CONTENT, [(header::ETAG, etag), (header::CONTENT_RANGE, range)], body)
                .into_response()
        }
        None => ([(header::ETAG, etag)], counted(state)).into_response(),
    }
}

/// The whole file in pieces, counted as they are taken.
fn counted(state: Arc<Shared>) -> Body {
    let pieces = (0..state.file.len()).step_by(64 << 10).collect::<Vec<_>>().into_iter();
    Body::from_stream(Pieces { state, pieces })
}

struct Pieces {
    state: Arc<Shared>,
    pieces: std::vec::IntoIter<usize>,
}

impl Pieces {
    fn next_piece(&mut self) -> Option<Result<Bytes, std::io::Error>> {
        let begin = self.pieces.next()?;
        let piece = self.state.file.slice(begin..(begin + (64 << 10)).min(self.state.file.len()));
        self.state.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Some(Ok(piece))
    }
}

impl futures::Stream for Pieces {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.get_mut().next_piece())
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
