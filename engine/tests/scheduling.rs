//! The real binary under more work than it has room for, and with clients that do not wait.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;
use support::{Engine, PATIENCE};

fn body(index: usize, more: Value) -> Value {
    let prompt = format!("Once upon a time there was a number, and the number was {index}. The next one is");
    let mut body =
        json!({"model": "code", "temperature": 0, "max_tokens": 40, "ignore_eos": true, "prompt": prompt});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(engine: &Engine, body: &Value) -> String {
    let (status, answer) = engine.post("/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

fn metric(engine: &Engine, name: &str) -> f64 {
    let (_, text) = engine.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix("atlas_engine_")?.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no metric {name}")).trim().parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what} never holds");
        std::thread::yield_now();
    }
}

#[test]
fn more_requests_than_memory_are_all_answered_as_if_alone() {
    // Each needs about sixty tokens.
    let engine = Engine::start(&["--kv-cache-tokens", "160", "--max-batch", "4"]);
    let alone: Vec<String> = (0..6).map(|index| text(&engine, &body(index, json!({})))).collect();
    let hits = metric(&engine, "prefix_hit_tokens_total");
    let crowded: Vec<String> = std::thread::scope(|scope| {
        let engine = &engine;
        let threads: Vec<_> =
            (0..6).map(|index| scope.spawn(move || text(engine, &body(index, json!({}))))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(crowded, alone);
    assert!(metric(&engine, "prefix_hit_tokens_total") > hits);
    until("an empty cache", || metric(&engine, "kv_used_blocks") == 0.0);
    let (status, refused) = engine.post("/v1/completions", &body(0, json!({"max_tokens": 200})));
    let message = refused["error"]["message"].as_str().unwrap();
    assert_eq!((status, message.contains("160 tokens")), (400, true), "{refused}");
}

#[test]
fn a_client_that_goes_away_frees_its_blocks() {
    let engine = Engine::start(&[]);
    let body = body(1, json!({"max_tokens": 400, "stream": true})).to_string();
    let mut stream = TcpStream::connect(&engine.api).unwrap();
    let length = body.len();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    until("a sequence with blocks", || metric(&engine, "kv_used_blocks") > 0.0);
    drop(stream);
    until("no sequence", || metric(&engine, "kv_used_blocks") == 0.0);
    let generated = metric(&engine, "generated_tokens_total");
    assert!(generated < 400.0, "{generated} tokens for nobody");
}

#[test]
fn steps_and_guesses_are_counted_and_guesses_change_nothing() {
    let repeating = json!({"prompt": "one two three one two three one two three one two", "max_tokens": 60});
    let answers = ["true", "false"].map(|speculate| {
        let engine = Engine::start(&["--speculate", speculate]);
        let answer = text(&engine, &body(0, repeating.clone()));
        let guessed = metric(&engine, "accepted_draft_tokens_total");
        let (_, status) = support::request(&engine.internal, "GET", "/internal/status", "");
        let status: Value = serde_json::from_str(&status).unwrap();
        let steps = status["progress"]["steps"].as_u64().unwrap();
        assert_eq!(status["progress"]["tokensGenerated"], 60);
        (answer, guessed, steps)
    });
    assert_eq!(answers[0].0, answers[1].0);
    assert!(answers[0].1 > 0.0 && answers[1].1 == 0.0, "{answers:?}");
    assert!(answers[0].2 < answers[1].2, "{answers:?}");
}

#[test]
fn answers_tell_how_much_of_their_prompt_was_cached() {
    let engine = Engine::start(&[]);
    let cached = |body: Value| {
        let (status, answer) = engine.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (usage["prompt_tokens"].as_u64().unwrap(), cached)
    };
    let long = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,";
    let (tokens, first) = cached(body(0, json!({"prompt": long, "max_tokens": 2})));
    // Whole blocks of 16, and never the last token. Further choices share the prompt and count nothing.
    let expected = (tokens - 1) / 16 * 16;
    assert!(expected > 0 && first == 0, "{tokens} {first}");
    assert_eq!(cached(body(0, json!({"prompt": long, "max_tokens": 2, "n": 3}))), (tokens, expected));
    let both = json!({"prompt": [long, "Something else."], "max_tokens": 2});
    assert_eq!(cached(body(0, both)).1, expected);
}

#[test]
fn a_lower_priority_goes_first() {
    let engine = Engine::start(&["--max-batch", "1"]);
    let waiting = |running: u64, waiting: u64| {
        let (_, status) = support::request(&engine.internal, "GET", "/internal/status", "");
        let status: Value = serde_json::from_str(&status).unwrap();
        status["queue"] == json!({"running": running, "waiting": waiting})
    };
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let ask = |name: &'static str, priority: i64, max_tokens: usize| {
            let (engine, order) = (&engine, &order);
            scope.spawn(move || {
                text(engine, &body(1, json!({"max_tokens": max_tokens, "priority": priority})));
                order.lock().unwrap().push(name);
            })
        };
        let mut threads = vec![ask("first", 0, 200)];
        until("a request that runs", || waiting(1, 0));
        // Each is in line before the next one comes.
        for (index, (name, priority)) in [("late", 7), ("usual", 0), ("urgent", -3)].into_iter().enumerate() {
            threads.push(ask(name, priority, 30));
            until("a request in line", || waiting(1, index as u64 + 1));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(order.into_inner().unwrap(), ["first", "urgent", "usual", "late"]);
}
