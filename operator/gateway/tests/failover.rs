//! What a client of the gateway sees while engines come, go, hang and break.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use atlas_gateway::{ModelConfig, ModelTable};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::{Engine, Gateway, Script, get, model, table, whole};
use tokio::sync::Notify;

/// Two tiers, the better one serving.
async fn two_tiers() -> (Engine, Engine, Gateway) {
    let primary = Engine::start(Script::Answer("from primary")).await;
    let fallback = Engine::start(Script::Answer("from fallback")).await;
    let endpoints = vec![primary.endpoint("primary"), fallback.endpoint("fallback")];
    let gateway = Gateway::start(table(model(&["primary", "fallback"]), endpoints)).await;
    gateway.active(Some("primary")).await;
    let healthy = async {
        while gateway.status().await["models"][0]["endpoints"][1]["health"] != "Healthy" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), healthy).await.expect("the fallback is probed");
    (primary, fallback, gateway)
}

#[tokio::test]
async fn answers_say_what_served_them() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let answer =
        gateway.ask_with(&[("x-request-id", "r1"), ("traceparent", "t1")], r#"{"model":"gpt-patch"}"#).await;
    assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "primary"));
    assert_eq!(answer.headers["x-atlas-model"], "primary-file");
    assert_eq!(answer.headers["x-request-id"], "r1");
    let seen = primary.seen.lock().unwrap().join("");
    assert!(seen.contains("traceparent: t1") && seen.ends_with(r#"{"model":"gpt-patch"}"#), "{seen}");
}

#[tokio::test]
async fn every_fault_before_the_first_byte_is_answered_by_the_next_tier() {
    for fault in [
        Script::Reset,
        Script::Freeze,
        Script::Hang,
        Script::FreezeAfterHeaders,
        Script::BreakMidBody,
        Script::Status(503),
        Script::Status(500),
        Script::Status(429),
    ] {
        let (primary, _fallback, gateway) = two_tiers().await;
        primary.now(fault);
        let answer = gateway.ask().await;
        assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "fallback"), "{}", answer.text);
        assert_eq!(answer.json(), json!({"text": "from fallback"}));
        assert_eq!(gateway.status().await["models"][0]["requests"]["retried"], 1);
    }
}

#[tokio::test]
async fn a_killed_engine_loses_nothing_and_gets_its_traffic_back() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let address = primary.kill().await;
    let answer = gateway.ask().await;
    assert_eq!(answer.tier(), "fallback", "{}", answer.text);
    gateway.active(Some("fallback")).await;
    let switches = gateway.status().await["models"][0]["switches"].clone();
    assert_eq!((&switches[0]["from"], &switches[0]["to"]), (&json!("primary"), &json!("fallback")));
    assert!(["ConnectionRefused", "ConnectionReset"].contains(&switches[0]["cause"].as_str().unwrap()));

    let _primary = Engine::come_back(address, Script::Answer("back")).await;
    gateway.active(Some("primary")).await;
    assert_eq!(gateway.ask().await.json(), json!({"text": "back"}));
    let back = gateway.status().await["models"][0]["switches"][1].clone();
    assert_eq!((&back["cause"], &back["to"]), (&json!("FailedBack"), &json!("primary")));
    assert!(back["millis"].as_u64().unwrap() >= 300, "{back}");
    let page = get(gateway.internal, "/metrics").await.1;
    let active = r#"atlas_gateway_active_tier{model="code",tier="primary"} 1"#;
    assert!(String::from_utf8_lossy(&page).contains(active));
}

