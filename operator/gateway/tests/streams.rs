//! What a client of a stream sees when engines break, hang and load: the rest of its answer, or an honest end.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use atlas_gateway::Timing;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::Value;
use support::{
    Engine, Gateway, Script, get, model, table,
    tokens::{Break, Tokens, joined},
    whole,
};

const STREAM: &str = r#"{"model": "code", "stream": true}"#;
const TOKENS: Tokens = Tokens { model_file: "m", total: 10, per_connection: 100, how: Break::Cut };

/// Replicas of one tier.
async fn replicas(scripts: [Script; 2]) -> ([Engine; 2], Gateway) {
    let [a, b] = scripts;
    let engines = [Engine::start(a).await, Engine::start(b).await];
    let endpoints = engines.iter().map(|engine| engine.endpoint("primary")).collect();
    let gateway = Gateway::start(table(model(&["primary"]), endpoints)).await;
    all_healthy(&gateway, 2).await;
    (engines, gateway)
}

async fn all_healthy(gateway: &Gateway, count: usize) {
    let healthy = async {
        loop {
            let status = gateway.status().await;
            let endpoints = status["models"][0]["endpoints"].as_array().unwrap().clone();
            if endpoints.iter().filter(|endpoint| endpoint["health"] == "Healthy").count() == count {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), healthy).await.expect("every engine is probed");
}

#[tokio::test]
async fn a_stream_goes_on_however_often_it_breaks_and_the_client_sees_one_answer() {
    for how in [Break::Cut, Break::Error] {
        let tokens = Tokens { per_connection: 3, how, ..TOKENS };
        let (engines, gateway) = replicas([Script::Tokens(tokens), Script::Tokens(tokens)]).await;
        let answer = gateway.ask_with(&[], STREAM).await;
        assert_eq!(joined(&answer.text), tokens.text(), "{}", answer.text);
        assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "primary"));
        assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
        assert_eq!(answer.text.matches(r#""finish_reason":"stop""#).count(), 1, "{}", answer.text);
        for word in ["token_ids", "seed", "internal_error"] {
            assert!(!answer.text.contains(word), "{word}: {}", answer.text);
        }
        let seen: usize = engines.iter().map(|engine| engine.seen.lock().unwrap().len()).sum();
        assert_eq!(seen, 4, "three breaks");
        let page = get(gateway.internal, "/metrics").await.1;
        let resumed = r#"atlas_gateway_resumes_total{model="code",outcome="resumed"} 3"#;
        assert!(String::from_utf8_lossy(&page).contains(resumed), "{}", String::from_utf8_lossy(&page));
    }
}

#[tokio::test]
async fn a_stream_of_messages_goes_on_and_no_event_of_it_comes_twice() {
    for how in [Break::Cut, Break::Error] {
        let tokens = Tokens { per_connection: 3, how, ..TOKENS };
        let (engines, gateway) = replicas([Script::Tokens(tokens), Script::Tokens(tokens)]).await;
        let answer = gateway.ask_path("/v1/messages", STREAM).await;
        let data = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = data.map(|text| serde_json::from_str(text).unwrap()).collect();
        let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        assert_eq!(text, tokens.text(), "{}", answer.text);
        assert_eq!(
            (&events[0]["type"], &events[events.len() - 1]["type"]),
            (&"message_start".into(), &"message_stop".into())
        );
        assert_eq!(events.len(), 12, "{}", answer.text);
        assert!(!answer.text.contains("atlas-resume") && !answer.text.contains("error"), "{}", answer.text);
        let seen: usize = engines.iter().map(|engine| engine.seen.lock().unwrap().len()).sum();
        assert_eq!(seen, 4, "three breaks");
    }
    // One whose engine is lost for good ends in an error of its own form.
    let engine = Engine::start(Script::BreakOnceWithIds).await;
    let gateway = Gateway::start(table(model(&["primary"]), vec![engine.endpoint("primary")])).await;
    gateway.active(Some("primary")).await;
    let text = gateway.ask_path("/v1/messages", STREAM).await.text;
    let (seen, error) = text.rsplit_once("event: error\n").expect("it ends in an error");
    assert!(error.contains("stream_interrupted") && seen.matches("text_delta").count() == 3, "{text}");
}

#[tokio::test]
async fn a_whole_answer_that_lacks_the_mark_of_its_end_gets_it() {
    let tokens = Tokens { how: Break::Unmarked, ..TOKENS };
    let (engines, gateway) = replicas([Script::Tokens(tokens), Script::Tokens(tokens)]).await;
    let answer = gateway.ask_with(&[], STREAM).await;
    assert_eq!(joined(&answer.text), tokens.text(), "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n") && !answer.text.contains("error"), "{}", answer.text);
    let seen: usize = engines.iter().map(|engine| engine.seen.lock().unwrap().len()).sum();
    assert_eq!(seen, 1, "nobody is asked for more");
    // Of two choices one is missing.
    let answer = gateway.ask_with(&[], r#"{"model": "code", "stream": true, "n": 2, "max_tokens": 1}"#).await;
    assert!(answer.text.contains("stream_interrupted"), "{}", answer.text);
}

#[tokio::test]
async fn a_stream_of_another_model_does_not_go_on() {
    let primary = Engine::start(Script::Tokens(Tokens { per_connection: 3, ..TOKENS })).await;
    let fallback = Engine::start(Script::Tokens(Tokens { model_file: "other", ..TOKENS })).await;
    let endpoints = vec![primary.endpoint("primary"), fallback.endpoint("fallback")];
    let mut config = model(&["primary", "fallback"]);
    config.failback_after = Duration::from_secs(60);
    let gateway = Gateway::start(table(config, endpoints)).await;
    all_healthy(&gateway, 2).await;
    gateway.active(Some("primary")).await;
    primary.now(Script::Tokens(Tokens { total: 3, ..TOKENS }));
    assert_eq!(joined(&gateway.ask_with(&[], STREAM).await.text), "t0 t1 t2 ");
    primary.now(Script::BreakOnceWithIds);
    let answer = gateway.ask_with(&[], STREAM).await;
    assert!(answer.text.contains("stream_interrupted"), "{}", answer.text);
    assert!(fallback.seen.lock().unwrap().is_empty());
}

/// A stream of three tokens breaks, and only the other tier's model is left.
async fn broken_across(headers: &[(&str, &str)], by_spec: bool) -> (support::Answer, String, Gateway) {
    let primary = Engine::start(Script::Tokens(TOKENS)).await;
    let fallback = Engine::start(Script::Tokens(Tokens { model_file: "other", ..TOKENS })).await;
    let endpoints = vec![primary.endpoint("primary"), fallback.endpoint("fallback")];
    let mut config = model(&["primary", "fallback"]);
    config.failback_after = Duration::from_secs(60);
    config.across_models = by_spec;
    let gateway = Gateway::start(table(config, endpoints)).await;
    all_healthy(&gateway, 2).await;
    gateway.active(Some("primary")).await;
    primary.now(Script::BreakOnceWithIds);
    let body = r#"{"model": "code", "stream": true, "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}"#;
    let answer = gateway.ask_with(headers, body).await;
    let seen = fallback.seen.lock().unwrap().concat();
    (answer, seen, gateway)
}

#[tokio::test]
async fn a_stream_goes_on_at_another_model_where_that_was_asked_for() {
    let asked: &[(&str, &str)] = &[("x-atlas-resume-across-models", "true")];
    for (headers, by_spec) in [(asked, false), (&[][..], true)] {
        let (answer, seen, gateway) = broken_across(headers, by_spec).await;
        assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "primary"));
        // What the second model says is its own; here it begins to count anew behind what it was given.
        assert_eq!(joined(&answer.text), format!("t0 t1 t2 {}", TOKENS.text()), "{}", answer.text);
        let told = ": x-atlas-tier: fallback\n: x-atlas-model: fallback-file\n\n";
        assert_eq!(answer.text.matches(told).count(), 1, "{}", answer.text);
        assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
        let sent: serde_json::Value = serde_json::from_str(seen.split_once("\r\n\r\n").unwrap().1).unwrap();
        let messages = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "t0 t1 t2"}]);
        assert_eq!((&sent["messages"], &sent["max_tokens"]), (&messages, &17.into()), "{sent}");
        assert_eq!(sent["continue_final_message"], true);
        let page = get(gateway.internal, "/metrics").await.1;
        let crossed = r#"atlas_gateway_resumes_total{model="code",outcome="crossed"} 1"#;
        assert!(String::from_utf8_lossy(&page).contains(crossed), "{}", String::from_utf8_lossy(&page));
    }
}

