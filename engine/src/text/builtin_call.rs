//! Calls of Llama's built-in tools, which it writes as Python.

use super::json_scan::string_length;

/// Reads `brave_search.call(query="...")`: the name, and the arguments as JSON.
pub fn builtin(code: &str) -> Option<(String, String)> {
    let (name, rest) = code.trim().split_once(".call(")?;
    let mut rest = rest.strip_suffix(')')?.trim();
    let mut arguments = serde_json::Map::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=')?;
        let length = string_length(value)?;
        arguments.insert(key.trim().to_owned(), serde_json::from_str(&value[..length]).ok()?);
        rest = value[length..].trim_start().trim_start_matches(',').trim_start();
    }
    Some((name.to_owned(), serde_json::Value::Object(arguments).to_string()))
}