#[tokio::test]
async fn readiness_that_is_withdrawn_moves_traffic_at_once() {
    let (primary, fallback, gateway) = two_tiers().await;
    let mut unready = primary.endpoint("primary");
    unready.ready = false;
    gateway
        .table
        .send_replace(table(model(&["primary", "fallback"]), vec![unready, fallback.endpoint("fallback")]));
    gateway.active(Some("fallback")).await;
    gateway.table.send_replace(table(model(&["primary", "fallback"]), vec![fallback.endpoint("fallback")]));
    assert_eq!(gateway.ask().await.tier(), "fallback");
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_event() {
    let (primary, _fallback, gateway) = two_tiers().await;
    primary.now(Script::BreakMidStream);
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.tier()), (StatusCode::OK, "primary"));
    let events: Vec<&str> = answer.text.split_terminator("\n\n").collect();
    assert_eq!((events.len(), events[0]), (2, "data: one"), "{}", answer.text);
    let error: serde_json::Value = serde_json::from_str(events[1].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "stream_interrupted");
}

#[tokio::test]
async fn clients_of_messages_read_errors_in_their_own_form() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let unknown = gateway.ask_path("/v1/messages", r#"{"model": "gpt-4"}"#).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let error = unknown.json();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("not_found_error")));
    assert!(error["error"]["message"].to_string().contains("code, gpt-patch"), "{error}");
    primary.now(Script::BreakMidStream);
    let broken = gateway.ask_path("/v1/messages", r#"{"model": "code", "stream": true}"#).await;
    let event = broken.text.strip_prefix("data: one\n\nevent: error\ndata: ").expect("an error event");
    let error: serde_json::Value = serde_json::from_str(event).unwrap();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert_eq!(error["error"]["code"], "stream_interrupted");
}

#[tokio::test]
async fn a_stream_passes_event_by_event() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let go = Arc::new(Notify::new());
    primary.now(Script::SlowStream(Arc::clone(&go)));
    let mut body = gateway.open(&[], r#"{"model": "code", "stream": true}"#).await.into_body();
    let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
    assert_eq!(next().await, Some(Bytes::from("data: one\n\n")));
    // Only now may the engine send the second one.
    go.notify_one();
    assert_eq!(next().await, Some(Bytes::from("data: two\n\n")));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_client_that_wants_no_fallback_gets_none() {
    let (primary, _fallback, gateway) = two_tiers().await;
    assert_eq!(gateway.ask_with(&[("x-atlas-no-fallback", "true")], "{}").await.tier(), "primary");
    primary.kill().await;
    gateway.active(Some("fallback")).await;
    for header in [("x-atlas-no-fallback", "true"), ("x-atlas-require-tier", "primary")] {
        let answer = gateway.ask_with(&[header], "{}").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["error"]["code"], "tier_not_active");
        assert!(answer.headers.contains_key("retry-after"));
    }
    let answer = gateway.ask_with(&[("x-atlas-require-tier", "nonsense")], "{}").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_request_is_held_while_the_only_tier_loads() {
    let engine = Engine::start(Script::Loading).await;
    let gateway = Gateway::start(table(model(&["primary"]), vec![engine.endpoint("primary")])).await;
    let held = gateway.ask();
    let becomes_ready = async {
        // The gateway has asked or probed the engine by now and knows that it loads.
        while gateway.status().await["models"][0]["endpoints"][0]["health"] != "Unhealthy" {
            tokio::task::yield_now().await;
        }
        engine.now(Script::Answer("at last"));
    };
    let (answer, ()) = tokio::join!(held, becomes_ready);
    assert_eq!(answer.json(), json!({"text": "at last"}));
}

#[tokio::test]
async fn a_request_that_nothing_can_serve_says_why() {
    let engine = Engine::start(Script::Loading).await;
    let endpoints = vec![engine.endpoint("primary")];
    let gateway = Gateway::start(table(model(&["primary", "fallback"]), endpoints)).await;
    let answer = gateway.ask_with(&[("x-atlas-timeout-ms", "300")], "{}").await;
    // An engine that was asked before its first probe has answered itself; both are the same to a client.
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    gateway.active(None).await;
    let answer = gateway.ask_with(&[("x-atlas-timeout-ms", "100")], "{}").await;
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("EngineNotReady") && message.contains("fallback: no pod"), "{message}");
    assert!(message.contains("fallback was told about"), "{message}");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends_in_504() {
    let (primary, _fallback, gateway) = two_tiers().await;
    primary.now(Script::Freeze);
    let answer = gateway.ask_with(&[("x-atlas-timeout-ms", "50")], "{}").await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].clone()),
        (StatusCode::GATEWAY_TIMEOUT, json!("timeout"))
    );
}

