//! One named network namespace: made, entered and removed.
//!
//! Getting inside goes through a thread that joined the namespace (`Netns::run`): sockets and child processes made
//! there belong to it for good, wherever they are used later. It knows nothing of addresses or routes; `net` does.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::worker::Worker;

/// Where iproute2 keeps the names of namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Why a namespace, a link or a route could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The process may not make network namespaces.
    #[error("network namespaces need root: run it as `sudo make run` (or `sudo make test`)")]
    NotRoot,
    /// The `ip` command could not be run at all.
    #[error("cannot run `ip` (Debian and Ubuntu: apt-get install iproute2)")]
    NoIpCommand(#[source] std::io::Error),
    /// The `ip` command refused.
    #[error("`ip {commands}` failed in namespace {namespace}: {output}")]
    Ip {
        /// The namespace the command ran in.
        namespace: String,
        /// The commands, one per line.
        commands: String,
        /// What it printed on stderr.
        output: String,
    },
    /// The namespace exists but cannot be entered or set up.
    #[error("cannot {action} namespace {namespace}")]
    Enter {
        /// The namespace.
        namespace: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Every address of a node's pod range is taken.
    #[error("node {node} has no free pod address left: it runs {pods} pods")]
    NoPodAddress {
        /// The node's number.
        node: u8,
        /// How many pods it runs.
        pods: usize,
    },
    /// A cluster has room for this many nodes only.
    #[error("a local cluster has room for {0} nodes")]
    TooManyNodes(u8),
}

/// An owned network namespace; dropping it deletes it and kills the children that its thread started with a
/// parent-death signal.
#[derive(Debug)]
pub struct Netns {
    name: String,
    worker: Option<Worker>,
}

impl Netns {
    /// Makes the namespace `name` with its loopback up.
    ///
    /// # Errors
    /// Without root, without `ip`, or where the name is taken.
    pub async fn create(name: &str) -> Result<Self, NetError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NetError::NotRoot);
        }
        let owned = name.to_owned();
        Worker::host().run(move || ip_netns(&["add", &owned])).await?;
        // From here on the value owns the namespace, so that an error below deletes it again.
        let mut netns = Self { name: name.to_owned(), worker: None };
        let path = netns.path();
        let worker = Worker::start(name, move || {
            let file = std::fs::File::open(path)?;
            Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
        });
        netns.worker = Some(worker.map_err(|source| netns.enter_error("enter", source))?);
        netns.ip(&["link set lo up".into()]).await?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, as `nsenter --net=FILE` takes it.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `f` on the namespace's thread: what it makes (sockets, children) belongs to the namespace.
    ///
    /// `f` must not block for long: one thread serves the whole namespace. A tokio child is made by entering the
    /// runtime's handle inside `f`; give it a parent-death signal and it cannot outlive the namespace.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.worker().run(f).await
    }

    /// The namespace's thread.
    pub(super) fn worker(&self) -> &Worker {
        self.worker.as_ref().expect("set by create")
    }

    /// Listens on a TCP address inside.
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn listen(&self, address: SocketAddr) -> std::io::Result<TcpListener> {
        let listener = self
            .run(move || {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                std::io::Result::Ok(listener)
            })
            .await?;
        TcpListener::from_std(listener)
    }

    /// Connects from inside; only the making of the socket happens on the namespace's thread, so a dead peer
    /// holds up nobody else.
    ///
    /// # Errors
    /// Those of `connect`.
    pub async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = self
            .run(move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
            .await?;
        socket.connect(address).await
    }

    /// Binds a UDP socket inside.
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn udp(&self, address: SocketAddr) -> std::io::Result<UdpSocket> {
        let socket = self
            .run(move || {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                std::io::Result::Ok(socket)
            })
            .await?;
        UdpSocket::from_std(socket)
    }

    /// Runs `ip` commands inside, all in one process.
    pub(super) async fn ip(&self, commands: &[String]) -> Result<(), NetError> {
        let (namespace, batch) = (self.name.clone(), commands.join("\n"));
        self.run(move || ip_batch(&namespace, &batch)).await
    }

    /// Writes a setting below `/proc/sys/net`, which shows the namespace of the thread that opens it.
    pub(super) async fn sysctl(&self, key: &'static str, value: &'static str) -> Result<(), NetError> {
        self.run(move || std::fs::write(Path::new("/proc/sys/net").join(key), value))
            .await
            .map_err(|source| self.enter_error("set up", source))
    }

    fn enter_error(&self, action: &'static str, source: std::io::Error) -> NetError {
        NetError::Enter { namespace: self.name.clone(), action, source }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.worker.take());
        if let Err(error) = ip_netns(&["del", &self.name]) {
            tracing::warn!(namespace = self.name, %error, "a network namespace could not be deleted");
        }
    }
}

/// The names of all namespaces that start with `prefix`.
pub(super) fn list_namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Deletes a namespace that another, dead run left behind.
pub(super) fn delete_namespace(name: &str) -> Result<(), NetError> {
    ip_netns(&["del", name])
}

/// Kills what still runs in a namespace that another, dead run left behind.
pub(super) fn kill_processes(name: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).stdin(Stdio::null()).output() else {
        return;
    };
    for pid in String::from_utf8_lossy(&output.stdout).split_whitespace().flat_map(str::parse) {
        // It may have ended meanwhile.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn ip_netns(arguments: &[&str]) -> Result<(), NetError> {
    let output = Command::new("ip")
        .arg("netns")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(NetError::NoIpCommand)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Ip {
        namespace: "host".into(),
        commands: format!("netns {}", arguments.join(" ")),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn ip_batch(namespace: &str, batch: &str) -> Result<(), NetError> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetError::NoIpCommand)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A write that fails means that `ip` gave up early; its exit status then tells why.
        let _ = writeln!(stdin, "{batch}");
    }
    let output = child.wait_with_output().map_err(NetError::NoIpCommand)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Ip {
        namespace: namespace.to_owned(),
        commands: batch.to_owned(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
