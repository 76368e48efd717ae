//! The reader against a real HTTP server on loopback: ranges, versions, limits, redirects, tokens, the guard.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "http/server.rs"]
mod server;

use std::{sync::atomic::Ordering, time::Duration};

use atlas_crds::ModelSource;
use atlas_format::HeaderWriter;
use atlas_headers::{Ask, Guard, Header, HeaderError, HeaderReader, Limits, Options, Pass};
use server::{Behaviour, Server};

/// A header with a vocabulary of this many words; 100,000 of them are more than the first request asks for.
fn model(words: u32) -> Vec<u8> {
    let names: Vec<String> = (0..words).map(|word| format!("word-{word}")).collect();
    HeaderWriter::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 3)
        .number("llama.context_length", 2048)
        .number("llama.embedding_length", 256)
        .number("llama.attention.head_count", 4)
        .texts("tokenizer.ggml.tokens", names.iter().map(String::as_str))
        .tensor("token_embd.weight", &[256, 10], 12)
        .finish()
}

/// A file of sixty million bytes with this header.
fn file(words: u32) -> Vec<u8> {
    let mut bytes = model(words);
    bytes.resize(60_000_000, 7);
    bytes
}

fn options(server: &Server) -> Options {
    Options {
        hub: server.url(""),
        token: None,
        guard: Guard { allowed: ["127.0.0.5".parse().unwrap()].into() },
        limits: Limits { total: Duration::from_secs(10), ..Limits::default() },
    }
}

async fn read(options: Options, uri: &str) -> Result<Header, HeaderError> {
    HeaderReader::new(options).unwrap().read(&ask(uri)).await
}

fn ask(uri: &str) -> Ask {
    uri.parse::<ModelSource>().unwrap().into()
}

#[tokio::test]
async fn only_the_header_is_read_with_ranges_and_without() {
    for behaviour in [Behaviour::default(), Behaviour { ignores_ranges: true, ..Behaviour::default() }] {
        let server = Server::start(file(60_000), behaviour).await;
        let header = read(options(&server), &server.url("/m.gguf")).await.unwrap();
        assert_eq!((header.shape.layers.len(), header.shape.vocabulary), (3, 10));
        assert!(header.bytes_read < 4_000_000, "{} bytes", header.bytes_read);
        let sent = server.state.sent.load(Ordering::Relaxed);
        // Sockets hold some megabytes that nobody asked for.
        assert!(sent < 30_000_000, "the server sent {sent} bytes");
    }
}