#[tokio::test]
async fn a_client_may_refuse_another_model_where_the_specification_allows_it() {
    let (answer, seen, _gateway) = broken_across(&[("x-atlas-resume-across-models", "false")], true).await;
    assert!(answer.text.contains("stream_interrupted"), "{}", answer.text);
    assert!(seen.is_empty(), "{seen}");
}

#[tokio::test]
async fn how_urgent_a_request_is_reaches_engines_only_where_the_model_allows_it() {
    for (allowed, expected) in
        [(false, r#"{"model":"code"}"#), (true, r#"{"model": "code", "priority": -9}"#)]
    {
        let engine = Engine::start(Script::Answer("yes")).await;
        let mut config = model(&["primary"]);
        config.client_priority = allowed;
        let gateway = Gateway::start(table(config, vec![engine.endpoint("primary")])).await;
        gateway.active(Some("primary")).await;
        let answer = gateway.ask_with(&[], r#"{"model": "code", "priority": -9}"#).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let seen = engine.seen.lock().unwrap().concat();
        assert!(seen.ends_with(expected), "{seen}");
    }
}

#[tokio::test]
async fn an_engine_without_the_contract_serves_streams_all_the_same() {
    let (engines, gateway) = replicas([Script::BreakMidStream, Script::BreakMidStream]).await;
    let answer = gateway.ask_with(&[], STREAM).await;
    assert!(answer.text.starts_with("data: one\n\n"), "{}", answer.text);
    assert!(answer.text.contains("stream_interrupted"), "{}", answer.text);
    let seen = engines.iter().map(|engine| engine.seen.lock().unwrap().join("")).collect::<String>();
    assert!(seen.ends_with(STREAM), "the body is the client's own: {seen}");
}

#[tokio::test]
async fn a_client_that_sends_fields_of_the_contract_meets_the_public_port() {
    let (engines, gateway) = replicas([Script::Answer("public"), Script::Answer("public")]).await;
    let body = r#"{"model": "code", "stream": true, "resume_tokens": [1]}"#;
    assert_eq!(gateway.ask_with(&[], body).await.json()["text"], "public");
    let seen = engines.iter().map(|engine| engine.seen.lock().unwrap().join("")).collect::<String>();
    assert!(seen.ends_with(body), "{seen}");
}

fn impatient() -> Timing {
    Timing {
        first_byte_hold: Duration::from_millis(100),
        ping_interval: Duration::from_millis(20),
        ..support::timing()
    }
}

#[tokio::test]
async fn a_stream_that_waits_is_kept_awake_and_then_answered() {
    let engine = Engine::start(Script::Loading).await;
    let view = table(model(&["primary"]), vec![engine.endpoint("primary")]);
    let gateway = Gateway::start_with(view, impatient()).await;
    let mut response = gateway.open(&[("x-request-id", "r1")], STREAM).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-request-id"], "r1");
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, ": ping\n\n");
    engine.now(Script::Tokens(TOKENS));
    let answer = whole(response).await;
    assert_eq!(joined(&answer.text), TOKENS.text(), "{}", answer.text);
    assert!(answer.text.contains(": x-atlas-tier: primary\n\n"), "{}", answer.text);
}

#[tokio::test]
async fn a_stream_that_waits_in_vain_ends_in_an_error_event() {
    let engine = Engine::start(Script::Loading).await;
    let view = table(model(&["primary"]), vec![engine.endpoint("primary")]);
    let gateway = Gateway::start_with(view, Timing { hold: Duration::from_millis(300), ..impatient() }).await;
    let answer = gateway.ask_with(&[], STREAM).await;
    assert_eq!(answer.status, StatusCode::OK);
    let last = answer.text.trim_end().rsplit("\n\n").next().unwrap().to_owned();
    let error: serde_json::Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert!(["no_tier_available", "engine_error"].contains(&error["error"]["code"].as_str().unwrap()));
}

#[tokio::test]
async fn a_client_that_does_not_read_gives_its_engine_back() {
    let written = Arc::new(Mutex::new(0));
    let engine = Engine::start(Script::Flood(Arc::clone(&written))).await;
    let view = table(model(&["primary"]), vec![engine.endpoint("primary")]);
    let timing = Timing { write_timeout: Duration::from_millis(200), ..support::timing() };
    let gateway = Gateway::start_with(view, timing).await;
    gateway.active(Some("primary")).await;
    let _unread = gateway.open(&[], r#"{"model": "code"}"#).await;
    let ended = async {
        while engine.seen.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the engine's connection ends");
    assert!(*written.lock().unwrap() > 0);
}

#[tokio::test]
async fn what_the_fallback_cannot_take_is_refused_with_the_reason() {
    let primary = Engine::start(Script::Answer("from primary")).await;
    let fallback = Engine::start(Script::TooLong).await;
    let endpoints = vec![primary.endpoint("primary"), fallback.endpoint("fallback")];
    let mut config = model(&["primary", "fallback"]);
    config.tiers[0].context_tokens = 8_192;
    config.failback_after = Duration::from_secs(60);
    let gateway = Gateway::start(table(config, endpoints)).await;
    all_healthy(&gateway, 2).await;
    let address = primary.kill().await;
    gateway.active(Some("fallback")).await;
    let refused = async |body: &str| {
        let answer = gateway.ask_with(&[], body).await;
        assert_eq!(answer.json()["error"]["code"], "tier_cannot_serve", "{}", answer.text);
        assert!(answer.text.contains("4096") && answer.text.contains("8192"), "{}", answer.text);
        assert!(answer.headers.contains_key("retry-after"));
    };
    refused(r#"{"model": "code", "max_tokens": 5000}"#).await;
    assert!(fallback.seen.lock().unwrap().is_empty(), "it was known before anything was sent");
    // Here only the engine can count, and says so.
    refused(r#"{"model": "code"}"#).await;
    assert_eq!(fallback.seen.lock().unwrap().len(), 1);
    // What no tier could take is the engine's to explain.
    let answer = gateway.ask_with(&[], r#"{"model": "code", "max_tokens": 9000}"#).await;
    assert_eq!((answer.status, answer.tier()), (StatusCode::BAD_REQUEST, "fallback"), "{}", answer.text);

    // A better tier that is well again and waits for its failback takes what the fallback cannot.
    let _primary = Engine::come_back(address, Script::Answer("from primary")).await;
    all_healthy(&gateway, 2).await;
    let answer = gateway.ask_with(&[], r#"{"model": "code", "max_tokens": 5000}"#).await;
    assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "primary"), "{}", answer.text);
}
