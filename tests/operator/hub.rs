//! A hub on loopback that has one repository: a model whose header is read, and nothing else.

use anyhow::Result;
use atlas_format::HeaderWriter;
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

/// `wide.gguf` needs 3,600 MiB of weights and 512 KiB of KV cache a token; every other name is not there.
async fn serve(Path(file): Path<String>) -> axum::response::Response {
    if file != "wide.gguf" {
        return StatusCode::NOT_FOUND.into_response();
    }
    let mut header = HeaderWriter::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 32)
        .number("llama.context_length", 16384)
        .number("llama.embedding_length", 4096)
        .number("llama.feed_forward_length", 11008)
        .number("llama.attention.head_count", 32);
    for layer in 0..32 {
        header = header.tensor(&format!("blk.{layer}.ffn_up.weight"), &[4096, 51200], 12);
    }
    header.finish().into_response()
}
