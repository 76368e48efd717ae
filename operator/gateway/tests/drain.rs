//! A gateway that stops, and connections that rest: no request that reached the gateway's host ends without an answer.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use atlas_gateway::Timing;
use support::{Engine, Gateway, Script, get, model, table};

const REQUEST: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";

async fn serving(timing: Timing) -> (Engine, Gateway) {
    let engine = Engine::start(Script::Answer("yes")).await;
    let view = table(model(&["primary"]), vec![engine.endpoint("primary")]);
    let gateway = Gateway::start_with(view, timing).await;
    gateway.active(Some("primary")).await;
    (engine, gateway)
}

/// Blocking on purpose: what is sent by one of these reaches the kernel while the gateway, on the same thread, stands
/// still as one that was frozen does.
fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.api).unwrap()
}

/// All that comes until the gateway ends the connection.
async fn rest(mut stream: TcpStream) -> String {
    let read = tokio::task::spawn_blocking(move || {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let mut text = Vec::new();
        let ended = stream.read_to_end(&mut text);
        assert!(ended.is_ok(), "{ended:?} {}", String::from_utf8_lossy(&text));
        String::from_utf8(text).unwrap()
    });
    read.await.unwrap()
}

/// One whole answer, with the connection left open.
async fn answer(mut stream: TcpStream) -> (TcpStream, String) {
    let read = tokio::task::spawn_blocking(move || {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let (mut text, mut byte) = (String::new(), [0]);
        while !text.ends_with('}') {
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        (stream, text)
    });
    read.await.unwrap()
}

/// Long enough for the gateway to read what was sent before.
async fn notice(gateway: &Gateway) {
    for _ in 0..5 {
        get(gateway.internal, "/readyz").await;
    }
}

#[tokio::test]
async fn what_reached_a_gateway_that_stops_is_answered() {
    let (engine, gateway) = serving(support::timing()).await;
    // A connection with an answer behind it, an untouched one, and one with half a request.
    let mut used = connect(&gateway);
    used.write_all(REQUEST.as_bytes()).unwrap();
    let (mut used, first) = answer(used).await;
    assert!(first.starts_with("HTTP/1.1 200 ") && !first.contains("connection: close"), "{first}");
    let (mut fresh, mut half) = (connect(&gateway), connect(&gateway));
    let (begin, end) = REQUEST.split_at(40);
    half.write_all(begin.as_bytes()).unwrap();
    notice(&gateway).await;
    // From here to the first await the gateway stands still.
    used.write_all(REQUEST.as_bytes()).unwrap();
    fresh.write_all(REQUEST.as_bytes()).unwrap();
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| connect(&gateway)).collect();
    for stream in &mut waiting {
        stream.write_all(REQUEST.as_bytes()).unwrap();
    }
    gateway.stop();
    let all = futures::future::join_all([used, fresh].into_iter().chain(waiting).map(rest));
    for text in all.await {
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with(r#"{"text":"yes"}"#), "{text}");
        assert!(text.contains("connection: close\r\n"), "its client must not send another one: {text}");
    }
    half.write_all(end.as_bytes()).unwrap();
    let text = rest(half).await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("connection: close\r\n"), "{text}");
    assert_eq!(engine.seen.lock().unwrap().len(), 24);
}

#[tokio::test]
async fn a_connection_that_rests_may_send_again_until_it_was_quiet_for_a_while() {
    let timing = Timing { drain_quiet: Duration::from_millis(500), ..support::timing() };
    let (_engine, gateway) = serving(timing).await;
    let mut used = connect(&gateway);
    used.write_all(REQUEST.as_bytes()).unwrap();
    let (mut used, _) = answer(used).await;
    let quiet = connect(&gateway);
    notice(&gateway).await;
    gateway.stop();
    notice(&gateway).await;
    used.write_all(REQUEST.as_bytes()).unwrap();
    let text = rest(used).await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("connection: close\r\n"), "{text}");
    assert_eq!(rest(quiet).await, "", "and then it is ended in order");
}

#[tokio::test]
async fn between_requests_a_connection_may_rest_for_longer_than_a_head_may_take() {
    let timing = Timing {
        head_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_secs(600),
        ..support::timing()
    };
    let (_engine, gateway) = serving(timing).await;
    let untouched = connect(&gateway);
    let mut used = connect(&gateway);
    used.write_all(REQUEST.as_bytes()).unwrap();
    let (mut used, _) = answer(used).await;
    // Of the two the one that has proven nothing is ended first.
    assert_eq!(rest(untouched).await, "");
    // Time in which nothing may happen: twice what a head may take.
    tokio::time::sleep(Duration::from_millis(200)).await;
    used.write_all(REQUEST.as_bytes()).unwrap();
    let (mut used, text) = answer(used).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    // The time of a head is short behind others too.
    used.write_all(&REQUEST.as_bytes()[..20]).unwrap();
    assert_eq!(rest(used).await, "", "long before the time of rest");
}

#[tokio::test]
async fn a_connection_does_not_rest_for_ever() {
    let timing = Timing { idle_timeout: Duration::from_millis(300), ..support::timing() };
    let (_engine, gateway) = serving(timing).await;
    let mut rested = connect(&gateway);
    rested.write_all(REQUEST.as_bytes()).unwrap();
    let (rested, _) = answer(rested).await;
    assert_eq!(rest(rested).await, "");
}
