//! `/v1/chat/completions`.

use super::fields::Fields;
use super::generate::Generation;
use super::openai::ApiError;
use super::reply::{Format, InFlight, reply};
use super::{App, Engine};
use crate::text::chat_template::{Message, TemplateError};
use axum::response::Response;
use serde_json::{Map, Value, json};

/// The chat API's objects.
struct Chat;

impl Format for Chat {
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn choice(text: &str, finish: &str) -> Value {
        let message = json!({"role": "assistant", "content": text});
        json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish})
    }

    fn chunk_choice(text: &str, finish: Option<&str>, first: bool) -> Value {
        let delta = match (first, finish) {
            (true, _) => json!({"role": "assistant", "content": text}),
            (false, None) => json!({"content": text}),
            (false, Some(_)) => json!({}),
        };
        json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish})
    }
}

/// Answers a chat request.
pub async fn answer(
    app: &App,
    engine: &Engine,
    fields: Fields,
    in_flight: InFlight,
) -> Result<Response, ApiError> {
    let common = fields.common(None)?;
    for feature in ["tools", "functions"] {
        fields.refuse(feature, "leave it out")?;
    }
    if let Some(choice) =
        fields.get("tool_choice").filter(|choice| !["none", "auto"].map(Value::from).contains(choice))
    {
        return Err(ApiError::invalid(
            Some("tool_choice"),
            format!("tool_choice is {choice}, and there are no tools"),
        ));
    }
    let messages = messages(fields.get("messages"))?;
    let template = engine.template.as_ref().ok_or_else(|| {
        ApiError::invalid(Some("messages"), "this model has no chat template: use /v1/completions instead")
    })?;
    let prompt = template.render(&messages).map_err(|error| match error {
        TemplateError::Refused(_) => ApiError::invalid(Some("messages"), error.to_string()),
        TemplateError::Syntax(_) | TemplateError::Render(_) => {
            // A template trips over input it was not written for far more often than over itself.
            ApiError::invalid(Some("messages"), error.to_string())
        }
    })?;
    let generation = Generation::start(app, engine, prompt, "messages", &common).await?;
    reply::<Chat>(generation, common, in_flight).await
}

fn messages(value: Option<&Value>) -> Result<Vec<Message>, ApiError> {
    let wrong = |text: &str| ApiError::invalid(Some("messages"), text);
    let list = value.ok_or_else(|| wrong("messages is missing: give an array of messages"))?;
    let list = list.as_array().ok_or_else(|| wrong("messages must be an array"))?;
    if list.is_empty() {
        return Err(wrong("messages is empty: give at least one message"));
    }
    list.iter().enumerate().map(|(index, value)| message(index, value)).collect()
}

fn message(index: usize, value: &Value) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    let wrong = |field: &str, expected: &str| {
        let param = format!("{place}.{field}");
        ApiError::invalid(Some(&param), format!("{param} must be {expected}"))
    };
    let fields = value.as_object();
    let fields =
        fields.ok_or_else(|| ApiError::invalid(Some(&place), format!("{place} must be an object")))?;
    let roles = ["system", "developer", "user", "assistant", "tool"];
    let role = fields.get("role").and_then(Value::as_str).filter(|role| roles.contains(role));
    let role = role.ok_or_else(|| wrong("role", "one of system, developer, user, assistant and tool"))?;
    if fields.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty()) {
        return Err(ApiError::unsupported(&format!("{place}.tool_calls"), "leave it out"));
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(part, value)| text_part(&format!("{place}.content[{part}]"), value.as_object()))
            .collect::<Result<String, _>>()?,
        None | Some(Value::Null) if role == "assistant" => String::new(),
        _ => return Err(wrong("content", "a string or an array of text parts")),
    };
    // Templates know OpenAI's newer word for "system" rarely.
    let role = if role == "developer" { "system" } else { role };
    let name = fields.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(Message { role: role.to_owned(), content, name })
}

fn text_part(place: &str, part: Option<&Map<String, Value>>) -> Result<String, ApiError> {
    let kind = part.and_then(|part| part.get("type")).and_then(Value::as_str);
    match (kind, part.and_then(|part| part.get("text")).and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text") | None, _) => Err(ApiError::invalid(
            Some(place),
            format!("{place} must be {{\"type\": \"text\", \"text\": \"...\"}}"),
        )),
        (Some(kind), _) => Err(ApiError::invalid(
            Some(place),
            format!("{place} has the type {kind:?}, and this model reads text only"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_in_every_form() {
        let value = json!([
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "name": "n"},
            {"role": "assistant", "content": null},
        ]);
        let read = messages(Some(&value)).unwrap();
        let shown: Vec<_> =
            read.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        assert_eq!(shown, [("system", "a"), ("user", "bc"), ("assistant", "")]);
    }

    #[test]
    fn a_wrong_message_is_named() {
        for (value, param) in [
            (json!([]), "messages"),
            (json!("x"), "messages"),
            (json!([3]), "messages[0]"),
            (json!([{"role": "user", "content": "x"}, {"role": "king", "content": "x"}]), "messages[1].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0]"),
        ] {
            let error = messages(Some(&value)).unwrap_err();
            assert_eq!(error.body()["error"]["param"], param, "{value}");
        }
    }
}
