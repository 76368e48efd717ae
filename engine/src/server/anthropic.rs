//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API, told in terms of the chat API.

use super::anthropic_writer::Message;
use super::chat::ChatRequest;
use super::conversation::text;
use super::encode::{Front, encode_any};
use super::fields::Fields;
use super::openai::ApiError;
use super::params::Resume;
use super::reply::InFlight;
use super::tokenize::with_model;
use super::{App, Engine};
use axum::response::Response;
use serde_json::{Map, Value, json};

/// Names of the chat API, and what the field is called here.
const NAMES: &[(&str, &str)] = &[
    ("stop", "stop_sequences"),
    ("response_format.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
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
    let renamed = |error: ApiError| error.renamed(NAMES);
    fields.required("max_tokens", fields.count("max_tokens")?, "the answer's token limit")?;
    let mut request = ChatRequest::read(&Fields::new(translate(&fields)?)).map_err(renamed)?;
    request.resume_from(resume);
    let writer = Message::writer(&request.params);
    request.answer(app, engine, in_flight, writer, NAMES).await
}

/// Tokens of the prompt that a request leads to.
///
/// # Errors
/// The request is wrong.
pub async fn count_tokens(engine: &Engine, fields: &Fields) -> Result<Value, ApiError> {
    let request = ChatRequest::read(&Fields::new(translate(&with_model(fields))?));
    let prompt = request.map_err(|error| error.renamed(NAMES))?.prompt(engine)?;
    let ids = encode_any(engine, prompt, Front::AsPrompt, "messages").await?;
    Ok(json!({"input_tokens": ids.len()}))
}

/// The request as a chat request.
fn translate(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    for (name, remedy) in [
        ("mcp_servers", "this server calls no other servers: offer their tools as tools"),
        ("container", "this server runs no code"),
    ] {
        fields.refuse(name, remedy)?;
    }
    let mut chat = Map::new();
    for name in [
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stream",
        "seed",
        "min_p",
        "priority",
        "chat_template_kwargs",
    ] {
        if let Some(value) = fields.get(name) {
            chat.insert(name.into(), value.clone());
        }
    }
    if let Some(stops) = fields.get("stop_sequences") {
        chat.insert("stop".into(), stops.clone());
    }
    if let Some(thinking) = fields.object("thinking")? {
        match thinking.required("type", thinking.string("type")?, "enabled, adaptive or disabled")? {
            "disabled" => {
                chat.insert("reasoning_effort".into(), "none".into());
            }
            // A model that thinks does so by itself.
            "enabled" | "adaptive" => {}
            _ => return Err(thinking.invalid("type", "must be enabled, adaptive or disabled")),
        }
    }
    if let Some(format) = output_format(fields)? {
        chat.insert("response_format".into(), format);
    }
    let messages = messages(fields)?;
    // An answer that the client began goes on, as Anthropic's models do.
    let prefilled =
        messages.last().is_some_and(|last| last["role"] == "assistant" && last["tool_calls"].is_null());
    chat.insert("continue_final_message".into(), prefilled.into());
    chat.insert("messages".into(), messages.into());
    if let Some(tools) = fields.array("tools")? {
        let tools = tools.iter().enumerate().map(|(index, tool)| {
            let tool = Fields::at(&format!("tools[{index}]"), tool)?;
            let kind = tool.string("type")?.unwrap_or("custom");
            if kind != "custom" {
                return Err(tool.invalid("type", format!("is {kind:?}: this server has no tools of its own")));
            }
            let name = tool.required("name", tool.string("name")?, "the tool's name")?;
            let schema = tool.object("input_schema")?.map(Fields::into_values);
            let schema = tool.required("input_schema", schema, "a JSON schema")?;
            let description = tool.string("description")?.unwrap_or_default();
            Ok(json!({"type": "function",
                "function": {"name": name, "description": description, "parameters": schema}}))
        });
        chat.insert("tools".into(), tools.collect::<Result<_, _>>()?);
    }
    if let Some(choice) = fields.object("tool_choice")? {
        let kind = choice.required("type", choice.string("type")?, "auto, any, tool or none")?;
        let choice_value = match kind {
            "auto" | "none" => kind.into(),
            "any" => "required".into(),
            "tool" => {
                let name = choice.required("name", choice.string("name")?, "the tool's name")?;
                json!({"type": "function", "function": {"name": name}})
            }
            _ => return Err(choice.invalid("type", "must be auto, any, tool or none")),
        };
        chat.insert("tool_choice".into(), choice_value);
        let single = choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
        chat.insert("parallel_tool_calls".into(), (!single).into());
    }
    Ok(chat)
}

/// The answer's form, which stands in `output_config`, or by an older name beside it.
fn output_format(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let config = fields.object("output_config")?.map(|config| config.object("format")).transpose()?.flatten();
    let Some(format) = config.or(fields.object("output_format")?) else { return Ok(None) };
    if format.required("type", format.string("type")?, "\"json_schema\"")? != "json_schema" {
        return Err(format.invalid("type", "must be \"json_schema\""));
    }
    let schema = format.required("schema", format.get("schema"), "a JSON schema")?;
    Ok(Some(json!({"type": "json_schema", "json_schema": {"schema": schema}})))
}

fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.get("system") {
        messages.push(json!({"role": "system", "content": text("system", system)?}));
    }
    let list = fields.required("messages", fields.array("messages")?, "an array of messages")?;
    if list.is_empty() {
        return Err(fields.invalid("messages", "is empty: give at least one message"));
    }
    for (index, message) in list.iter().enumerate() {
        let message = Fields::at(&format!("messages[{index}]"), message)?;
        let expected = "user or assistant";
        let role = message
            .read("role", expected, |role| role.as_str().filter(|role| ["user", "assistant"].contains(role)));
        let role = message.required("role", role?, expected)?;
        let content =
            message.required("content", message.get("content"), "a string or an array of blocks")?;
        match content {
            Value::Array(blocks) => read_blocks(&message.path("content"), role, blocks, &mut messages)?,
            content => {
                messages.push(json!({"role": role, "content": text(&message.path("content"), content)?}))
            }
        }
    }
    Ok(messages)
}

