//! Streams in the form of the resume contract, and the requests that go on behind them.

use super::*;

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn chunk(text: &str, ids: &[u64]) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "code",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null, "token_ids": ids}]})
}

fn finish(reason: &str, ids: &[u64]) -> Value {
    let mut value = chunk("", ids);
    value["choices"][0]["finish_reason"] = reason.into();
    value
}

fn first(text: &str, ids: &[u64], seed: u64) -> Value {
    let mut value = chunk(text, ids);
    value["seed"] = seed.into();
    value
}

fn passed(taken: Taken) -> Value {
    let Taken::Pass(bytes) = taken else { panic!("{taken:?}") };
    serde_json::from_slice(events::data(&bytes).unwrap()).unwrap()
}

#[test]
fn clients_see_no_field_of_the_contract() {
    let tricky = "a \"token_ids\":[1] and \"seed\":5, in text";
    let mut transcript = Transcript::default();
    let mut expected = first(tricky, &[1, 2], 9);
    let shown = passed(transcript.take(event(&expected)));
    expected.as_object_mut().unwrap().remove("seed");
    expected["choices"][0].as_object_mut().unwrap().remove("token_ids");
    assert_eq!(shown, expected);
    assert_eq!(
        passed(transcript.take(event(&json!({"choices": [], "usage": {"total_tokens": 5}}))))["usage"]["total_tokens"],
        5
    );
    for (text, expected) in [
        (r#"{"token_ids":[],"a":1}"#, r#"{"a":1}"#),
        (r#"{"a":1,"token_ids":[1,2]}"#, r#"{"a":1}"#),
        (r#"{"token_ids":[3]}"#, "{}"),
        (r#"{"seed":18446744073709551615}"#, "{}"),
        (r#"{"seed":1,"b":[{"token_ids":[]},{"token_ids":[1]}]}"#, r#"{"b":[{},{}]}"#),
    ] {
        assert_eq!(without_contract_fields(Bytes::from_static(text.as_bytes())), expected, "{text}");
    }
}

#[test]
fn a_resumed_request_is_the_first_one_with_what_the_client_has() {
    let mut transcript = Transcript::default();
    transcript.take(event(&first("Hel", &[5, 6], 77)));
    transcript.take(event(&chunk("", &[7])));
    let body = transcript.resumed_body(br#" {"model": "code", "stream": true}"#).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let expected = json!({"model": "code", "stream": true, "return_token_ids": true,
        "resume_tokens": [5, 6, 7], "resume": {"id": "chatcmpl-1", "created": 17, "seed": 77}});
    assert_eq!(body, expected);
    assert_eq!(transcript.tokens(), 3);

    let mut second = chunk("x", &[8]);
    second["choices"][0]["index"] = 2.into();
    transcript.take(event(&second));
    let body = transcript.resumed_body(b"{}").unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["resume_tokens"], json!([[5, 6, 7], [], [8]]));
}

#[test]
fn what_is_not_known_for_sure_is_not_resumed() {
    let resumes = |events: &[Value]| {
        let mut transcript = Transcript::default();
        for value in events {
            transcript.take(event(value));
        }
        transcript.resumed_body(b"{}").is_some()
    };
    let bare = json!({"id": "x", "created": 1, "choices": [{"index": 0, "delta": {"content": "a"}}]});
    assert!(resumes(&[first("a", &[1], 2)]));
    assert!(!resumes(&[]));
    assert!(!resumes(&[chunk("no seed", &[1])]));
    assert!(!resumes(&[first("a", &[1], 2), bare]));
    assert!(!resumes(&[first("a", &[1], 2), json!(["what is this"])]));
    assert!(!resumes(&[first("a", &[1], 2), json!({"error": {"code": "request_timeout"}})]));
    assert!(Transcript::default().resumed_body(b"[]").is_none());
}

#[test]
fn a_finish_that_the_client_has_is_dropped_and_an_error_is_told() {
    let mut transcript = Transcript::default();
    passed(transcript.take(event(&first("a", &[1], 2))));
    passed(transcript.take(event(&finish("stop", &[3]))));
    assert_eq!(transcript.take(event(&finish("stop", &[]))), Taken::Drop);
    assert_eq!(transcript.tokens(), 2);
    let failed = event(&json!({"error": {"message": "m", "code": "internal_error"}}));
    assert_eq!(transcript.take(failed.clone()), Taken::Failed(failed));
    assert!(transcript.resumed_body(b"{}").is_some() && !transcript.is_done());
    let ping = Bytes::from_static(b": ping\n\n");
    assert_eq!(transcript.take(ping.clone()), Taken::Pass(ping));
    transcript.take(Bytes::from_static(b"data: [DONE]\n\n"));
    assert!(transcript.is_done());
}

#[test]
fn fields_are_added_to_objects_only() {
    let check = |body: &str, expected: Option<&str>| {
        assert_eq!(body_with_ids(body.as_bytes()).as_deref(), expected.map(str::as_bytes), "{body}");
    };
    check("{}", Some(r#"{"return_token_ids":true}"#));
    check(" { }", Some(r#"{"return_token_ids":true }"#));
    check(r#"{"a":1}"#, Some(r#"{"return_token_ids":true,"a":1}"#));
    check("[1]", None);
    check("", None);
}
