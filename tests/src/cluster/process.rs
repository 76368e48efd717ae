//! A program that runs in the background: started with a log file, killed when its handle is dropped.
//!
//! It dies with this process, however that ends (`setpriv --pdeathsig`), and it is killed rather than asked: the
//! data of a test cluster is thrown away. It deliberately restarts nothing.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::error::ClusterError;
use super::worker::Worker;

/// How long a program may take to become ready: generous, since a loaded machine takes ten times a quiet one's time.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(180);

/// How often a program is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(50);

/// Lines of a log that an error quotes.
const QUOTED_LINES: usize = 15;

/// A program in the background.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` on a worker's thread: a namespace's, or the host's. Its output goes to `NAME.log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be run.
    pub(super) async fn spawn(
        worker: &Worker,
        name: &str,
        program: &Path,
        arguments: Vec<String>,
        folder: &Path,
    ) -> Result<Self, ClusterError> {
        let log = folder.join(format!("{name}.log"));
        let output = std::fs::File::create(&log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(ClusterError::io(format!("write {}", log.display())))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.env("HOME", folder).current_dir(folder);
        command.env("PATH", super::path_with_sbin());
        command.stdin(Stdio::null()).stdout(output.0).stderr(output.1);
        let child = worker
            .run(move || command.spawn())
            .await
            .map_err(ClusterError::io(format!("run `setpriv` (util-linux) for {}", program.display())))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it logs to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until `ready` says so; what it answers until then goes into the error.
    pub(super) async fn wait_ready<F>(&mut self, mut ready: impl FnMut() -> F) -> Result<(), ClusterError>
    where
        F: Future<Output = Result<(), String>>,
    {
        let started = Instant::now();
        loop {
            let Err(last) = ready().await else { return Ok(()) };
            if let Some(status) = self.exited() {
                return Err(ClusterError::Exited {
                    program: self.name.clone(),
                    status,
                    log: self.log_tail(),
                });
            }
            if started.elapsed() > READY_TIMEOUT {
                let (program, seconds) = (self.name.clone(), READY_TIMEOUT.as_secs());
                return Err(ClusterError::NotReady { program, seconds, last, log: self.log_tail() });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(QUOTED_LINES)..].iter().fold(String::new(), |mut tail, line| {
            let _ = writeln!(tail, "    {line}");
            tail
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports of loopback that were free a moment ago, all different.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N], ClusterError> {
    let failed = || ClusterError::io("find a free port on 127.0.0.1");
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        *port = listener.local_addr().map_err(failed())?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
