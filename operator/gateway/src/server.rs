//! Accepts connections and lets requests finish on the way out.
//!
//! On that way nothing is ended that may hold a request: answers say that their connection ends with them, what waits at
//! the listener is taken in, a request that is half here is waited for, and a connection that rests is ended only after
//! it was quiet for a while.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    api::Api,
    connection::{Answered, Connections, Heard, Patience},
    dialect::{Dialect, Problem},
    slow::WriteLimit,
};

/// First byte of a TLS handshake; a method begins with a letter.
const HANDSHAKE: u8 = 0x16;
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// A listener at which nobody came for so long has nobody waiting.
const NOBODY_WAITS: Duration = Duration::from_millis(100);
/// Longest time for which those that wait are taken in once the listener should close.
const LAST_CALL: Duration = Duration::from_secs(5);

/// The API's listener.
pub struct Door {
    /// Where connections come in.
    pub listener: TcpListener,
    /// How they are secured, where they are.
    pub tls: Option<TlsAcceptor>,
}

/// How a gateway ends.
#[derive(Debug, Clone)]
pub struct Closing {
    /// It was asked to: answers are the last of their connections from now on.
    pub asked: CancellationToken,
    /// No more connections are expected, and those that rest are ended.
    pub closes: CancellationToken,
}

/// Serves until the listener closes; the tracker then holds what still runs.
pub async fn accept(door: Door, api: Arc<Api>, closing: Closing, running: TaskTracker) {
    let Door { listener, tls } = door;
    let patience = Patience { head: api.timing.head_timeout, idle: api.timing.idle_timeout };
    let connections = Connections::new(patience);
    let mut last_call = None;
    loop {
        let accepted = match last_call {
            None => tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = closing.closes.cancelled() => {
                    last_call = Some(Instant::now() + LAST_CALL);
                    continue;
                }
            },
            // Closing it resets the connections of those that the kernel has let in already.
            Some(end) if Instant::now() < end => {
                match tokio::time::timeout(NOBODY_WAITS, listener.accept()).await {
                    Ok(accepted) => accepted,
                    Err(_) => return,
                }
            }
            Some(_) => return,
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
        let (api, closing, connections) = (Arc::clone(&api), closing.clone(), Arc::clone(&connections));
        match tls.clone() {
            None => {
                let stream = WriteLimit::new(stream, api.timing.write_timeout);
                running.spawn(converse(stream, api, connections, closing))
            }
            Some(tls) => running.spawn(secure(tls, stream, api, connections, closing)),
        };
    }
}

async fn secure(
    tls: TlsAcceptor,
    stream: TcpStream,
    api: Arc<Api>,
    connections: Arc<Connections>,
    closing: Closing,
) {
    let shaken = shake(tls, stream, api.timing.write_timeout);
    match tokio::time::timeout(api.timing.head_timeout, shaken).await {
        // On the heap, so that the room of the handshake is not kept beside it.
        Ok(Ok(Some(stream))) => Box::pin(converse(stream, api, connections, closing)).await,
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

async fn converse<S>(stream: S, api: Arc<Api>, connections: Arc<Connections>, closing: Closing)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conversation = connections.begin();
    let stream = Heard::new(stream, Arc::clone(&conversation));
    let quiet = api.timing.drain_quiet;
    let Closing { asked, closes } = closing;
    let talk = Arc::clone(&conversation);
    let service = service_fn(move |request| {
        let (api, asked, answering) = (Arc::clone(&api), asked.clone(), talk.answer());
        // On the heap and gone with the answer's head: the connection keeps room for its largest future as long as it
        // lives, and a stream lives long.
        Box::pin(async move {
            let mut response = api.answer(request).await;
            if asked.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Answered::new(body, answering)))
        })
    });
    // Pinned where it is made: a name of its own would be room for a second one, as long as the connection lives.
    let mut connection = std::pin::pin!(
        http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).serve_connection(TokioIo::new(stream), service)
    );
    let rests = async {
        closes.cancelled().await;
        conversation.quiet(quiet).await;
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = rests => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client's connection ended");
    }
}
