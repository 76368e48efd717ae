//! Measures the memory of a gateway that carries many streams at once.
//!
//!     cargo run -p atlas-gateway --example many_streams -- [STREAMS]
//!
//! The gateway is a process of its own; engine and clients are this one. Every stream gets an event, waits until all
//! are open, and gets the rest. Each stream takes two descriptors here and two in the gateway: `ulimit -n` must allow it.

mod support;

use std::{io::Read, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use support::{Failure, machine, start_gateway};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
    sync::{Semaphore, watch},
    task::JoinSet,
};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"}}]}\n\n";
/// Connections that are opened at once; a listener's backlog is not endless.
const OPENING: usize = 100;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, engine] = arguments.as_slice()
        && flag == "--gateway"
    {
        println!("{}", start_gateway(engine.parse()?).await?);
        // Until the parent closes the pipe.
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        return Ok(());
    }
    let streams: usize = arguments.first().map_or(Ok(5_000), |text| text.parse())?;
    let (finish, finished) = watch::channel(false);
    let engine = start_engine(finished).await?;
    let (mut child, gateway) = spawn_gateway(engine).await?;
    while open(gateway, false).await?.status() != StatusCode::OK {}
    let idle = resident_kib(&child)?;

    let (mut open_streams, gate) = (JoinSet::new(), Arc::new(Semaphore::new(OPENING)));
    for _ in 0..streams {
        let gate = Arc::clone(&gate);
        open_streams.spawn(async move {
            let _turn = gate.acquire().await;
            first_event(open(gateway, true).await?).await
        });
    }
    let mut bodies = Vec::new();
    while let Some(opened) = open_streams.join_next().await {
        bodies.push(opened??);
    }
    let carrying = resident_kib(&child)?;
    finish.send_replace(true);
    let mut whole = 0;
    for body in bodies {
        whole += usize::from(body.collect().await?.to_bytes().ends_with(b"[DONE]\n\n"));
    }
    println!("machine: {}", machine());
    println!("command: cargo run -p atlas-gateway --example many_streams -- {streams}");
    println!("streams: {streams} at once, {whole} whole");
    // The kernel counts in KiB.
    let [idle, carrying] = [idle, carrying].map(|kib| kib * 1_024);
    println!(
        "gateway's resident memory: idle {} MB, carrying them {} MB",
        idle / 1_000_000,
        carrying / 1_000_000
    );
    println!("a stream: {} kB", carrying.saturating_sub(idle) / 1_000 / streams.max(1) as u64);
    child.kill().await?;
    if whole == streams { Ok(()) } else { Err(format!("{} streams broke", streams - whole).into()) }
}

async fn spawn_gateway(engine: SocketAddr) -> Result<(Child, SocketAddr), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--gateway", &engine.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let out = child.stdout.take().ok_or("the gateway has no output")?;
    let address = BufReader::new(out).lines().next_line().await?.ok_or("the gateway ended")?;
    Ok((child, address.parse()?))
}

fn resident_kib(child: &Child) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().ok_or("the gateway ended")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn open(gateway: SocketAddr, stream: bool) -> Result<http::Response<Incoming>, Failure> {
    let connection = TcpStream::connect(gateway).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    tokio::spawn(driver);
    let body = format!(
        r#"{{"model": "code", "stream": {stream}, "messages": [{{"role": "user", "content": "hi"}}]}}"#
    );
    let request =
        Request::post("/v1/chat/completions").header("host", "code").body(Full::new(Bytes::from(body)))?;
    Ok(sender.send_request(request).await?)
}

async fn first_event(response: http::Response<Incoming>) -> Result<Incoming, Failure> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("a stream was answered {}", head.status).into());
    }
    tokio::time::timeout(Duration::from_secs(60), body.frame()).await?.ok_or("a stream without events")??;
    Ok(body)
}

/// An engine on one port: it is ready, and its streams wait for the end in their middle.
async fn start_engine(finished: watch::Receiver<bool>) -> Result<SocketAddr, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener: TcpListener = socket.listen(4_096)?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, finished.clone()));
        }
    });
    Ok(address)
}

async fn converse(mut stream: TcpStream, mut finished: watch::Receiver<bool>) -> std::io::Result<()> {
    loop {
        let mut request = Vec::with_capacity(1_024);
        while !ends(&request) {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let text = String::from_utf8_lossy(&request);
        if !text.contains("\"stream\": true") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
            continue;
        }
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
        stream.write_all(format!("{HEAD}{}", chunk(EVENT)).as_bytes()).await?;
        // The sender lives as long as the process.
        let _ = finished.wait_for(|finished| *finished).await;
        stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).await?;
    }
}

/// Whether head and body of a request are here.
fn ends(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    body.len() >= length
}
