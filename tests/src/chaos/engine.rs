//! A real engine process on loopback that can be killed, crashed, frozen and started again on the same ports.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::stall::Stalled;
use crate::support::{binary, wait_until};

/// Longer than any start takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Name of the thread of an engine that computes.
pub const WORKER: &str = "worker";

/// An engine; ended when dropped.
pub struct Engine {
    program: PathBuf,
    model: PathBuf,
    child: Option<Child>,
    stalled: Option<Stalled>,
    /// Its API.
    pub api: SocketAddr,
    /// Its internal port.
    pub internal: SocketAddr,
}

impl Engine {
    /// Starts one on ports that are free now, and waits until it serves.
    ///
    /// # Errors
    ///
    /// The binary is not built, or the engine does not become ready.
    pub async fn start(model: &Path) -> anyhow::Result<Self> {
        let (api, internal) = (free_port().await?, free_port().await?);
        let program = binary("atlas-engine")?;
        let mut engine = Self { program, model: model.to_owned(), child: None, stalled: None, api, internal };
        engine.start_again().await?;
        Ok(engine)
    }

    /// Starts the process anew on the same ports, and waits until it serves.
    ///
    /// # Errors
    ///
    /// The engine does not become ready.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.end().await;
        let port = |address: SocketAddr| address.port().to_string();
        let mut command = Command::new(&self.program);
        command.args(["serve", "--served-model-name", "code", "--backend", "cpu", "--host", "127.0.0.1"]);
        command.args(["--context-tokens", "512", "--max-batch", "8", "--model"]).arg(&self.model);
        command.args(["--port", &port(self.api), "--internal-port", &port(self.internal)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.child = Some(command.spawn().context("the engine does not start")?);
        self.ready().await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        wait_until("the engine to serve", PATIENCE, || async {
            match request(self.internal, "GET", "/readyz", "").await {
                Some((200, _)) => Ok(()),
                other => Err(format!("/readyz: {:?}", other.map(|(status, _)| status))),
            }
        })
        .await?;
        Ok(())
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.as_ref().and_then(Child::id).context("the engine is gone already")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        Ok(())
    }

    /// Whether its streams can be resumed: the internal port then knows the API's paths.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn resumes_streams(&self) -> anyhow::Result<bool> {
        let answer = request(self.internal, "POST", "/v1/completions", "{}").await;
        // An empty request is refused by an engine that knows the path, and not found by one that does not.
        Ok(answer.context("the engine does not answer")?.0 == 400)
    }

    /// Lets the thread that computes stand still.
    ///
    /// # Errors
    ///
    /// The process is gone or may not be traced.
    pub fn stall_worker(&mut self) -> anyhow::Result<()> {
        let pid = self.child.as_ref().and_then(Child::id).context("the engine is gone already")?;
        self.stalled = Some(Stalled::stall(&[pid], WORKER)?);
        Ok(())
    }

    async fn end(&mut self) {
        self.stalled = None;
        if let Some(mut child) = self.child.take() {
            // One that ended by itself needs no end; the wait leaves no zombie.
            let _ = child.kill().await;
        }
    }
}

/// A port of loopback that nobody listens on now.
///
/// # Errors
///
/// There is none.
pub async fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?)
}

/// Status and body of a request on a connection of its own; `None` where there is no answer.
pub async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Vec<u8>)> {
    request_over(TcpStream::connect(address).await.ok()?, method, path, body).await
}

/// The same on a connection that is there.
pub async fn request_over(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, Vec<u8>)> {
    let address = stream.peer_addr().ok()?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
    Some((status, answer.split_off(end + 4)))
}
