//! Tools for models whose chat template knows none: the offer goes into the system message, calls and results into the
//! turns' text, in the `<tool_call>` form that most models have met.

use super::template_json::python_json;
use serde_json::{Value, json};

/// Writes tools, calls and results into plain messages.
pub fn write_into(messages: &mut Vec<Value>, tools: Option<&Value>) {
    let mut written: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for message in messages.drain(..) {
        let text = message["content"].as_str().unwrap_or_default();
        let calls = message["tool_calls"].as_array().filter(|calls| !calls.is_empty());
        if let Some(calls) = calls {
            let mut text = text.to_owned();
            for call in calls {
                let call =
                    json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("<tool_call>{}</tool_call>", python_json(&call)));
            }
            written.push(json!({"role": "assistant", "content": text}));
        } else if message["role"] == "tool" {
            let result = format!("<tool_response>\n{text}\n</tool_response>");
            // Many templates insist on turns that alternate: results of parallel calls share one.
            match written.last_mut().filter(|last| last["tool_results"] == true) {
                Some(last) => {
                    let joined = format!("{}\n{result}", last["content"].as_str().unwrap_or_default());
                    last["content"] = joined.into();
                }
                None => written.push(json!({"role": "user", "content": result, "tool_results": true})),
            }
        } else {
            written.push(message);
        }
    }
    if let Some(tools) = tools.and_then(Value::as_array) {
        let offer = offer(tools);
        match written.first_mut().filter(|first| first["role"] == "system") {
            Some(system) => {
                let joined = format!("{}\n\n{offer}", system["content"].as_str().unwrap_or_default());
                system["content"] = joined.into();
            }
            None => written.insert(0, json!({"role": "system", "content": offer})),
        }
    }
    *messages = written;
}

fn offer(tools: &[Value]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| python_json(&tool["function"])).collect();
    format!(
        "These functions are at your service, one JSON object a line:\n<tools>\n{}\n</tools>\nWhere one of them helps, \
         answer with a call and nothing else, as a JSON object in tags:\n<tool_call>{{\"name\": \"the function's \
         name\", \"arguments\": {{its arguments}}}}</tool_call>\nIts result comes back in <tool_response> tags. \
         Otherwise answer in plain words.",
        list.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_results_become_text_and_results_share_a_turn() {
        let mut messages = vec![
            json!({"role": "user", "content": "weather?"}),
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g", "arguments": {}}}]}),
            json!({"role": "tool", "content": "5", "tool_call_id": "x"}),
            json!({"role": "tool", "content": "6", "tool_call_id": "y"}),
        ];
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        write_into(&mut messages, Some(&tools));
        let shown: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(shown, ["system", "user", "assistant", "user"]);
        assert!(messages[0]["content"].as_str().unwrap().contains(r#"{"name": "f"}"#));
        assert_eq!(
            messages[2]["content"],
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>"
        );
        assert_eq!(
            messages[3]["content"],
            "<tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>"
        );
    }
}
