//! Who may ask, how much, and who comes next.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use atlas_gateway::{Keys, ModelConfig};
use http::StatusCode;
use support::{Answer, Engine, Gateway, Script, get, model, table, whole};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

/// One tier behind keys.
async fn keyed(script: Script, entries: &[(&str, &str)]) -> (Engine, Gateway) {
    let engine = Engine::start(script).await;
    let mut config = model(&["primary"]);
    config.api_keys_secret = Some("keys".into());
    let data: Vec<(String, &[u8])> =
        entries.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes())).collect();
    let keys = Keys::read(data.iter().map(|(name, value)| (name, *value)));
    let mut view = table(config, vec![engine.endpoint("primary")]);
    view.keys = [("keys".to_owned(), Arc::new(keys))].into();
    let gateway = Gateway::start(view).await;
    gateway.active(Some("primary")).await;
    (engine, gateway)
}

async fn ask(gateway: &Gateway, authorization: &str) -> Answer {
    gateway.ask_with(&[("authorization", authorization)], r#"{"model": "code"}"#).await
}

#[tokio::test]
async fn only_holders_of_a_key_are_answered_and_the_engine_never_sees_it() {
    let (engine, gateway) = keyed(Script::Answer("yes"), &[("alice", "sk-alice")]).await;
    for authorization in ["Bearer wrong", "Bearer ", "Basic sk-alice", "sk-alice"] {
        let answer = ask(&gateway, authorization).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization}");
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    let answer = gateway.ask().await;
    assert!(answer.text.contains("Authorization: Bearer KEY"), "{}", answer.text);
    assert!(engine.seen.lock().unwrap().is_empty());
    for header in [
        ("authorization", "Bearer sk-alice"),
        ("authorization", "bearer sk-alice"),
        ("x-api-key", "sk-alice"),
    ] {
        assert_eq!(gateway.ask_with(&[header], "{}").await.json()["text"], "yes");
    }
    let seen = engine.seen.lock().unwrap().clone();
    assert!(!seen.join("").contains("sk-alice"));
    assert!(seen.iter().all(|head| head.contains("x-atlas-caller: alice")), "{seen:?}");
    let list = get(gateway.api, "/v1/models").await.1;
    assert!(!String::from_utf8_lossy(&list).contains("code"), "who may not use it does not see it");
}

#[tokio::test]
async fn without_a_key_no_body_is_waited_for() {
    let (_engine, gateway) = keyed(Script::Answer("yes"), &[("alice", "sk-alice")]).await;
    let mut stream = TcpStream::connect(gateway.api).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: code\r\ncontent-length: 60000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut status));
    read.await.expect("the answer does not wait for the body").unwrap();
    assert_eq!(&status, b"HTTP/1.1 401");
}