#[tokio::test]
async fn what_was_read_is_kept_until_the_file_is_another() {
    let server = Server::start(file(10), Behaviour::default()).await;
    let always_ask = Limits { fresh_for: Duration::ZERO, ..options(&server).limits };
    let source = ask(&server.url("/m.gguf"));
    let reader = HeaderReader::new(options(&server)).unwrap();
    assert!(reader.read(&source).await.unwrap().bytes_read > 0);
    assert_eq!(reader.read(&source).await.unwrap().bytes_read, 0);
    assert_eq!(server.state.requests.load(Ordering::Relaxed), 1, "the second answer needed no look");

    let reader = HeaderReader::new(Options { limits: always_ask, ..options(&server) }).unwrap();
    assert!(reader.read(&source).await.unwrap().bytes_read > 0);
    assert_eq!(reader.read(&source).await.unwrap().bytes_read, 0);
    assert_eq!(server.state.not_modified.load(Ordering::Relaxed), 1);
    server.state.version.fetch_add(1, Ordering::Relaxed);
    assert!(reader.read(&source).await.unwrap().bytes_read > 0);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_never_mixed() {
    let behaviour = Behaviour { changes_every_time: true, ..Behaviour::default() };
    let server = Server::start(file(60_000), behaviour).await;
    let error = read(options(&server), &server.url("/m.gguf")).await.unwrap_err();
    assert!(matches!(error, HeaderError::Changed { .. }) && error.is_temporary(), "{error}");
}

#[tokio::test]
async fn limits_end_every_read() {
    let server = Server::start(file(60_000), Behaviour::default()).await;
    let small = Limits { bytes: 1 << 19, ..options(&server).limits };
    let error =
        read(Options { limits: small, ..options(&server) }, &server.url("/m.gguf")).await.unwrap_err();
    assert!(error.to_string().contains("goes on after 524288 bytes"), "{error}");

    let server = Server::start(file(10), Behaviour { hangs: true, ..Behaviour::default() }).await;
    let short = Limits { total: Duration::from_millis(200), ..options(&server).limits };
    let error =
        read(Options { limits: short, ..options(&server) }, &server.url("/m.gguf")).await.unwrap_err();
    assert!(matches!(error, HeaderError::Late { .. }) && error.is_temporary(), "{error}");

    let mut cut = model(60_000);
    cut.truncate(700_000);
    let server = Server::start(cut, Behaviour::default()).await;
    let error = read(options(&server), &server.url("/m.gguf")).await.unwrap_err();
    assert!(error.to_string().contains("ends within its header, after 700000 bytes"), "{error}");
    assert!(error.is_wrong_file());
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Server::start(b"<html>not a model</html>".to_vec(), Behaviour::default()).await;
    let error = read(options(&server), &server.url("/m.gguf")).await.unwrap_err();
    assert!(error.to_string().contains("not a GGUF file") && error.is_wrong_file(), "{error}");
    for (path, says) in [
        ("/status/404", "answers 404: check the source"),
        ("/status/403", "the server wants credentials"),
        ("/status/503", "answers 503"),
    ] {
        let error = read(options(&server), &server.url(path)).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let secret = format!("{}?signature=secret", server.url("/status/404"));
    assert!(!read(options(&server), &secret).await.unwrap_err().to_string().contains("secret"));
    drop(server);
    let gone = Server::start(Vec::new(), Behaviour::default()).await;
    let (gone_options, url) = (options(&gone), gone.url("/m.gguf"));
    drop(gone);
    let error = read(gone_options, &url).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached") && error.is_temporary(), "{error}");
}

#[tokio::test]
async fn addresses_that_are_not_public_are_not_connected_to() {
    let server = Server::start(file(10), Behaviour::default()).await;
    let closed = || Options { guard: Guard::default(), ..options(&server) };
    for url in [server.url("/m.gguf"), server.url("/m.gguf").replace("127.0.0.5", "localhost")] {
        let error = read(closed(), &url).await.unwrap_err();
        assert!(matches!(error, HeaderError::Forbidden { .. }), "{error}");
        assert!(error.to_string().contains("--header-allow-addresses"), "{error}");
    }
    assert_eq!(server.state.requests.load(Ordering::Relaxed), 0, "nothing was connected to");
    // A redirect does not get around it, whether it leads to an address or to a name.
    for target in ["/to-address", "/to-name"] {
        let error = read(options(&server), &server.url(target)).await.unwrap_err();
        assert!(matches!(error, HeaderError::Forbidden { .. }), "{error}");
    }
    let error = read(options(&server), &server.url("/round")).await.unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_no_further() {
    let server = Server::start(file(10), Behaviour { token: Some("secret"), ..Behaviour::default() }).await;
    let uri = "hf://acme/private/m.gguf";
    let error = read(options(&server), uri).await.unwrap_err();
    assert!(error.to_string().contains("private or gated repository needs a token"), "{error}");
    let with = |token: &str| Options { token: Some(token.into()), ..options(&server) };
    let error = read(with("wrong"), uri).await.unwrap_err();
    assert!(error.to_string().contains("the token may not read this repository"), "{error}");
    assert_eq!(read(with("secret"), uri).await.unwrap().shape.layers.len(), 3);
    // A model's own token goes before the reader's.
    let own = Ask { pass: Pass::Token("secret".into()), ..ask(uri) };
    let reader = HeaderReader::new(with("wrong")).unwrap();
    assert_eq!(reader.read(&own).await.unwrap().shape.layers.len(), 3);
    assert!(reader.read(&ask(uri)).await.is_err(), "what one token reads is nobody else's");
    // Elsewhere the token stays at home.
    let error = read(with("secret"), &server.url("/acme/private/resolve/main/m.gguf")).await.unwrap_err();
    assert!(error.to_string().contains("wants credentials"), "{error}");
}

#[tokio::test]
async fn safetensors_are_planned_from_their_header_and_the_config_beside_it() {
    let header = br#"{"w":{"dtype":"BF16","shape":[1000000],"data_offsets":[0,2000000]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(2_000_000, 0);
    let server = Server::start(bytes, Behaviour::default()).await;
    let header = read(options(&server), &server.url("/model.safetensors")).await.unwrap();
    assert_eq!((header.shape.weight_bytes(), header.shape.layers.len()), (2_000_000, 2));
    let index = br#"{"metadata":{"total_size":5000000},"weight_map":{"w":"a.safetensors"}}"#.to_vec();
    let server = Server::start(index, Behaviour::default()).await;
    let header = read(options(&server), &server.url("/model.safetensors.index.json")).await.unwrap();
    assert_eq!(header.shape.weight_bytes(), 5_000_000);
    for folder in
        [server.url("/m/"), "hf://acme/m".to_owned(), server.url("/m/model-00001-of-00002.safetensors")]
    {
        let header = read(options(&server), &folder).await.unwrap();
        assert_eq!((header.shape.weight_bytes(), header.url.contains("/m")), (5_000_000, true), "{folder}");
    }
}

#[tokio::test]
async fn a_folder_without_an_index_is_planned_from_its_only_file() {
    let header = br#"{"w":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    let server = Server::start(bytes, Behaviour { no_index: true, ..Behaviour::default() }).await;
    let always_ask = Limits { fresh_for: Duration::ZERO, ..options(&server).limits };
    let reader = HeaderReader::new(Options { limits: always_ask, ..options(&server) }).unwrap();
    let source = ask("hf://acme/m@v1");
    assert_eq!(reader.read(&source).await.unwrap().shape.weight_bytes(), 8);
    // What is known is confirmed by the file that it came from.
    assert_eq!(reader.read(&source).await.unwrap().bytes_read, 0);
    let asked = server.state.not_modified.load(Ordering::Relaxed);
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn other_files_of_a_repository_are_listed() {
    let server = Server::start(Vec::new(), Behaviour::default()).await;
    let reader = HeaderReader::new(options(&server)).unwrap();
    let files = reader.list_other_files(&ask("hf://acme/listed/a.Q4_K_M.gguf")).await.unwrap();
    assert_eq!(
        files.iter().map(|file| (file.name.as_str(), file.bytes)).collect::<Vec<_>>(),
        [("a.Q2_K.gguf", 20)]
    );
    assert!(reader.list_other_files(&ask("https://h/a.gguf")).await.unwrap().is_empty());
}
