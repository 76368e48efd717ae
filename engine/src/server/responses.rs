//! `/v1/responses`: OpenAI's newer API, told in terms of the chat API. Nothing is stored between requests.

use super::chat::ChatRequest;
use super::conversation::text;
use super::fields::Fields;
use super::openai::ApiError;
use super::params::Resume;
use super::reply::InFlight;
use super::{App, Engine, logprobs, responses_writer};
use axum::response::Response;
use serde_json::{Map, Value, json};

/// Names of the chat API, and what the field is called here.
const NAMES: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("tool_choice.allowed_tools", "tool_choice"),
];

/// Answers a request.
///
/// # Errors
/// The request is wrong, or the answer fails before anything was sent.
pub async fn answer(
    app: &App,
    engine: &Engine,
    fields: Fields,
    in_flight: InFlight,
    resume: (Resume, Option<u64>),
) -> Result<Response, ApiError> {
    let request = ChatRequest::read(&Fields::new(translate(&fields)?));
    let mut request = request.map_err(|error| error.renamed(NAMES))?;
    request.resume_from(resume);
    let tokenizer = engine.tokenizer.clone();
    let tell = move |tokens: &[_]| logprobs::of_tokens(&tokenizer, tokens);
    let writer = responses_writer::Response::writer(&fields, &request.params, Box::new(tell));
    request.answer(app, engine, in_flight, writer, NAMES).await
}

/// The request as a chat request.
fn translate(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    for (name, remedy) in [
        ("previous_response_id", "nothing is stored here: send the whole conversation as input"),
        ("conversation", "nothing is stored here: send the whole conversation as input"),
        ("background", "leave it out"),
        ("prompt", "send its text as input"),
    ] {
        fields.refuse(name, remedy)?;
    }
    let known = "\"auto\" or \"disabled\"";
    // A conversation that is too long is refused in either case: nothing of it is left out unseen.
    fields.read("truncation", known, |value| {
        value.as_str().filter(|word| ["auto", "disabled"].contains(word))
    })?;
    let mut chat = Map::new();
    if fields.strings("include")?.iter().any(|what| what == "message.output_text.logprobs") {
        chat.insert("logprobs".into(), true.into());
    }
    if let Some(top) = fields.count("top_logprobs")?.filter(|top| *top > 0) {
        chat.insert("logprobs".into(), true.into());
        chat.insert("top_logprobs".into(), top.into());
    }
    // Whatever else is known to both APIs has the same name.
    for name in [
        "model",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stream",
        "parallel_tool_calls",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "chat_template_kwargs",
        "ignore_eos",
        "min_tokens",
        "priority",
    ] {
        if let Some(value) = fields.get(name) {
            chat.insert(name.into(), value.clone());
        }
    }
    if let Some(effort) = fields.object("reasoning")?.and_then(|reasoning| reasoning.get("effort").cloned()) {
        chat.insert("reasoning_effort".into(), effort);
    }
    if let Some(limit) = fields.count("max_output_tokens")? {
        chat.insert("max_completion_tokens".into(), limit.into());
    }
    chat.insert("messages".into(), messages(fields)?.into());
    if let Some(tools) = fields.array("tools")? {
        let place = fields.path("tools");
        let tools =
            tools.iter().enumerate().map(|(index, tool)| function(&format!("{place}[{index}]"), tool));
        chat.insert("tools".into(), tools.collect::<Result<_, _>>()?);
    }
    if let Some(choice) = fields.get("tool_choice") {
        chat.insert("tool_choice".into(), nest_choice(choice));
    }
    if let Some(format) = fields.object("text")?.map(|text| text.object("format")).transpose()?.flatten() {
        let mut format = format.into_values();
        let kind = format.remove("type").unwrap_or_else(|| "text".into());
        let format = if kind == "json_schema" {
            json!({"type": kind, "json_schema": format})
        } else {
            json!({"type": kind})
        };
        chat.insert("response_format".into(), format);
    }
    Ok(chat)
}

/// A choice as the chat API has it, which keeps names and modes one level deeper.
fn nest_choice(choice: &Value) -> Value {
    match choice["type"].as_str() {
        Some("function") => json!({"type": "function", "function": {"name": choice["name"]}}),
        Some("allowed_tools") => {
            let mut allowed = choice.clone();
            if let Some(tools) = allowed["tools"].as_array_mut() {
                for tool in tools.iter_mut() {
                    *tool = nest_choice(tool);
                }
            }
            json!({"type": "allowed_tools", "allowed_tools": allowed})
        }
        _ => choice.clone(),
    }
}

