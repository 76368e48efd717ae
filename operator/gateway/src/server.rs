//! Accepts connections and lets requests finish on the way out.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{api::Api, slow::WriteLimit};

/// A client must have sent its headers by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Serves until the token is cancelled; the tracker then holds what still runs.
pub async fn accept(listener: TcpListener, api: Arc<Api>, stop: CancellationToken, running: TaskTracker) {
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
        let write_timeout = api.timing.write_timeout;
        running.spawn(async move {
            let service = service_fn(move |request| {
                let api = Arc::clone(&api);
                // On the heap and gone with the answer's head: the connection keeps room for its largest future as long
                // as it lives, and a stream lives long.
                Box::pin(async move { Ok::<_, Infallible>(api.answer(request).await) })
            });
            // Pinned where it is made: a name of its own would be room for a second one, as long as the connection lives.
            let mut connection = std::pin::pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(MAX_HEAD_BYTES)
                    .serve_connection(TokioIo::new(WriteLimit::new(stream, write_timeout)), service)
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
        });
    }
}
