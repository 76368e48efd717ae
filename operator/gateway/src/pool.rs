//! Connections to one engine: kept alive between requests, never shared by two at a time.
//!
//! A request owns its connection until the answer was read to its end. Dropping it earlier closes the connection,
//! which is how an engine learns that nobody waits any more.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use atlas_operator_core::routing::Cause;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;

/// Idle connections that are kept; more are closed.
const MAX_IDLE: usize = 256;
/// Age from which an idle connection is not trusted any more.
const MAX_IDLE_AGE: Duration = Duration::from_secs(30);
/// For what an engine sends: the head of an answer, which must fit and of which nothing comes from a client, or some of its
/// body. Every stream takes one.
const READ_BUFFER_BYTES: usize = 2 << 10;

/// The sending half of a connection.
pub type Sender = SendRequest<Full<Bytes>>;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Not accepted in time.
    #[error("the connection was not accepted within {0:?}")]
    TimedOut(Duration),
    /// Refused or unreachable.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
}

impl ConnectError {
    /// The cause for the health of the endpoint; `None` where time alone ran out.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::TimedOut(_) => None,
            Self::Io(error) => Some(match error.kind() {
                io::ErrorKind::ConnectionRefused => Cause::ConnectionRefused,
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Cause::ConnectionReset,
                _ => Cause::Unreachable,
            }),
        }
    }
}

/// Opens a connection.
///
/// # Errors
///
/// The peer refuses, is unreachable, or does not accept in time.
pub async fn connect(address: SocketAddr, timeout: Duration) -> Result<Sender, ConnectError> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::TimedOut(timeout))?
        .map_err(ConnectError::Io)?;
    stream.set_nodelay(true).map_err(ConnectError::Io)?;
    let (sender, connection) = http1::Builder::new()
        .read_buf_exact_size(Some(READ_BUFFER_BYTES))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Io(io::Error::new(io::ErrorKind::ConnectionReset, error)))?;
    // What goes wrong on the connection is seen by the request on it; an idle one just leaves the pool.
    tokio::spawn(connection);
    Ok(sender)
}

/// A connection and whether it has carried a request before.
#[derive(Debug)]
pub struct Pooled {
    /// The connection.
    pub sender: Sender,
    /// A failure of a reused connection before any answer says nothing about the engine: it may have been closed
    /// while it was idle.
    pub reused: bool,
}

/// Idle connections of one endpoint.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Pool {
    /// Takes an idle connection or opens one.
    ///
    /// # Errors
    ///
    /// As [`connect`].
    pub async fn take(&self, address: SocketAddr, timeout: Duration) -> Result<Pooled, ConnectError> {
        while let Some(mut sender) = self.pop() {
            if sender.is_ready() || sender.ready().await.is_ok() {
                return Ok(Pooled { sender, reused: true });
            }
        }
        self.open(address, timeout).await
    }

    /// Opens a connection although there may be idle ones.
    ///
    /// # Errors
    ///
    /// As [`connect`].
    pub async fn open(&self, address: SocketAddr, timeout: Duration) -> Result<Pooled, ConnectError> {
        connect(address, timeout).await.map(|sender| Pooled { sender, reused: false })
    }

    /// Gives a connection back whose answer was read to its end.
    pub fn give_back(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((sender, Instant::now()));
        }
    }

    /// Closes every idle connection.
    pub fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pop(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The newest comes first, so the old ones at the front age out together.
        let (sender, since) = idle.pop()?;
        if since.elapsed() > MAX_IDLE_AGE {
            idle.clear();
            return None;
        }
        (!sender.is_closed()).then_some(sender).or_else(|| {
            drop(idle);
            self.pop()
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_head_of_more_than_a_kilobyte_and_a_long_body_pass_a_small_buffer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (long, body) = ("x".repeat(3 << 9), "y".repeat(100 << 10));
        let answer =
            format!("HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let engine = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let ask = async {
            let mut sender = connect(address, Duration::from_secs(5)).await.unwrap();
            let answer = sender.send_request(Request::new(Full::default())).await.unwrap();
            assert_eq!(answer.headers()["x-long"], long.as_str());
            answer.into_body().collect().await.unwrap().to_bytes()
        };
        let ((), read) = tokio::join!(engine, ask);
        assert_eq!(read, body.as_bytes());
    }
}
