//! A small HTTP server for the node agent's own suite: it does what a container can do wrong, on request.
//!
//! `GET /` answers with its environment and files, `/unready` and `/unwell` turn `/readyz` and `/healthz` to 503,
//! `/exit/N` writes a termination message and ends with N. It serves one connection at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Default)]
struct State {
    unready: AtomicBool,
    unwell: AtomicBool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("test-server {}", arguments.join(" "));
    if let Some(code) = arguments.first().and_then(|first| first.strip_prefix("--exit=")) {
        exit(code.parse()?);
    }
    let listener = TcpListener::bind("0.0.0.0:8080").await?;
    println!("listening on 8080");
    let mut terminate = signal(SignalKind::terminate())?;
    let state = Arc::new(State::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A client that goes away early is its own affair.
                let _ = answer(accepted?.0, &state).await;
            }
            _ = terminate.recv() => {
                println!("asked to end");
                return Ok(());
            }
        }
    }
}

async fn answer(stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut header = String::new();
    while stream.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let path = line.split_whitespace().nth(1).unwrap_or("/");
    if !path.ends_with('z') {
        println!("GET {path}");
    }
    let (status, body) = match path {
        "/readyz" if state.unready.load(Ordering::Relaxed) => (503, "unready".to_owned()),
        "/healthz" if state.unwell.load(Ordering::Relaxed) => (503, "unwell".to_owned()),
        "/unready" => (200, format!("was unready: {}", state.unready.swap(true, Ordering::Relaxed))),
        "/unwell" => (200, format!("was unwell: {}", state.unwell.swap(true, Ordering::Relaxed))),
        path if path.starts_with("/exit/") => exit(path.trim_start_matches("/exit/").parse().unwrap_or(1)),
        _ => (200, describe()),
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.get_mut().write_all(answer.as_bytes()).await
}

/// What a container sees of its surroundings, one fact a line.
fn describe() -> String {
    let file = |path: &str| {
        std::fs::read_to_string(path)
            .map_or_else(|error| error.to_string(), |text| text.trim().replace('\n', "|"))
    };
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let token = file("/var/run/secrets/kubernetes.io/serviceaccount/token");
    [
        format!("pid={}", std::process::id()),
        format!("user={}", nix::unistd::getuid()),
        format!(
            "groups={:?}",
            nix::unistd::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect::<Vec<_>>()
        ),
        format!("arguments={}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        format!("POD={}", variable("POD")),
        format!("POD_IP={}", variable("POD_IP")),
        format!("SECRET={}", variable("SECRET")),
        format!("KUBERNETES_SERVICE_HOST={}", variable("KUBERNETES_SERVICE_HOST")),
        format!("config={}", file("/etc/test/greeting")),
        format!("namespace={}", file("/var/run/secrets/kubernetes.io/serviceaccount/namespace")),
        format!("token-parts={}", token.split('.').count()),
        format!(
            "ca={}",
            file("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt").contains("BEGIN CERTIFICATE")
        ),
        format!("resolv={}", file("/etc/resolv.conf")),
        format!("root-is-read-only={}", std::fs::write("/root-write", "x").is_err()),
        format!("volume-is-writable={}", std::fs::write("/models/x", "x").is_ok()),
    ]
    .join("\n")
}

fn exit(code: i32) -> ! {
    // Without the file the exit code has to do.
    let _ = std::fs::write("/dev/termination-log", format!("ending with {code} as asked"));
    println!("ending with {code}");
    std::process::exit(code)
}
