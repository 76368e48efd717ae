//! A hub on loopback that has one repository: a model whose header is read, one that comes when the test says so.

use anyhow::Result;
use atlas_tests::support::wide_header;
use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::sync::watch;

/// The hub; dropping it ends it.
pub struct Hub {
    pub url: String,
    late: watch::Sender<Option<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let late = watch::Sender::new(None);
        let app =
            Router::new().route("/acme/models/resolve/main/{file}", get(serve)).with_state(late.subscribe());
        let task = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, late, task })
    }

    /// What `late.gguf` is from now on; while it is nothing, whoever asks for it waits.
    pub fn put_late(&self, header: Option<Vec<u8>>) {
        self.late.send_replace(header);
    }
}

/// Who may read `private.gguf`.
pub const TOKEN: &str = "open-sesame";

/// `wide.gguf` is hard to fit, `private.gguf` is the same for those who may read it, `late.gguf` comes when it is there; every other name is not there.
async fn serve(
    Path(file): Path<String>,
    State(mut late): State<watch::Receiver<Option<Vec<u8>>>>,
    headers: HeaderMap,
) -> axum::response::Response {
    match file.as_str() {
        "wide.gguf" => wide_header().into_response(),
        "private.gguf" => match headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes) {
            Some(given) if given == format!("Bearer {TOKEN}").as_bytes() => wide_header().into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        },
        "late.gguf" => match late.wait_for(Option::is_some).await {
            Ok(header) => header.clone().unwrap_or_default().into_response(),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