fn function(place: &str, tool: &Value) -> Result<Value, ApiError> {
    let fields = Fields::at(place, tool)?;
    if fields.required("type", fields.string("type")?, "\"function\"")? != "function" {
        return Err(fields.invalid("type", "must be \"function\": this server has no tools of its own"));
    }
    let mut function = fields.into_values();
    function.remove("type");
    Ok(json!({"type": "function", "function": function}))
}

fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut messages: Vec<Value> = Vec::new();
    if let Some(instructions) = fields.string("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    let input = fields.required("input", fields.get("input"), "a string or an array of items")?;
    let items = match input {
        Value::String(text) => {
            messages.push(json!({"role": "user", "content": text}));
            return Ok(messages);
        }
        Value::Array(items) if !items.is_empty() => items,
        other => {
            return Err(super::fields::wrong("input", other, "a string or an array of at least one item"));
        }
    };
    for (index, item) in items.iter().enumerate() {
        let item = Fields::at(&format!("input[{index}]"), item)?;
        match item.string("type")?.unwrap_or("message") {
            "message" => {
                let role = item.required("role", item.string("role")?, "the message's role")?;
                let content = item.required("content", item.get("content"), "the message's text")?;
                messages.push(json!({"role": role, "content": text(&item.path("content"), content)?}));
            }
            "function_call" => {
                let name = item.required("name", item.string("name")?, "the function's name")?;
                let call = json!({"id": item.string("call_id")?.unwrap_or_default(), "type": "function",
                    "function": {"name": name, "arguments": item.string("arguments")?.unwrap_or("{}")}});
                // Calls of one turn come as items of their own and belong into one message.
                match messages.last_mut().filter(|last| last["role"] == "assistant") {
                    Some(last) => match last["tool_calls"].as_array_mut() {
                        Some(calls) => calls.push(call),
                        None => last["tool_calls"] = json!([call]),
                    },
                    None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
                }
            }
            "function_call_output" => {
                let output = item.required("output", item.get("output"), "the function's result")?;
                let output = text(&item.path("output"), output)?;
                let id = item.string("call_id")?.unwrap_or_default();
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
            }
            // Thoughts of earlier turns are not shown to the model again.
            "reasoning" => {}
            kind => {
                let message = format!(
                    "is {kind:?}: this server takes message, function_call, function_call_output and reasoning"
                );
                return Err(item.invalid("type", message));
            }
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Map<String, Value>, ApiError> {
        translate(&Fields::new(body.as_object().unwrap().clone()))
    }

    #[test]
    fn items_become_messages() {
        let chat = read(json!({"model": "m", "instructions": "Be brief.", "max_output_tokens": 5, "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "5"}],
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}, "reasoning": {"effort": "low"}}));
        let chat = chat.unwrap();
        let roles: Vec<_> =
            chat["messages"].as_array().unwrap().iter().map(|message| message["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(chat["messages"][2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(chat["tools"][0]["function"]["name"], "f");
        assert_eq!(chat["tool_choice"]["function"]["name"], "f");
        assert_eq!(chat["response_format"]["json_schema"]["name"], "n");
        assert_eq!((&chat["max_completion_tokens"], &chat["reasoning_effort"]), (&json!(5), &json!("low")));
    }

    #[test]
    fn allowed_tools_are_nested_as_the_chat_api_has_them() {
        let chat = read(json!({"input": "x", "tool_choice": {"type": "allowed_tools", "mode": "required",
            "tools": [{"type": "function", "name": "f"}]}}));
        let allowed = &chat.unwrap()["tool_choice"]["allowed_tools"];
        assert_eq!(
            (&allowed["mode"], &allowed["tools"][0]["function"]["name"]),
            (&json!("required"), &json!("f"))
        );
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": "x", "previous_response_id": "r"}), "previous_response_id"),
            (json!({"input": [{"type": "item_reference"}]}), "input[0].type"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "input[0].content[0]",
            ),
            (json!({"input": "x", "tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"input": "x", "max_output_tokens": "5"}), "max_output_tokens"),
            (json!({"input": "x", "reasoning": "high"}), "reasoning"),
            (json!({"input": "x", "truncation": "some"}), "truncation"),
            (json!({"input": "x", "include": [1]}), "include"),
            (json!({"input": "x", "top_logprobs": "2"}), "top_logprobs"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().body()["error"]["param"], param, "{body}");
        }
    }
}
