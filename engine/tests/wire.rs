//! Requests as bytes, against the real binary: what has no certain end is refused, and nothing of it becomes a request.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use support::{Engine, PATIENCE, request};

/// What would be answered 404 if it were taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

/// Everything that comes back until the engine ends the connection.
fn converse(address: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection stays open: {error}: {bytes:?} {text:?}"),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_request_whose_end_is_uncertain_is_refused_and_ends_its_connection() {
    let engine = Engine::start(&["--header-timeout", "2s"]);
    let body = r#"{"model": "code", "prompt": "x", "max_tokens": 1}"#;
    let size = body.len();
    let chunk = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
    let chunked = "transfer-encoding: chunked\r\n";
    for (fields, body) in [
        (format!("content-length: {size}\r\ncontent-length: 3\r\n"), body.to_owned()),
        (format!("content-length: +{size}\r\n"), body.to_owned()),
        (format!("content-length: 0x{size:x}\r\n"), body.to_owned()),
        (format!("content-length: {size}, 3\r\n"), body.to_owned()),
        (format!("x-a: 1\r\n content-length: {size}\r\n"), body.to_owned()),
        (format!("x-a: 1\rcontent-length: {size}\r\n"), body.to_owned()),
        (format!("content-length : {size}\r\n"), body.to_owned()),
        ("transfer-encoding: chunked, gzip\r\n".to_owned(), chunk.clone()),
        ("transfer-encoding: gzip, chunked\r\n".to_owned(), chunk.clone()),
        ("transfer-encoding: chunked, chunked\r\n".to_owned(), chunk.clone()),
        (format!("{chunked}{chunked}"), chunk.clone()),
        (format!("transfer-encoding: identity\r\n{chunked}"), chunk.clone()),
        ("transfer-encoding: xchunked\r\n".to_owned(), chunk.clone()),
        ("transfer-encoding: \u{b}chunked\r\n".to_owned(), chunk.clone()),
        (chunked.to_owned(), format!("+{chunk}")),
        (chunked.to_owned(), format!("0x{chunk}")),
        (chunked.to_owned(), chunk.replacen("\r\n", "\n", 1)),
        (chunked.to_owned(), chunk.replacen("\r\n", ";a=\n\r\n", 1)),
        (chunked.to_owned(), chunk.replacen("}\r\n", "}x\r\n", 1)),
        (chunked.to_owned(), format!("1000000000000000{chunk}")),
    ] {
        for address in [&engine.api, &engine.internal] {
            let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
            let text = converse(address, &format!("{head}{body}{SMUGGLED}"));
            assert!(text.starts_with("HTTP/1.1 400 "), "{fields:?} {body:?}: {text}");
            assert_eq!(text.matches("HTTP/1.").count(), 1, "{fields:?} {body:?}: {text}");
        }
    }
    for hosts in ["", "host: x\r\nhost: x\r\n", "host: x\r\nHost: y\r\n"] {
        for address in [&engine.api, &engine.internal] {
            for (line, fields, body) in [
                ("GET /healthz", String::new(), ""),
                ("POST /v1/completions", format!("content-length: {size}\r\n"), body),
            ] {
                let text =
                    converse(address, &format!("{line} HTTP/1.1\r\n{hosts}{fields}\r\n{body}{SMUGGLED}"));
                assert!(text.starts_with("HTTP/1.1 400 "), "{line} {hosts:?}: {text}");
                assert!(text.contains("\"ambiguous_request\""), "{line} {hosts:?}: {text}");
                assert_eq!(text.matches("HTTP/1.").count(), 1, "{line} {hosts:?}: {text}");
            }
        }
    }
    // Older clients send none, and such a connection ends behind its answer.
    assert!(converse(&engine.api, "GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    assert!(converse(&engine.internal, "GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    // Chunks count where both lengths are given, and the connection ends behind them (RFC 9112, 6.1).
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n{chunked}\r\n");
    let text = converse(&engine.api, &format!("{head}{chunk}{SMUGGLED}"));
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert_eq!(text.matches("HTTP/1.").count(), 1, "{text}");
    assert_eq!(request(&engine.api, "POST", "/v1/completions", body).0, 200);
}

#[test]
fn a_client_that_sends_too_much_reads_why_and_may_go_on() {
    let engine = Engine::start(&[]);
    // More than the buffers of both sides hold, so that the client still writes when it is refused.
    let body = vec![b'x'; 32 << 20];
    for (address, path, expected) in [
        (&engine.api, "/v1/chat/completions", "HTTP/1.1 413 "),
        (&engine.internal, "/v1/chat/completions", "HTTP/1.1 413 "),
        (&engine.api, "/upload", "HTTP/1.1 404 "),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(&body).expect("all of it is taken");
        write!(stream, "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(expected) && text.contains("HTTP/1.1 200 "), "{address} {path}: {text}");
    }
}
