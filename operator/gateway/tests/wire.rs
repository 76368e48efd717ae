//! Requests as bytes: what means two things to two readers is refused, or ends its connection, and one request is one.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use atlas_gateway::Timing;
use support::{Engine, Gateway, Script, model, table};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What would be answered by a 404 of its own if it were taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

async fn serving(timing: Timing) -> (Engine, Gateway) {
    let engine = Engine::start(Script::Answer("yes")).await;
    let view = table(model(&["primary"]), vec![engine.endpoint("primary")]);
    let gateway = Gateway::start_with(view, timing).await;
    gateway.active(Some("primary")).await;
    (engine, gateway)
}

/// Everything that comes back until the gateway ends the connection.
async fn converse(gateway: &Gateway, bytes: &str) -> String {
    let mut stream = TcpStream::connect(gateway.api).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text)).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    // A connection that is ended while bytes of it are unread is reset: what was answered is here all the same.
    assert!(read.is_ok(), "the connection stays open: {bytes:?} {text}");
    text
}

#[tokio::test]
async fn a_request_whose_end_is_uncertain_is_refused_and_ends_its_connection() {
    let (engine, gateway) = serving(support::timing()).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    let old = "POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\n";
    for (first, fields, body) in [
        (head, "content-length: 2\r\ncontent-length: 3\r\n", "{} "),
        (head, "content-length: +2\r\n", "{}"),
        (head, "content-length: 2, 3\r\n", "{} "),
        (head, "transfer-encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding : chunked\r\n", "0\r\n\r\n"),
        (head, "x-a: 1\r\n content-length: 2\r\n", "{}"),
        (head, "x-a: 1\rcontent-length: 2\r\n", "{}"),
        (head, "transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "2 \n{}\r\n0\r\n\r\n"),
        (old, "transfer-encoding: chunked\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding: identity\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        (head, "transfer-encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        (head, "content-length: 2\u{0}\r\n", "{}"),
        (head, "content-length: 0x2\r\n", "{}"),
        (head, "content-length: 18446744073709551618\r\n", "{}"),
        (head, "content length: 2\r\n", "{}"),
        (head, "host: y\r\ncontent-length: 2\r\n", "{}"),
        (head, "transfer-encoding: chunked\r\n", "+2\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "-2\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "0x2\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "2\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "10000000000000002\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "2\r\n{}x\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "2;a=\n1\r\n{}\r\n0\r\n\r\n"),
        (head, "transfer-encoding: chunked\r\n", "\r\n2\r\n{}\r\n0\r\n\r\n"),
        ("POST /v1/chat/completions HTTP/1.1\r\n", "content-length: 2\r\n", "{}"),
    ] {
        let text = converse(&gateway, &format!("{first}{fields}\r\n{body}{SMUGGLED}")).await;
        assert!(text.starts_with("HTTP/1.1 400 ") || text.starts_with("HTTP/1.0 400 "), "{fields:?}: {text}");
        assert_eq!(text.matches("HTTP/1.").count(), 1, "{fields:?}: {text}");
    }
    assert!(engine.seen.lock().unwrap().is_empty(), "engines saw none of them");
}

/// RFC 9112, 6.1: chunks count then, and the connection is ended behind them.
#[tokio::test]
async fn a_request_with_both_lengths_is_the_last_of_its_connection() {
    let (engine, gateway) = serving(support::timing()).await;
    for fields in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    ] {
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        let text = converse(&gateway, &format!("{head}2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}")).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{fields:?}: {text}");
        assert_eq!(text.matches("HTTP/1.").count(), 1, "{fields:?}: {text}");
        let seen = std::mem::take(&mut *engine.seen.lock().unwrap()).concat();
        assert!(seen.contains("content-length: 2\r\n") && seen.ends_with("\r\n\r\n{}"), "{seen}");
        assert!(!seen.contains("transfer-encoding"), "the gateway frames it anew: {seen}");
    }
}

/// RFC 9112, 2.2 allows lines that end in LF alone: they are lines to whoever reads them, and engines never see them.
#[tokio::test]
async fn what_is_read_leniently_is_framed_anew_and_the_next_request_is_one_of_its_own() {
    let (engine, gateway) = serving(support::timing()).await;
    let last = "GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for first in [
        "POST /v1/chat/completions HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n\
         02;a=b\r\n{}\r\n0\r\ncontent-length: 70\r\nhost: y\r\n\r\n",
        "POST http://code/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let text = converse(&gateway, &format!("{first}{last}")).await;
        let statuses: Vec<&str> = text.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "404"], "{first:?}: {text}");
        let seen = std::mem::take(&mut *engine.seen.lock().unwrap()).concat();
        assert_eq!(seen.matches("content-length").count(), 1, "{seen}");
        assert!(seen.contains("content-length: 2\r\n") && seen.ends_with("\r\n\r\n{}"), "{seen}");
        assert!(!seen.contains("\n\n") && !seen.contains("transfer-encoding"), "{seen}");
    }
}

