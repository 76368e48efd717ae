//! Accepts connections and lets requests finish on the way out.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::StatusCode;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    api::Api,
    dialect::{Dialect, Problem},
    slow::WriteLimit,
};

/// First byte of a TLS handshake; a method begins with a letter.
const HANDSHAKE: u8 = 0x16;
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The API's listener.
pub struct Door {
    /// Where connections come in.
    pub listener: TcpListener,
    /// How they are secured, where they are.
    pub tls: Option<TlsAcceptor>,
}

/// Serves until the token is cancelled; the tracker then holds what still runs.
pub async fn accept(door: Door, api: Arc<Api>, stop: CancellationToken, running: TaskTracker) {
    let Door { listener, tls } = door;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Usually no file descriptors are left: the ones that are open must be given time to close.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection was closed before it was served");
            continue;
        }
        let (api, stop) = (Arc::clone(&api), stop.clone());
        match tls.clone() {
            None => running.spawn(converse(WriteLimit::new(stream, api.timing.write_timeout), api, stop)),
            Some(tls) => running.spawn(secure(tls, stream, api, stop)),
        };
    }
}

async fn secure(tls: TlsAcceptor, stream: TcpStream, api: Arc<Api>, stop: CancellationToken) {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(api.timing.head_timeout, shake(tls, stream, api.timing.write_timeout)) => shaken,
        () = stop.cancelled() => return,
    };
    match shaken {
        // On the heap, so that the room of the handshake is not kept beside it.
        Ok(Ok(Some(stream))) => Box::pin(converse(stream, api, stop)).await,
        Ok(Ok(None)) => debug!("a client speaks plain HTTP"),
        Ok(Err(error)) => debug!(%error, "a client's handshake failed"),
        Err(_) => debug!("a client's handshake took too long"),
    }
}

/// Shakes hands; a client of plain HTTP is told so in its own words, since from an alert nobody would guess it.
async fn shake(
    tls: TlsAcceptor,
    mut stream: TcpStream,
    write_timeout: Duration,
) -> io::Result<Option<TlsStream<WriteLimit<TcpStream>>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
        let body = Dialect::OpenAi.body(&Problem {
            status: StatusCode::BAD_REQUEST,
            code: "tls_required",
            message: "this port speaks TLS: ask with https:// and trust the issuer of its certificate"
                .to_owned(),
        });
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await?;
        // A close with unread bytes would be a reset, and take the answer with it.
        tokio::io::copy(&mut stream.take(MAX_HEAD_BYTES as u64), &mut tokio::io::sink()).await?;
        return Ok(None);
    }
    tls.accept(WriteLimit::new(stream, write_timeout)).await.map(Some)
}

async fn converse<S>(stream: S, api: Arc<Api>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head_timeout = api.timing.head_timeout;
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        // On the heap and gone with the answer's head: the connection keeps room for its largest future as long as it
        // lives, and a stream lives long.
        Box::pin(async move { Ok::<_, Infallible>(api.answer(request).await) })
    });
    // Pinned where it is made: a name of its own would be room for a second one, as long as the connection lives.
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client's connection ended");
    }
}