#[tokio::test]
async fn models_are_listed_and_found_by_host_or_by_id() {
    let (_primary, _fallback, gateway) = two_tiers().await;
    let list: serde_json::Value = serde_json::from_slice(&get(gateway.api, "/v1/models").await.1).unwrap();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, ["code", "gpt-patch"]);
    assert_eq!(get(gateway.api, "/v1/models/gpt-patch").await.0, StatusCode::OK);
    assert_eq!(get(gateway.api, "/v1/models/gpt-4").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(gateway.api, "/metrics").await.0, StatusCode::NOT_FOUND);
    let check = async |host: &str, body: &str, status: StatusCode| {
        let answer = gateway.ask_with(&[("host", host)], body).await;
        assert_eq!(answer.status, status, "{host} {body}: {}", answer.text);
        answer
    };
    check("code.atlas.svc.cluster.local:8080", "{}", StatusCode::OK).await;
    check("localhost", "{}", StatusCode::OK).await;
    let unknown = check("code.atlas", r#"{"model": "gpt-4"}"#, StatusCode::NOT_FOUND).await;
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    assert!(unknown.text.contains("code, gpt-patch"), "{}", unknown.text);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let answer = gateway.ask_with(&[], &"x".repeat((1 << 16) + 1)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.text.contains("65536"), "{}", answer.text);
    assert!(primary.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_closed_model_says_how_it_is_opened() {
    let (primary, _fallback, gateway) = two_tiers().await;
    let endpoints = vec![primary.endpoint("primary")];
    let mut suspended = model(&["primary"]);
    suspended.suspended = true;
    gateway.table.send_replace(table(suspended, endpoints.clone()));
    wait_for_code(&gateway, "model_suspended").await;
    let mut keyed = model(&["primary"]);
    keyed.api_keys_secret = Some("keys".into());
    gateway.table.send_replace(table(keyed, endpoints));
    wait_for_code(&gateway, "keys_not_read").await;
}

async fn wait_for_code(gateway: &Gateway, code: &str) {
    let told = async { while gateway.ask().await.json()["error"]["code"] != code {} };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect(code);
}

#[tokio::test]
async fn a_stopping_gateway_finishes_what_runs() {
    let engine = Engine::start(Script::Answer("x")).await;
    let go = Arc::new(Notify::new());
    let gateway = Gateway::start(table(model(&["primary"]), vec![engine.endpoint("primary")])).await;
    gateway.active(Some("primary")).await;
    assert_eq!(get(gateway.internal, "/readyz").await.0, StatusCode::OK);
    engine.now(Script::SlowStream(Arc::clone(&go)));
    let response = gateway.open(&[], "{}").await;
    gateway.stop();
    let unready = async { while get(gateway.internal, "/readyz").await.0 == StatusCode::OK {} };
    tokio::time::timeout(Duration::from_secs(5), unready).await.expect("unready at once");
    go.notify_one();
    assert_eq!(whole(response).await.text, "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn a_request_that_breaks_every_engine_is_not_sent_on_and_on() {
    let (primary, fallback, gateway) = two_tiers().await;
    primary.now(Script::Reset);
    fallback.now(Script::Reset);
    let answer = gateway.ask().await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (502, &"engines_break".into()));
    let sent = primary.seen.lock().unwrap().len() + fallback.seen.lock().unwrap().len();
    assert_eq!(sent, 3, "three engines are enough to know");
}

#[tokio::test]
async fn a_tier_that_is_asked_for_answers_while_another_one_has_the_traffic() {
    let (_primary, fallback, gateway) = two_tiers().await;
    let wanted = [("x-atlas-require-tier", "fallback")];
    assert_eq!(gateway.ask().await.tier(), "primary");
    assert_eq!(gateway.ask_with(&wanted, "{}").await.tier(), "fallback");
    fallback.kill().await;
    let answer = gateway.ask_with(&wanted, "{}").await;
    assert_eq!(answer.json()["error"]["code"], "tier_not_active", "it is down and another one serves");
}

#[tokio::test]
async fn a_pinned_tier_is_no_failback_and_a_tier_that_is_gone_is_not_shown() {
    let (primary, fallback, gateway) = two_tiers().await;
    let pinned = ModelConfig { pinned_tier: Some("fallback".into()), ..model(&["primary", "fallback"]) };
    let endpoints = || vec![primary.endpoint("primary"), fallback.endpoint("fallback")];
    gateway.table.send_replace(table(pinned, endpoints()));
    gateway.active(Some("fallback")).await;
    let status = gateway.status().await;
    let switch = &status["models"][0]["switches"][0];
    assert_eq!((&switch["cause"], &switch["millis"]), (&"Pinned".into(), &0.into()), "{switch}");

    let page = async || String::from_utf8(get(gateway.internal, "/metrics").await.1.to_vec()).unwrap();
    let shown = r#"atlas_gateway_active_tier{model="code",tier="fallback"} 1"#;
    assert!(page().await.contains(shown));
    gateway.table.send_replace(table(model(&["primary"]), endpoints()));
    gateway.active(Some("primary")).await;
    assert!(!page().await.contains(r#"tier="fallback"} 1"#), "{}", page().await);
    gateway.table.send_replace(ModelTable::default());
    let gone = async || {
        while page().await.contains("atlas_gateway_active_tier{") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone()).await.expect("a model that is gone is not shown");
}

#[tokio::test]
async fn what_was_taken_down_on_purpose_has_not_failed_over_when_it_comes_back() {
    let (primary, fallback, gateway) = two_tiers().await;
    let suspended = ModelConfig { suspended: true, ..model(&["primary", "fallback"]) };
    gateway.table.send_replace(table(suspended, vec![]));
    gateway.active(None).await;
    // The fallback is up first.
    let both = || model(&["primary", "fallback"]);
    gateway.table.send_replace(table(both(), vec![fallback.endpoint("fallback")]));
    gateway.active(Some("fallback")).await;
    assert_eq!(gateway.status().await["models"][0]["switches"], json!([]));
    gateway
        .table
        .send_replace(table(both(), vec![primary.endpoint("primary"), fallback.endpoint("fallback")]));
    gateway.active(Some("primary")).await;
    let switches = gateway.status().await["models"][0]["switches"].clone();
    assert_eq!((switches.as_array().map(Vec::len), &switches[0]["cause"]), (Some(1), &json!("FailedBack")));
}

#[tokio::test]
async fn clients_find_models_in_every_form_and_learn_what_is_wrong_with_a_body() {
    let engine = Engine::start(Script::Answer("yes")).await;
    let with_slash = ModelConfig { aliases: vec!["org/alias".into()], ..model(&["primary"]) };
    let other = ModelConfig { name: "other".into(), aliases: Vec::new(), ..model(&["primary"]) };
    let mut view = table(with_slash, vec![engine.endpoint("primary")]);
    view.models.insert("other".into(), Arc::new(other));
    let gateway = Gateway::start(view).await;
    gateway.active(Some("primary")).await;
    for path in ["/v1/models/org/alias", "/v1/models/org%2Falias"] {
        let (status, body) = get(gateway.api, path).await;
        assert_eq!(status, 200, "{path}: {body:?}");
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["id"], "org/alias");
    }
    let answer = gateway.ask_with(&[], r#"{"model": "code","#).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (400, &"invalid_json".into()));
    let answer = gateway.ask_with(&[("content-encoding", "gzip")], "not what it says").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["code"]),
        (415, &"unsupported_encoding".into())
    );
    assert_eq!(gateway.ask_path("/tokenize", r#"{"model": "code"}"#).await.tier(), "primary");
    assert!(engine.seen.lock().unwrap().last().unwrap().starts_with("POST /tokenize "));
}
