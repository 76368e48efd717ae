//! Measures what the gateway adds to a request on loopback, against the same trivial engine asked directly.
//!
//!     cargo run -p atlas-gateway --example added_latency -- [REQUESTS]
//!
//! Direct and through the gateway take turns, one request at a time on a kept-alive connection each, so that both
//! see the same machine. It measures latency, not throughput.

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, routing::any, serve::ListenerExt};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use support::{Failure, machine, start_gateway};
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 5;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let requests: usize = std::env::args().nth(1).map_or(Ok(2_000), |text| text.parse())?;
    let engine = start_engine().await?;
    let gateway = start_gateway(engine).await?;
    let (mut direct, mut through) = (connect(engine).await?, connect(gateway).await?);
    while ask(&mut through).await?.1 != StatusCode::OK {}

    let mut added = Vec::new();
    println!("machine: {}", machine());
    println!("command: cargo run -p atlas-gateway --example added_latency -- {requests}");
    println!("{ROUNDS} rounds of {requests} requests each way, microseconds:");
    for round in 1..=ROUNDS {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..requests {
            a.push(ask(&mut direct).await?.0);
            let (time, status) = ask(&mut through).await?;
            if status != StatusCode::OK {
                return Err(format!("the gateway answered {status}: nothing was measured").into());
            }
            b.push(time);
        }
        let (direct, through) = (percentiles(a), percentiles(b));
        let delta = (through.0.saturating_sub(direct.0), through.1.saturating_sub(direct.1));
        println!(
            "  {round}: direct p50 {} p99 {}, gateway p50 {} p99 {}, added p50 {} p99 {}",
            direct.0, direct.1, through.0, through.1, delta.0, delta.1
        );
        added.push(delta);
    }
    let spread = |mut values: Vec<u128>| {
        values.sort_unstable();
        format!("median {} us, spread {} to {} us", values[ROUNDS / 2], values[0], values[ROUNDS - 1])
    };
    println!("added p50: {}", spread(added.iter().map(|delta| delta.0).collect()));
    println!("added p99: {}", spread(added.iter().map(|delta| delta.1).collect()));
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0, Duration::as_micros);
    (at(50), at(99))
}

async fn start_engine() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|io| {
        let _ = io.set_nodelay(true);
    });
    let router = Router::new().fallback(any(|| async { r#"{"choices": []}"# }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

type Connection = SendRequest<Full<Bytes>>;

async fn connect(address: SocketAddr) -> Result<Connection, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(connection: &mut Connection) -> Result<(Duration, StatusCode), Failure> {
    let body =
        Bytes::from_static(br#"{"model": "code", "messages": [{"role": "user", "content": "hello"}]}"#);
    let request = Request::post("/v1/chat/completions").header("host", "code").body(Full::new(body))?;
    connection.ready().await?;
    let begun = Instant::now();
    let response = connection.send_request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok((begun.elapsed(), status))
}