#[tokio::test]
async fn an_error_names_no_model_that_the_caller_may_not_use() {
    let (engine, gateway) = keyed(Script::Answer("yes"), &[("alice", "sk-alice")]).await;
    let mut view = gateway.table.borrow().clone();
    let open = ModelConfig { name: "open".into(), aliases: Vec::new(), ..model(&["primary"]) };
    view.models.insert("open".into(), Arc::new(open));
    gateway.table.send_replace(view);
    let told = async |headers: &[(&str, &str)]| {
        let answer = gateway.ask_with(headers, r#"{"model": "nope"}"#).await;
        answer.json()["error"]["message"].as_str().unwrap().to_owned()
    };
    let wait = async || {
        while !told(&[]).await.ends_with("available here: open") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait()).await.expect("only what is open is named");
    let all = told(&[("authorization", "Bearer sk-alice")]).await;
    assert!(all.ends_with("available here: code, gpt-patch, open"), "{all}");
    let one = get(gateway.api, "/v1/models/nope").await.1;
    assert!(!String::from_utf8_lossy(&one).contains("gpt-patch"), "{one:?}");
    assert!(engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_key_is_held_to_its_limits() {
    let go = Arc::new(Notify::new());
    let entries = [("alice", "sk-a\nmax-concurrent: 1"), ("bob", "sk-b")];
    let (_engine, gateway) = keyed(Script::SlowStream(Arc::clone(&go)), &entries).await;
    let first = gateway.open(&[("authorization", "Bearer sk-a")], r#"{"model": "code"}"#).await;
    let refused = ask(&gateway, "Bearer sk-a").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.headers["retry-after"], "1");
    let other = gateway.open(&[("authorization", "Bearer sk-b")], r#"{"model": "code"}"#).await;
    go.notify_one();
    assert!(whole(first).await.text.ends_with("data: two\n\n"));
    go.notify_one();
    assert!(whole(other).await.text.ends_with("data: two\n\n"));
    let free_again = async {
        go.notify_one();
        while ask(&gateway, "Bearer sk-a").await.status != StatusCode::OK {}
    };
    tokio::time::timeout(Duration::from_secs(10), free_again).await.expect("the limit ends with the answer");
    let page = get(gateway.internal, "/metrics").await.1;
    let limited = r#"atlas_gateway_limited_requests_total{limit="max-concurrent",model="code"}"#;
    assert!(String::from_utf8_lossy(&page).contains(limited));
}

#[tokio::test]
async fn an_engine_gets_what_it_can_compute_and_one_too_many_is_told_at_once() {
    let go = Arc::new(Notify::new());
    let engine = Engine::start(Script::OneAtATime(Arc::clone(&go))).await;
    let gateway = Gateway::start(table(model(&["primary"]), vec![engine.endpoint("primary")])).await;
    gateway.active(Some("primary")).await;
    // The engine computes one and has another at hand; `queue: 1` lets a third one wait here.
    let (mut answered, mut waiting) = (0, tokio::task::JoinSet::new());
    for _ in 0..3 {
        let api = gateway.api;
        waiting.spawn(async move { support::ask_at(api, r#"{"model": "code"}"#).await });
    }
    let settled = async {
        while gateway.status().await["models"][0]["requests"]["queued"] != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("the third one waits");
    let refused = gateway.ask().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(refused.headers.contains_key("retry-after"));
    while answered < 3 {
        go.notify_one();
        if let Some(answer) = waiting.join_next().await {
            assert_eq!(answer.unwrap().status, StatusCode::OK);
            answered += 1;
        }
    }
    assert_eq!(engine.seen.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_page_of_a_listed_origin_may_ask_with_a_key_and_read_what_went_wrong() {
    let (engine, gateway) = keyed(Script::Answer("yes"), &[("alice", "sk-alice")]).await;
    let mut view = gateway.table.borrow().clone();
    let config = ModelConfig { cors_origins: vec!["https://chat".into()], ..(*view.models["code"]).clone() };
    let private = ModelConfig { name: "private".into(), aliases: Vec::new(), ..model(&["primary"]) };
    view.models = [config, private].map(|model| (model.name.clone(), Arc::new(model))).into();
    gateway.table.send_replace(view);
    let ask_leave = async |origin: &str| {
        let mut stream = TcpStream::connect(gateway.api).await.unwrap();
        let head = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: code\r\norigin: {origin}\r\nconnection: close\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-y\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let listed = async { while !ask_leave("https://chat").await.starts_with("HTTP/1.1 204 ") {} };
    tokio::time::timeout(Duration::from_secs(5), listed).await.expect("the list is read");
    let leave = ask_leave("https://chat").await;
    for field in [
        "access-control-allow-origin: https://chat\r\n",
        "access-control-allow-methods: GET, POST\r\n",
        "access-control-allow-headers: authorization,x-y\r\n",
        "vary: origin\r\n",
    ] {
        assert!(leave.contains(field), "{field} {leave}");
    }
    let other = ask_leave("https://other").await;
    assert!(other.starts_with("HTTP/1.1 401 ") && !other.contains("allow-origin"), "{other}");
    assert!(engine.seen.lock().unwrap().is_empty(), "engines are not asked");
    let page = |key: &'static str| [("origin", "https://chat"), ("authorization", key)];
    for (key, status) in [("Bearer sk-alice", 200), ("Bearer wrong", 401)] {
        let answer = gateway.ask_with(&page(key), r#"{"model": "code"}"#).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://chat", "{status}");
        assert!(answer.headers["access-control-expose-headers"].to_str().unwrap().contains("x-atlas-tier"));
    }
    let answer = gateway.ask_with(&page("Bearer sk-alice"), r#"{"model": "private"}"#).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"), "its list is another one");
}

#[tokio::test]
async fn the_same_prompt_goes_to_the_same_replica() {
    let engines = [Engine::start(Script::Answer("a")).await, Engine::start(Script::Answer("b")).await];
    let endpoints = engines.iter().map(|engine| engine.endpoint("primary")).collect();
    let gateway = Gateway::start(table(model(&["primary"]), endpoints)).await;
    gateway.active(Some("primary")).await;
    let both = async {
        let healthy = |status: &serde_json::Value, at: usize| {
            status["models"][0]["endpoints"][at]["health"] == "Healthy"
        };
        loop {
            let status = gateway.status().await;
            if healthy(&status, 0) && healthy(&status, 1) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("both are probed");
    let mut texts = Vec::new();
    for prompt in 0..16 {
        let body = format!(r#"{{"model": "code", "messages": [{{"role": "user", "content": "{prompt}"}}]}}"#);
        let first = gateway.ask_with(&[], &body).await.json()["text"].clone();
        assert_eq!(gateway.ask_with(&[], &body).await.json()["text"], first, "prompt {prompt}");
        texts.push(first);
    }
    assert!(texts.iter().any(|text| *text != texts[0]), "and prompts spread over the replicas");
}
