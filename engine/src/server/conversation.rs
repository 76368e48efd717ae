//! The messages of a chat request, checked and brought into the form that chat templates read.

use super::fields::Fields;
use super::openai::ApiError;
use serde_json::{Map, Value, json};

/// Reads `messages`.
///
/// # Errors
/// A message is of the wrong form; the error names its place.
pub fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let list = fields.array("messages")?;
    let list = fields.required("messages", list, "an array of messages")?;
    if list.is_empty() {
        return Err(fields.invalid("messages", "is empty: give at least one message"));
    }
    list.iter()
        .enumerate()
        .map(|(index, value)| message(&Fields::at(&format!("{}[{index}]", fields.path("messages")), value)?))
        .collect()
}

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool", "function"];

fn message(fields: &Fields) -> Result<Value, ApiError> {
    let expected = "one of system, developer, user, assistant and tool";
    let role = fields.read("role", expected, |value| value.as_str().filter(|role| ROLES.contains(role)))?;
    let role = match fields.required("role", role, expected)? {
        // Templates rarely know OpenAI's newer word for "system", nor its older one for "tool".
        "developer" => "system",
        "function" => "tool",
        role => role,
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    let calls = fields.array("tool_calls")?.filter(|calls| !calls.is_empty());
    let content = match fields.get("content") {
        Some(content) => text(&fields.path("content"), content)?,
        None if role == "assistant" => String::new(),
        None => return Err(fields.invalid("content", "is missing: give a string or an array of text parts")),
    };
    message.insert("content".into(), content.into());
    if let Some(calls) = calls {
        if role != "assistant" {
            return Err(
                fields.invalid("tool_calls", format!("is for the assistant's messages, not {role}'s"))
            );
        }
        let place = fields.path("tool_calls");
        let calls =
            calls.iter().enumerate().map(|(index, call)| tool_call(&format!("{place}[{index}]"), call));
        message.insert("tool_calls".into(), Value::Array(calls.collect::<Result<_, _>>()?));
    }
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.string(name)? {
            message.insert(name.into(), text.into());
        }
    }
    Ok(Value::Object(message))
}

/// A call that the assistant made: templates take its arguments as an object.
fn tool_call(place: &str, value: &Value) -> Result<Value, ApiError> {
    let fields = Fields::at(place, value)?;
    let function = fields.object("function")?;
    let function = fields.required("function", function, "the function's name and arguments")?;
    let name = function.required("name", function.string("name")?, "the function's name")?;
    let arguments = match function.get("arguments") {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        // A model may have written what is no JSON; its template still gets to see it.
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(arguments @ Value::Object(_)) => arguments,
            Ok(_) | Err(_) => text.as_str().into(),
        },
        Some(arguments @ Value::Object(_)) => arguments.clone(),
        Some(_) => return Err(function.invalid("arguments", "must be a string that holds a JSON object")),
    };
    Ok(json!({
        "id": fields.string("id")?.unwrap_or_default(),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }))
}

/// The text of a message's content.
///
/// # Errors
/// It is neither a string nor an array of text parts.
pub fn text(place: &str, content: &Value) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .enumerate()
            .map(|(index, part)| text_part(&format!("{place}[{index}]"), part))
            .collect(),
        other => Err(super::fields::wrong(place, other, "a string or an array of text parts")),
    }
}

/// The kinds that hold text, in OpenAI's and Anthropic's APIs.
const TEXT_KINDS: &[&str] = &["text", "input_text", "output_text", "refusal"];

fn text_part(place: &str, part: &Value) -> Result<String, ApiError> {
    let fields = Fields::at(place, part)?;
    let kind = fields.required("type", fields.string("type")?, "\"text\"")?;
    if TEXT_KINDS.contains(&kind) {
        let name = if kind == "refusal" { "refusal" } else { "text" };
        return Ok(fields.required(name, fields.string(name)?, "the part's text")?.to_owned());
    }
    Err(ApiError::invalid(
        Some(place),
        format!("{place} has the type {kind:?}, and this model reads text only: leave the part out"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Value>, ApiError> {
        let Value::Object(values) = json!({"messages": value}) else { unreachable!() };
        messages(&Fields::new(values))
    }

    #[test]
    fn messages_are_read_in_every_form() {
        let read = read(json!([
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "name": "n"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
            {"role": "tool", "content": "d", "tool_call_id": "1"},
        ]));
        let calls = json!([
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}}]);
        assert_eq!(
            Value::Array(read.unwrap()),
            json!([
                {"role": "system", "content": "a"},
                {"role": "user", "content": "bc", "name": "n"},
                {"role": "assistant", "content": "", "tool_calls": calls},
                {"role": "tool", "content": "d", "tool_call_id": "1"},
            ])
        );
    }

    #[test]
    fn a_wrong_message_is_named() {
        for (value, param) in [
            (json!([]), "messages"),
            (json!("x"), "messages"),
            (json!([3]), "messages[0]"),
            (json!([{"role": "user", "content": "x"}, {"role": "king", "content": "x"}]), "messages[1].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0]"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": "x", "tool_calls": [{}]}]), "messages[0].tool_calls"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert_eq!(error.body()["error"]["param"], param, "{value}");
        }
    }
}
