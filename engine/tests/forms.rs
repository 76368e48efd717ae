//! Forms of answers that clients read closely, on the real model: places in texts, log-probabilities, answers that were
//! cut, and the names in refusals.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{Engine, chat, events, joined, prompt};

fn ok(engine: &Engine, path: &str, body: &Value) -> Value {
    let (status, answer) = engine.post(path, body);
    assert_eq!(status, 200, "{body} gave {answer}");
    answer
}

#[test]
fn offsets_are_places_in_the_text_also_where_tokens_share_a_character() {
    let engine = Engine::start(&[]);
    let text = "Gr\u{fc}\u{df}e \u{1f980} na\u{ef}ve \u{65e5}\u{672c}";
    let body =
        prompt(text, json!({"echo": true, "logprobs": 1, "max_tokens": 3, "temperature": 1, "seed": 5}));
    let answer = ok(&engine, "/v1/completions", &body);
    let choice = &answer["choices"][0];
    let shown: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let logprobs = &choice["logprobs"];
    let (tokens, offsets) =
        (logprobs["tokens"].as_array().unwrap(), logprobs["text_offset"].as_array().unwrap());
    assert!(
        tokens.iter().any(|token| token.as_str().unwrap().starts_with("bytes:")),
        "no character is split: {tokens:?}"
    );
    let mut last = 0;
    for (token, offset) in tokens.iter().zip(offsets) {
        let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        assert!(offset >= last, "{offsets:?}");
        last = offset;
        // What of a token is whole characters stands at its place.
        let whole = token.strip_prefix("bytes:").unwrap_or(token);
        let whole: Vec<char> = whole.chars().take_while(|character| *character != '\\').collect();
        assert_eq!(shown[offset..offset + whole.len()], whole, "{token:?} at {offset}");
    }

    // The token that was taken is among the alternatives, whatever is likelier.
    for (top, taken) in logprobs["top_logprobs"].as_array().unwrap().iter().zip(tokens).skip(1) {
        assert!(top.get(taken.as_str().unwrap()).is_some(), "{taken} in {top}");
    }
    let mut streamed = body;
    streamed["stream"] = true.into();
    let streamed = events(ok(&engine, "/v1/completions", &streamed).as_str().unwrap());
    let told = streamed.iter().filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array());
    assert_eq!(&told.flatten().cloned().collect::<Vec<_>>(), offsets);
}

#[test]
fn responses_tell_log_probabilities_and_what_was_cut() {
    let engine = Engine::start(&[]);
    let body = |more: Value| {
        let mut body =
            json!({"model": "code", "input": "What is 2 + 2?", "temperature": 0, "max_output_tokens": 6});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let streamed = |mut body: Value| {
        body["stream"] = true.into();
        events(ok(&engine, "/v1/responses", &body).as_str().unwrap())
    };
    let asked = body(json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2}));
    let whole = ok(&engine, "/v1/responses", &asked);
    let message = &whole["output"][0];
    assert_eq!((&message["status"], &whole["top_logprobs"]), (&json!("incomplete"), &json!(2)));
    let content = &message["content"][0];
    let told = content["logprobs"].as_array().unwrap();
    let spelled: String = told.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!((content["text"].as_str(), told.len()), (Some(spelled.as_str()), 6));
    assert!(told.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2), "{told:?}");
    let seen = streamed(asked);
    let deltas = seen.iter().filter(|event| event["type"] == "response.output_text.delta");
    let pieces: Vec<Value> = deltas.flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(&pieces, told);
    assert_eq!(seen.last().unwrap()["response"]["output"][0]["content"], message["content"]);
    let untold = ok(&engine, "/v1/responses", &body(json!({})));
    assert_eq!(untold["output"][0]["content"][0]["logprobs"], json!([]));
    let all = ok(&engine, "/v1/responses", &body(json!({"max_output_tokens": 400, "stop": ["4"]})));
    assert_eq!((&all["status"], &all["output"][0]["status"]), (&json!("completed"), &json!("completed")));

    // A forced call that is cut before its name is known says nothing, in every API and form.
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let nested = json!({"type": "function", "function": tool});
    let cut = chat(json!({"max_tokens": 2, "tools": [nested], "tool_choice": "required"}));
    let message = ok(&engine, "/v1/chat/completions", &cut)["choices"][0]["message"].clone();
    assert_eq!((&message["content"], message.get("tool_calls")), (&json!(""), None), "{message}");
    let cut = body(json!({"max_output_tokens": 2, "tools": [tool], "tool_choice": "required"}));
    let whole = ok(&engine, "/v1/responses", &cut);
    let seen = streamed(cut);
    for response in [&whole, &seen.last().unwrap()["response"]] {
        let item = &response["output"][0];
        let told = (&item["status"], &item["content"][0]["text"]);
        assert_eq!(told, (&json!("incomplete"), &json!("")), "{response}");
    }
    assert_eq!(joined(&seen, "/delta"), "");
}

#[test]
fn refusals_name_the_field_that_was_sent() {
    let engine = Engine::start(&[]);
    for (body, param) in [
        (json!({"max_tokens": null, "max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"top_p": -0.1}), "top_p"),
    ] {
        let (status, refused) = engine.post("/v1/chat/completions", &chat(body));
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }
    // The likeliest token is all that a top_p of 0 leaves.
    let likeliest = engine.complete(prompt("The capital of France is", json!({})));
    let hot = json!({"top_p": 0, "temperature": 2, "seed": 1});
    assert_eq!(engine.complete(prompt("The capital of France is", hot)), likeliest);
    let (status, answer) = engine.get("/v1/models/%ff");
    assert_eq!(status, 404);
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["error"]["code"], "model_not_found");
}
