//! One short HTTP question to a gateway or an engine, on a connection of its own and with a deadline.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

const MAX_BODY_BYTES: usize = 4 << 20;

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The connection failed.
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    /// The peer does not speak HTTP.
    #[error("no HTTP answer")]
    Http(#[source] hyper::Error),
    /// The request could not be made.
    #[error("the address makes no request")]
    Request(#[source] http::Error),
    /// The body broke off or is too long.
    #[error("the answer could not be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body is not what the contract says.
    #[error("the answer is no status")]
    Json(#[source] serde_json::Error),
}

/// Asks `http://ADDRESS:PORT/internal/status`.
///
/// # Errors
///
/// No connection, no answer in time, or an answer that the contract does not know.
pub async fn fetch_status<T: DeserializeOwned>(
    address: &str,
    port: u16,
    limit: Duration,
) -> Result<T, ProbeError> {
    let ask = async {
        let ip: std::net::IpAddr = address.parse().map_err(|_| {
            ProbeError::Connect(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the pod has no address",
            ))
        })?;
        let stream = TcpStream::connect((ip, port)).await.map_err(ProbeError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                .await
                .map_err(ProbeError::Http)?;
        let request = http::Request::get("/internal/status")
            .header(http::header::HOST, format!("{ip}:{port}"))
            .body(Empty::<Bytes>::new())
            .map_err(ProbeError::Request)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(ProbeError::Http)?;
            let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
                .collect()
                .await
                .map_err(ProbeError::Body)?;
            serde_json::from_slice(&body.to_bytes()).map_err(ProbeError::Json)
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        // The connection is driven here and dropped with the answer, so nothing outlives the question.
        tokio::select! {
            answer = &mut answer => answer,
            end = &mut connection => match end {
                Ok(()) => answer.await,
                Err(error) => Err(ProbeError::Http(error)),
            },
        }
    };
    tokio::time::timeout(limit, ask).await.unwrap_or(Err(ProbeError::Late(limit)))
}
