//! A hub on loopback that has one repository: a model whose header is read, and nothing else.

use anyhow::Result;
use atlas_tests::support::wide_header;
use axum::{Router, extract::Path, http::StatusCode, response::IntoResponse, routing::get};

/// The hub; dropping it ends it.
pub struct Hub {
    pub url: String,
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
        let app = Router::new().route("/acme/models/resolve/main/{file}", get(serve));
        let task = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, task })
    }
}

/// `wide.gguf` is hard to fit; every other name is not there.
async fn serve(Path(file): Path<String>) -> axum::response::Response {
    if file != "wide.gguf" {
        return StatusCode::NOT_FOUND.into_response();
    }
    wide_header().into_response()
}
