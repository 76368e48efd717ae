//! Measures how many requests a second a gateway on one core passes on, with `wrk` as the generator.
//!
//!     cargo run -p atlas-gateway --example throughput -- [CONNECTIONS] [SECONDS]
//!
//! The gateway is a process of its own with one thread, on a core of its own where `taskset` is at hand; the trivial engine
//! (this process, one thread) and `wrk` (one thread) share another. The engine is asked directly too, so that what the
//! generator and the engine take by themselves shows.

mod support;

use std::{io::Read, net::SocketAddr, path::PathBuf, process::Stdio};

use support::{Failure, machine, start_gateway};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

const ANSWER: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{\"choices\": []}";
const SCRIPT: &str = r#"wrk.method = "POST"
wrk.body = '{"model": "code", "messages": [{"role": "user", "content": "hello"}]}'
wrk.headers["content-type"] = "application/json"
wrk.headers["Host"] = "code"
"#;

#[tokio::main(flavor = "current_thread")]
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
    println!("machine: {}", machine());
    // Where there is no `taskset`, the kernel shares the cores out as it likes, and the figures are lower.
    let _ = Command::new("taskset")
        .args(["-cp", "1", &std::process::id().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    let connections = arguments.first().map_or("32", String::as_str);
    let seconds = arguments.get(1).map_or("10", String::as_str);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let engine = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream));
        }
    });
    let (mut child, gateway) = spawn_gateway(engine).await?;
    let script = script()?;
    println!("command: cargo run -p atlas-gateway --example throughput -- {connections} {seconds}");
    for (name, address) in [("the engine alone", engine), ("through the gateway", gateway)] {
        let mut wrk = pinned("1", "wrk");
        wrk.args(["-t1", "--latency", "-c", connections, "-d", &format!("{seconds}s"), "-s"]).arg(&script);
        wrk.arg(format!("http://{address}/v1/chat/completions"));
        let output = wrk.kill_on_drop(true).output().await;
        let output = output.map_err(|error| format!("wrk does not start ({error}): install it"))?;
        println!("{name}:\n{}", String::from_utf8_lossy(&output.stdout));
    }
    std::fs::remove_file(script)?;
    child.kill().await?;
    Ok(())
}

fn script() -> Result<PathBuf, Failure> {
    let path = std::env::temp_dir().join(format!("atlas-throughput-{}.lua", std::process::id()));
    std::fs::write(&path, SCRIPT)?;
    Ok(path)
}

/// The program on a core of its own, where `taskset` can give it that one.
fn pinned(core: &str, program: &str) -> Command {
    let can = std::process::Command::new("taskset")
        .args(["-c", core, "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]);
    command
}

async fn spawn_gateway(engine: SocketAddr) -> Result<(Child, SocketAddr), Failure> {
    let program = std::env::current_exe()?;
    let mut command = pinned("0", &program.to_string_lossy());
    command.args(["--gateway", &engine.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let out = child.stdout.take().ok_or("the gateway has no output")?;
    let address = BufReader::new(out).lines().next_line().await?.ok_or("the gateway ended")?;
    Ok((child, address.parse()?))
}

/// Answers every request alike; a request is whole when its body's length is there.
async fn converse(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1 << 12);
    loop {
        while !ends(&request) {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        request.clear();
        stream.write_all(ANSWER.as_bytes()).await?;
    }
}

fn ends(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    request.len() >= head + 4 + length.unwrap_or(0)
}
