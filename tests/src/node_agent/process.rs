//! Containers as processes: starting one in its sandbox, finding its processes, signalling them.
//!
//! A container is `setpriv → nsenter → unshare` (one process, which waits) and the first process of the new PID
//! namespace below it. The kernel kills the first with the agent's thread and everything else with the first, so
//! nothing outlives the agent. It knows nothing of pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::sandbox::STARTED;

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the container's own could not be made.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The chain of commands could not be run.
    #[error("cannot run setpriv (Debian and Ubuntu: apt-get install util-linux): {0}")]
    Spawn(std::io::Error),
    /// The sandbox could not be set up.
    #[error("cannot set up the container: {0}")]
    Setup(String),
}

/// One running container.
#[derive(Debug)]
pub struct Process {
    child: Child,
    outer: Pid,
}

impl Process {
    /// Starts `script` (see `sandbox`) in the network namespace at `netns`, with its output appended to `log`.
    ///
    /// It must be called on the agent's own thread, since the kernel ties the container's life to its thread.
    ///
    /// # Errors
    /// When the commands cannot be run, or the script stops before its program.
    pub async fn start(script: &Path, netns: &Path, log: &Path) -> Result<Self, StartError> {
        let open = || std::fs::OpenOptions::new().create(true).append(true).open(log);
        let log_file = |source| StartError::File { path: log.to_owned(), source };
        let (reader, writer) = std::io::pipe().map_err(StartError::Spawn)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", netns.display()))
            .args(["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "sh"])
            .arg(script)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::from(writer))
            .stdout(open().map_err(log_file)?)
            .stderr(open().map_err(log_file)?)
            .kill_on_drop(true);
        let child = command.spawn().map_err(StartError::Spawn)?;
        // The command holds the pipe's end that only the script may hold from here on.
        drop(command);
        let outer = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let outer = outer.ok_or_else(|| StartError::Setup("it ended at once".into()))?;
        let mut process = Self { child, outer };
        let pipe =
            tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(StartError::Spawn)?;
        let mut pipe = BufReader::new(pipe);
        let mut said = Vec::new();
        // Line by line, not to the end: `unshare` keeps its end of the pipe open for as long as the container lives.
        while pipe.read_until(b'\n', &mut said).await.map_err(StartError::Spawn)? > 0 {
            if String::from_utf8_lossy(&said).lines().last() == Some(STARTED) {
                return Ok(process);
            }
        }
        let said = String::from_utf8_lossy(&said);
        process.kill_now();
        process.wait().await;
        Err(StartError::Setup(said.trim().to_owned()))
    }

    /// The waiting process, which stands for the container.
    pub fn outer(&self) -> Pid {
        self.outer
    }

    /// Waits for the end and gives the exit code, 128 + N after signal N.
    pub async fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        match self.child.wait().await {
            Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127)),
            Err(_) => 255,
        }
    }

    /// Asks the container's first process to end.
    pub fn terminate(&self) {
        for pid in children(self.outer) {
            send(pid, Signal::SIGTERM);
        }
    }

    /// Ends the container and everything in it.
    pub fn kill_now(&self) {
        kill_container(self.outer);
    }
}

/// Kills a container; its PID namespace dies with its first process.
///
/// `unshare` goes first: it cannot pass its child's SIGKILL on and would end with 1 instead of 137.
fn kill_container(outer: Pid) {
    let inner = children(outer);
    send(outer, Signal::SIGKILL);
    for pid in inner {
        send(pid, Signal::SIGKILL);
    }
}

fn send(pid: Pid, signal: Signal) {
    // A process that has just ended needs no signal.
    let _ = kill(pid, signal);
}

fn children(pid: Pid) -> Vec<Pid> {
    // A process that is gone has no children.
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// The process and everything below it, parents first.
fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            // Any thread may have started a child.
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
        }
        next += 1;
    }
    found
}

/// Every container that runs on the node, for the faults.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    running: Arc<Mutex<BTreeMap<ContainerKey, Pid>>>,
}

/// Which container of which pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerKey {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContainerKey, Pid>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a container; it is forgotten when the guard is dropped, and killed if it still runs then.
    pub fn register(&self, key: ContainerKey, outer: Pid) -> Registered {
        self.lock().insert(key.clone(), outer);
        Registered { processes: self.clone(), key, outer, alive: true }
    }

    /// Sends SIGKILL to one container; nothing when it does not run.
    pub fn crash(&self, key: &ContainerKey) -> Option<()> {
        let outer = self.lock().get(key).copied();
        outer.map(kill_container)
    }

    /// The processes of one container, parents first; nothing when it does not run.
    pub fn find(&self, key: &ContainerKey) -> Option<Vec<u32>> {
        let outer = self.lock().get(key).copied()?;
        Some(descendants(outer).into_iter().filter_map(|pid| u32::try_from(pid.as_raw()).ok()).collect())
    }

    /// Kills everything.
    pub fn kill_all(&self) {
        self.lock().values().copied().for_each(kill_container);
    }

    /// Stops everything where it stands.
    pub fn stop_all(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets everything go on after `stop_all`.
    pub fn continue_all(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        for outer in self.lock().values() {
            descendants(*outer).into_iter().for_each(|pid| send(pid, signal));
        }
    }
}

/// Keeps a container in the list while it runs.
#[derive(Debug)]
pub struct Registered {
    processes: Processes,
    key: ContainerKey,
    outer: Pid,
    alive: bool,
}

impl Registered {
    /// The container has ended and been waited for: its process id is no longer ours to signal.
    pub fn ended(mut self) {
        self.alive = false;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.processes.lock();
        if running.get(&self.key) == Some(&self.outer) {
            running.remove(&self.key);
        }
        if self.alive {
            kill_container(self.outer);
        }
    }
}
