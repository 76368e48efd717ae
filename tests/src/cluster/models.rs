//! The model file server inside the cluster: named local files over HTTP, with length, ETag and byte ranges.
//!
//! It stands where a model hub stands elsewhere, so that the samples need no network. It knows only the files it
//! was given by name; there is no way from a URL to another path.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::dns::MODELS_HOST;
use super::error::ClusterError;
use super::net::CONTROL_PLANE_IP;
use super::netns::Netns;

/// The server's port.
pub const MODELS_PORT: u16 = 8089;

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

type Files = Arc<BTreeMap<String, PathBuf>>;

/// The URL of a file inside the cluster.
pub fn model_url(file: &str) -> String {
    format!("http://{MODELS_HOST}:{MODELS_PORT}/{file}")
}

/// Serves until it is dropped.
pub(super) async fn serve(
    netns: &Netns,
    files: BTreeMap<String, PathBuf>,
) -> Result<impl Future<Output = ()> + Send + 'static, ClusterError> {
    let address = SocketAddr::from((CONTROL_PLANE_IP, MODELS_PORT));
    let listener = netns
        .listen(address)
        .await
        .map_err(ClusterError::io(format!("listen on {address} for model files")))?;
    let router = Router::new().route("/{file}", get(file)).with_state(Arc::new(files));
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "the model file server ended");
        }
    })
}

async fn file(State(files): State<Files>, Path(name): Path<String>, request: HeaderMap) -> Response {
    let Some(path) = files.get(&name) else {
        return (StatusCode::NOT_FOUND, format!("no file {name}\n")).into_response();
    };
    match respond(path, &request).await {
        Ok(response) => response,
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}\n", path.display())).into_response()
        }
    }
}

async fn respond(path: &std::path::Path, request: &HeaderMap) -> std::io::Result<Response> {
    let mut file = File::open(path).await?;
    let meta = file.metadata().await?;
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let etag = format!("\"{:x}-{:x}\"", meta.len(), modified.as_nanos());
    let text = |name| request.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // A client that continues another version of the file must get the whole of this one.
    let same_version = text(header::IF_RANGE).is_none_or(|version| version == etag);
    let range = match text(header::RANGE).filter(|_| same_version) {
        Some(range) => parse_range(range, meta.len()),
        None => Range::Whole,
    };
    let common = [(header::ETAG, etag), (header::ACCEPT_RANGES, "bytes".to_owned())];
    let (status, first, length) = match range {
        Range::Whole => (StatusCode::OK, 0, meta.len()),
        Range::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Range::Unsatisfiable => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{}", meta.len()))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, common, range).into_response());
        }
    };
    file.seek(SeekFrom::Start(first)).await?;
    let headers = [
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let mut response = (status, common, headers, stream(file, length)).into_response();
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = format!("bytes {first}-{}/{}", first + length - 1, meta.len()).parse()
    {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// `length` bytes from where the file stands.
fn stream(file: File, length: u64) -> Body {
    Body::from_stream(futures::stream::try_unfold(file.take(length), |mut rest| async move {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let read = rest.read_buf(&mut chunk).await?;
        std::io::Result::Ok((read > 0).then_some((Bytes::from(chunk), rest)))
    }))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { first: u64, last: u64 },
    Unsatisfiable,
}

/// One range; several, and what is no range, give the whole file, as RFC 9110 allows.
fn parse_range(text: &str, length: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (first, last) = match (first.trim(), last.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) => return Range::Unsatisfiable,
            Ok(suffix) => (length.saturating_sub(suffix), length.saturating_sub(1)),
            Err(_) => return Range::Whole,
        },
        (first, last) => {
            let Ok(first) = first.parse::<u64>() else { return Range::Whole };
            let end = if last.is_empty() { Ok(u64::MAX) } else { last.parse::<u64>() };
            match end {
                Ok(end) if end >= first => (first, end.min(length.saturating_sub(1))),
                _ => return Range::Whole,
            }
        }
    };
    if first >= length { Range::Unsatisfiable } else { Range::Part { first, last } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let part = |first, last| Range::Part { first, last };
        for (text, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=4-", part(4, 9)),
            ("bytes=4-100", part(4, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("lines=1-2", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
    }
}
