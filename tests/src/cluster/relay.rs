//! A relay from a port of the host's loopback to an address inside a network namespace.
//!
//! It passes bytes on as they come, in both directions, and passes on how each side ends: a half-close as a
//! half-close, anything else as a reset. It deliberately looks at nothing that flows by.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::error::ClusterError;
use super::netns::Netns;

/// A relay that listens; dropping it closes its port and every connection.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    task: AbortOnDropHandle<()>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 and connects from inside `netns` to `target` for each connection.
    pub(super) async fn start(netns: Arc<Netns>, target: SocketAddr) -> Result<Self, ClusterError> {
        let failed = || ClusterError::io("listen on 127.0.0.1");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, netns, target)));
        Ok(Self { address, task })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and waits until nothing of it holds the namespace.
    pub(super) async fn stop(self) {
        self.task.abort();
        // Ending by the abort is what was asked for.
        let _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, netns: Arc<Netns>, target: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((outside, _)) => {
                    connections.spawn(relay(outside, netns.clone(), target));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: it passes when a connection ends.
                    tracing::warn!(%target, %error, "a relay could not accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(mut outside: TcpStream, netns: Arc<Netns>, target: SocketAddr) {
    let mut inside = match netns.connect(target).await {
        Ok(inside) => inside,
        Err(error) => {
            tracing::debug!(%target, %error, "a relay could not connect");
            return reset(&outside);
        }
    };
    // Small writes (a token of a stream) must not wait for more.
    let _ = (outside.set_nodelay(true), inside.set_nodelay(true));
    if copy_bidirectional(&mut outside, &mut inside).await.is_err() {
        reset(&outside);
        reset(&inside);
    }
}

/// Makes the close that follows a reset, so that the peer does not take a broken connection for a finished one.
fn reset(stream: &TcpStream) {
    // A socket that is gone already cannot be set and needs no reset.
    let _ = stream.set_zero_linger();
}