#[tokio::test]
async fn heads_that_come_byte_by_byte_have_a_time_in_which_they_must_end() {
    let timing = Timing { head_timeout: Duration::from_millis(300), ..support::timing() };
    let (engine, gateway) = serving(timing).await;
    let (mut read, mut write) = TcpStream::connect(gateway.api).await.unwrap().into_split();
    // Each byte comes soon after the one before, so that only the time of the whole can end it.
    let drip = async {
        write.write_all(b"GET /v1/models HTTP/1.1\r\nx-a: ").await.unwrap();
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let end = async {
        let mut text = Vec::new();
        // A reset is an end too.
        let _ = read.read_to_end(&mut text).await;
        text
    };
    let text = tokio::select! {
        text = tokio::time::timeout(Duration::from_secs(10), end) => text.expect("the connection is ended"),
        () = drip => Vec::new(),
    };
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&text));
    assert!(engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let timing = Timing { body_timeout: Duration::from_millis(100), ..support::timing() };
    let (engine, gateway) = serving(timing).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"model\"";
    let text = converse(&gateway, head).await;
    assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("body_timeout"), "{text}");
    assert!(engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_head_without_an_end_is_refused() {
    let (engine, gateway) = serving(support::timing()).await;
    let mut stream = TcpStream::connect(gateway.api).await.unwrap();
    let line = format!("x-a: {}\r\n", "a".repeat(1_000));
    let mut sent = stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n").await;
    for _ in 0..200 {
        if sent.is_ok() {
            sent = stream.write_all(line.as_bytes()).await;
        }
    }
    let mut text = Vec::new();
    // Where the gateway has closed with bytes unread, the answer may be lost to the reset that follows.
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text)).await;
    assert!(ended.is_ok(), "the connection stays open after 200 kB of headers");
    let text = String::from_utf8_lossy(&text);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431 "), "{text}");
    assert!(engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_sends_too_much_reads_why_and_may_go_on() {
    let (_engine, gateway) = serving(support::timing()).await;
    // More than the buffers of both sides hold, so that the client still writes when it is refused.
    let size = 32 << 20;
    let chunk = format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
    for (path, fields, body, code) in [
        ("/v1/chat/completions", format!("content-length: {size}\r\n"), "x".repeat(size), "body_too_large"),
        ("/v1/chat/completions", "transfer-encoding: chunked\r\n".to_owned(), chunk, "body_too_large"),
        ("/upload", format!("content-length: {size}\r\n"), "x".repeat(size), "path_not_found"),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n{body}");
        let next = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut stream = TcpStream::connect(gateway.api).await.unwrap();
        stream.write_all(request.as_bytes()).await.expect("all of it is taken");
        stream.write_all(next.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains(code) && text.contains(r#""object":"list""#), "{path} {fields}: {text}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_too_much_is_told_no() {
    let (_engine, gateway) = serving(support::timing()).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n";
    let text = converse(&gateway, &format!("{head}expect: 100-continue\r\n\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("body_too_large"), "{text}");
}