/// One message of blocks becomes the results of tools, then what is said and called.
fn read_blocks(place: &str, role: &str, blocks: &[Value], messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    let before = messages.len();
    for (index, block) in blocks.iter().enumerate() {
        let at = format!("{place}[{index}]");
        let fields = Fields::at(&at, block)?;
        match (fields.required("type", fields.string("type")?, "the block's type")?, role) {
            ("thinking", "assistant") => thought.push_str(fields.string("thinking")?.unwrap_or_default()),
            ("redacted_thinking", "assistant") => {}
            ("tool_use", "assistant") => {
                let name = fields.required("name", fields.string("name")?, "the tool's name")?;
                let input = fields.get("input").cloned().unwrap_or_else(|| json!({}));
                let id = fields.string("id")?.unwrap_or_default();
                calls.push(
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}),
                );
            }
            ("tool_result", "user") => {
                let result = fields
                    .get("content")
                    .map_or(Ok(String::new()), |result| text(&fields.path("content"), result))?;
                let id = fields.string("tool_use_id")?.unwrap_or_default();
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": result}));
            }
            _ => said
                .push_str(&text(place, &Value::Array(vec![block.clone()])).map_err(|error| error.at(&at))?),
        }
    }
    let only_results = messages.len() > before && said.is_empty();
    if !only_results {
        let mut message = json!({"role": role, "content": said});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        messages.push(message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Map<String, Value>, ApiError> {
        translate(&Fields::new(body.as_object().unwrap().clone()))
    }

    #[test]
    fn blocks_become_messages() {
        let chat = read(
            json!({"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "5"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "So"}],
            "tools": [{"name": "f", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true}}),
        );
        let chat = chat.unwrap();
        assert_eq!(
            chat["messages"],
            json!([
                {"role": "system", "content": "s"}, {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "tool_call_id": "1", "content": "5"}, {"role": "user", "content": "b"},
                {"role": "assistant", "content": "So"}])
        );
        assert_eq!(
            (&chat["continue_final_message"], &chat["parallel_tool_calls"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(chat["tool_choice"]["function"]["name"], "f");
        let format = json!({"type": "json_schema", "schema": {"type": "object"}});
        for more in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
            let mut body =
                json!({"messages": [{"role": "user", "content": "x"}], "thinking": {"type": "disabled"}});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let chat = read(body).unwrap();
            assert_eq!(chat["response_format"]["json_schema"]["schema"], json!({"type": "object"}), "{more}");
            assert_eq!(chat["reasoning_effort"], "none");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
            (user(json!([{"type": "text", "text": "x"}, {"type": "image"}])), "messages[0].content[1]"),
            (user(json!([{"type": "tool_use"}])), "messages[0].content[0]"),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]}),
                "tools[0].input_schema",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": {"type": "must"}}),
                "tool_choice.type",
            ),
            (json!({"messages": [], "thinking": {"type": "perhaps"}}), "thinking.type"),
            (json!({"messages": [], "mcp_servers": [{"type": "url"}]}), "mcp_servers"),
            (json!({"messages": [], "output_format": {"type": "xml"}}), "output_format.type"),
            (
                json!({"messages": [], "output_config": {"format": {"type": "json_schema"}}}),
                "output_config.format.schema",
            ),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().body()["error"]["param"], param, "{body}");
        }
    }
}
