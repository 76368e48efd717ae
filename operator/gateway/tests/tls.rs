//! TLS on the API's listener: what clients see of a certificate, of another one, and of files that cannot be used.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use atlas_gateway::{GatewayConfig, Listeners, Timing, TlsFiles, serve};
use support::{Engine, Script, model, table};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Writes a certificate for localhost that is its own root, and its key.
fn write_identity(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
}

fn config(folder: &Path) -> GatewayConfig {
    let any = ([127, 0, 0, 1], 0).into();
    GatewayConfig {
        namespace: "atlas".into(),
        listen: any,
        internal_listen: any,
        tls: Some(TlsFiles { certificate: folder.join("tls.crt"), key: folder.join("tls.key") }),
        cluster_domain: "cluster.local".into(),
        pod_name: "atlas-gateway-x".into(),
        timing: Timing { tls_reload: Duration::from_millis(50), ..support::timing() },
    }
}

/// Asks with curl: what it printed, and its exit code.
fn curl(port: u16, root: &Path, more: &[&str]) -> (String, Option<i32>) {
    let resolve = format!("localhost:{port}:127.0.0.1");
    let url = format!("https://localhost:{port}/v1/models");
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "10", "--resolve", &resolve, "--cacert"]).arg(root).args(more);
    let output = command.arg(url).output().expect("curl is installed");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_the_newest_certificate_that_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    write_identity(folder.path());
    let engine = Engine::start(Script::Answer("yes")).await;
    let config = config(folder.path());
    let listeners = Listeners::bind(&config).await.unwrap();
    let port = listeners.api.local_addr().unwrap().port();
    let internal = listeners.internal.local_addr().unwrap();
    let (_table, view) = watch::channel(table(model(&["primary"]), vec![engine.endpoint("primary")]));
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    tokio::spawn(serve(config, listeners, view, CancellationToken::new(), stop));

    let root = folder.path().join("root.pem");
    let trust = || std::fs::copy(folder.path().join("tls.crt"), &root).unwrap();
    trust();
    for version in ["--tlsv1.2", "--tlsv1.3"] {
        let (text, code) = curl(port, &root, &[version, "--tls-max", &version["--tlsv".len()..]]);
        assert!(text.contains(r#""id":"code""#), "{version}: {text} {code:?}");
    }
    let old = curl(port, &root, &["--tls-max", "1.1"]);
    assert!(old.0.is_empty() && old.1 != Some(0), "TLS 1.1 was spoken: {old:?}");

    let offered = curl(port, &root, &["--http2", "--output", "/dev/null", "--write-out", "%{http_version}"]);
    assert_eq!(offered.0, "1.1", "what was agreed on by ALPN");

    // What cannot be used changes nothing but the status, and the next pair is taken over without a restart.
    std::fs::write(folder.path().join("tls.key"), "no key").unwrap();
    let problem =
        || async { ask(internal, "/internal/status").await.contains("tls.key holds no PEM private key") };
    until("the status says what is wrong", async || problem().await).await;
    assert!(curl(port, &root, &[]).0.contains(r#""id":"code""#), "the last good certificate stays");
    write_identity(folder.path());
    trust();
    until("the new certificate is shown", async || curl(port, &root, &[]).0.contains(r#""id":"code""#)).await;
    until("nothing is wrong any more", async || !problem().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_plain_http_is_told_and_who_does_not_speak_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    write_identity(folder.path());
    let mut config = config(folder.path());
    config.timing.head_timeout = Duration::from_millis(300);
    let listeners = Listeners::bind(&config).await.unwrap();
    let api = listeners.api.local_addr().unwrap();
    let (_table, view) = watch::channel(table(model(&["primary"]), Vec::new()));
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    tokio::spawn(serve(config, listeners, view, CancellationToken::new(), stop));

    let answer = exchange(api, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"tls_required\""), "{answer}");
    // Nothing at all, half a record, and a record of another kind: each connection ends, and none holds the listener.
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x04\xff\xff\xff\xff"] {
        let answer = exchange(api, sent).await;
        assert!(!answer.contains("HTTP"), "{sent:?}: {answer}");
    }
    let root = folder.path().join("tls.crt");
    assert!(curl(api.port(), &root, &[]).0.contains(r#""id":"code""#));
}

/// Sends bytes and reads until the other side ends the connection.
async fn exchange(address: SocketAddr, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset ends it too.
    let _ = read.expect("the connection is ended");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nobody_is_let_in_until_there_is_one() {
    for (file, content, says) in [
        ("tls.crt", None, "tls.crt cannot be read: does the Secret exist"),
        ("tls.key", None, "tls.key cannot be read: does the Secret exist"),
        ("tls.crt", Some("nothing"), "tls.crt holds no PEM certificate"),
        ("tls.key", Some("nothing"), "tls.key holds no PEM private key"),
        ("tls.key", Some("other"), "not that of the certificate"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_identity(folder.path());
        let path = folder.path().join(file);
        match content {
            None => std::fs::remove_file(&path).unwrap(),
            Some("other") => {
                let other = tempfile::tempdir().unwrap();
                write_identity(other.path());
                std::fs::copy(other.path().join(file), &path).unwrap();
            }
            Some(content) => std::fs::write(&path, content).unwrap(),
        }
        let (api, internal, _guard) = start(folder.path()).await;
        let status = ask(internal, "/internal/status").await;
        assert!(status.contains(says) && status.contains(r#""letsNobodyIn":true"#), "{says}: {status}");
        let ready = ask(internal, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("certificate"), "{ready}");
        let root = folder.path().join("root.pem");
        std::fs::write(&root, rcgen::generate_simple_self_signed([]).unwrap().cert.pem()).unwrap();
        let (text, code) = curl(api.port(), &root, &["--insecure"]);
        assert!(text.is_empty() && code != Some(0), "{text} {code:?}");

        write_identity(folder.path());
        until("it is ready", async || ask(internal, "/readyz").await.starts_with("HTTP/1.1 200 ")).await;
        let (text, code) = curl(api.port(), &folder.path().join("tls.crt"), &[]);
        assert!(text.contains(r#""id":"code""#), "{text} {code:?}");
        assert!(!ask(internal, "/internal/status").await.contains("letsNobodyIn"));
    }
}

/// One that has ended is told; it is shown where there is no better one, for clients that do not look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_has_ended_is_told_and_takes_no_better_ones_place() {
    let folder = tempfile::tempdir().unwrap();
    let write_ended = || {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2001, 2, 3);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("tls.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
    };
    write_ended();
    let (api, internal, _guard) = start(folder.path()).await;
    let root = folder.path().join("root.pem");
    let says = "tls.crt expired at 2001-02-03T00:00:00Z: renew it";
    let status = ask(internal, "/internal/status").await;
    assert!(status.contains(says) && !status.contains("letsNobodyIn"), "{status}");
    assert!(curl(api.port(), &folder.path().join("tls.crt"), &["--insecure"]).0.contains(r#""id":"code""#));

    write_identity(folder.path());
    std::fs::copy(folder.path().join("tls.crt"), &root).unwrap();
    until("the new one is shown", async || curl(api.port(), &root, &[]).0.contains(r#""id":"code""#)).await;
    until("nothing is wrong", async || !ask(internal, "/internal/status").await.contains(says)).await;
    write_ended();
    until("it is told", async || ask(internal, "/internal/status").await.contains(says)).await;
    assert!(curl(api.port(), &root, &[]).0.contains(r#""id":"code""#), "the better one stays");
}

/// A gateway with the files of this folder that knows its model: its API, its internal port, and what ends it.
async fn start(folder: &Path) -> (SocketAddr, SocketAddr, Guard) {
    let config = config(folder);
    let listeners = Listeners::bind(&config).await.unwrap();
    let (api, internal) = (listeners.api.local_addr().unwrap(), listeners.internal.local_addr().unwrap());
    let (table, view) = watch::channel(table(model(&["primary"]), Vec::new()));
    let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
    listed.cancel();
    let guard = Guard { _stop: stop.clone().drop_guard(), _table: table };
    tokio::spawn(serve(config, listeners, view, listed, stop));
    // It answers before it has taken the first list over, and tells nothing of models until then.
    until("the model is known", async || {
        ask(internal, "/internal/status").await.contains(r#""model":"code""#)
    })
    .await;
    until("the list is in", async || !ask(internal, "/readyz").await.contains("the first list")).await;
    (api, internal, guard)
}

struct Guard {
    _stop: tokio_util::sync::DropGuard,
    _table: watch::Sender<atlas_gateway::ModelTable>,
}

async fn ask(internal: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    exchange(internal, request.as_bytes()).await
}
