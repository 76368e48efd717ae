//! The tools that a chat request offers, and which of them the model may or must call.

use super::fields::{Fields, wrong};
use super::openai::ApiError;
use crate::text::schema::move_references;
use serde_json::{Map, Value, json};

/// Whether the model calls tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// It may not.
    None,
    /// As it likes.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// What a request offers.
#[derive(Debug, Clone)]
pub struct Tools {
    /// In OpenAI's form, as templates read them.
    list: Vec<Value>,
    /// Which may or must be called.
    pub choice: ToolChoice,
    /// Whether one answer may hold several calls.
    parallel: bool,
}

const MAX_TOOLS: usize = 128;
/// Calls that one forced answer may hold.
const MAX_FORCED_CALLS: usize = 16;

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// # Errors
    /// A tool is of the wrong form, or the choice names one that is not offered.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        for old in ["functions", "function_call"] {
            fields.refuse(old, "use tools and tool_choice")?;
        }
        let given = fields.array("tools")?.map_or(&[][..], Vec::as_slice);
        if given.len() > MAX_TOOLS {
            return Err(
                fields.invalid("tools", format!("has {} tools, and {MAX_TOOLS} are allowed", given.len()))
            );
        }
        let place = fields.path("tools");
        let tools =
            given.iter().enumerate().map(|(index, tool)| read_tool(&format!("{place}[{index}]"), tool));
        let mut list = tools.collect::<Result<Vec<_>, _>>()?;
        let choice = match fields.get("tool_choice") {
            None if list.is_empty() => ToolChoice::None,
            None => ToolChoice::Auto,
            Some(choice) if choice["type"] == "allowed_tools" => {
                allow(&Fields::at(&fields.path("tool_choice"), choice)?, &mut list)?
            }
            Some(choice) => read_choice(&fields.path("tool_choice"), choice)?,
        };
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let tools = Self { list, choice, parallel };
        match &tools.choice {
            ToolChoice::Required if tools.list.is_empty() => {
                Err(fields.invalid("tool_choice", "is \"required\", and there are no tools"))
            }
            ToolChoice::Named(name) if !tools.names().contains(name) => {
                Err(fields.invalid("tool_choice", format!("names {name:?}, which is not among the tools")))
            }
            ToolChoice::None | ToolChoice::Auto | ToolChoice::Required | ToolChoice::Named(_) => Ok(tools),
        }
    }

    /// What the template shows; `None` where no tool may be called.
    pub fn offered(&self) -> Option<Value> {
        let offered = !self.list.is_empty() && self.choice != ToolChoice::None;
        offered.then(|| Value::Array(self.list.clone()))
    }

    /// Names of the tools.
    pub fn names(&self) -> Vec<String> {
        self.list.iter().filter_map(|tool| Some(tool["function"]["name"].as_str()?.to_owned())).collect()
    }

    /// Calls that an answer may hold; the rest is dropped.
    pub fn most_calls(&self) -> usize {
        if self.parallel { usize::MAX } else { 1 }
    }

    /// The schema of an answer that must hold calls: an array of them. `None` where none must be made.
    pub fn forced_schema(&self) -> Option<Value> {
        let wanted = |name: &Value| match &self.choice {
            ToolChoice::None | ToolChoice::Auto => false,
            ToolChoice::Required => true,
            ToolChoice::Named(wanted) => name == wanted,
        };
        let mut definitions = Map::new();
        let mut calls = Vec::new();
        for (index, tool) in self.list.iter().enumerate() {
            let function = &tool["function"];
            if !wanted(&function["name"]) {
                continue;
            }
            let key = format!("tool{index}");
            let place = format!("#/$defs/{key}");
            let mut parameters = function["parameters"].clone();
            move_references(&mut parameters, &place);
            definitions.insert(key, parameters);
            calls.push(json!({
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
        }
        let most = match self.choice {
            ToolChoice::Named(_) => 1,
            _ => self.most_calls().min(MAX_FORCED_CALLS),
        };
        (!calls.is_empty()).then(|| {
            json!({"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": calls}, "$defs": definitions})
        })
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

fn read_tool(place: &str, tool: &Value) -> Result<Value, ApiError> {
    let fields = Fields::at(place, tool)?;
    if fields.required("type", fields.string("type")?, "\"function\"")? != "function" {
        return Err(fields.invalid("type", "must be \"function\": this server has no tools of its own"));
    }
    let function = fields.object("function")?;
    let function =
        fields.required("function", function, "the function's name, description and parameters")?;
    let name = function.read("name", "1 to 64 letters, digits, _, - and .", |value| {
        value.as_str().filter(|name| is_name(name))
    })?;
    let name = function.required("name", name, "the function's name")?;
    let mut written = Map::new();
    written.insert("name".into(), name.into());
    if let Some(description) = function.string("description")? {
        written.insert("description".into(), description.into());
    }
    let parameters =
        function.read("parameters", "a JSON schema", |value| value.is_object().then_some(value))?;
    let empty = json!({"type": "object", "properties": {}});
    written.insert("parameters".into(), parameters.cloned().unwrap_or(empty));
    Ok(json!({"type": "function", "function": written}))
}

/// Reads `{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}`: the other tools are not offered.
fn allow(choice: &Fields, list: &mut Vec<Value>) -> Result<ToolChoice, ApiError> {
    let allowed = choice.object("allowed_tools")?;
    let allowed = choice.required("allowed_tools", allowed, "the mode and the tools")?;
    let mode = match allowed.required("mode", allowed.string("mode")?, "\"auto\" or \"required\"")? {
        "auto" => ToolChoice::Auto,
        "required" => ToolChoice::Required,
        _ => return Err(allowed.invalid("mode", "must be \"auto\" or \"required\"")),
    };
    let tools = allowed.required("tools", allowed.array("tools")?, "the tools by their names")?;
    let place = allowed.path("tools");
    let mut names = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let ToolChoice::Named(name) = read_choice(&place, tool)? else {
            return Err(wrong(&place, tool, "{\"type\": \"function\", \"function\": {\"name\": ...}}"));
        };
        if !list.iter().any(|tool| tool["function"]["name"] == name.as_str()) {
            return Err(allowed.invalid("tools", format!("name {name:?}, which is not among the tools")));
        }
        names.push(name);
    }
    list.retain(|tool| names.iter().any(|name| tool["function"]["name"] == name.as_str()));
    Ok(mode)
}

fn read_choice(place: &str, choice: &Value) -> Result<ToolChoice, ApiError> {
    match choice {
        Value::String(word) if word == "none" => Ok(ToolChoice::None),
        Value::String(word) if word == "auto" => Ok(ToolChoice::Auto),
        Value::String(word) if word == "required" => Ok(ToolChoice::Required),
        Value::Object(_) if choice["type"] == "function" => {
            let fields = Fields::at(place, choice)?;
            let function = fields.object("function")?;
            let function = fields.required("function", function, "the function's name")?;
            let name = function.required("name", function.string("name")?, "the function's name")?;
            Ok(ToolChoice::Named(name.to_owned()))
        }
        other => {
            let expected = "\"none\", \"auto\", \"required\", {\"type\": \"function\", \"function\": {\"name\": ...}} or \
                {\"type\": \"allowed_tools\", ...}";
            Err(wrong(place, other, expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Tools, ApiError> {
        Tools::read(&Fields::new(body.as_object().unwrap().clone()))
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}}})
    }

    #[test]
    fn a_wrong_tool_is_named() {
        for (body, param) in [
            (json!({"tools": 3}), "tools"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (
                json!({"tools": [tool("f"), {"type": "function", "function": {"name": "a b"}}]}),
                "tools[1].function.name",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
                "tools[0].function.parameters",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [tool("f")], "tool_choice": "always"}), "tool_choice"),
            (
                json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
                "tool_choice",
            ),
            (json!({"tools": [tool("f")], "tool_choice": {"type": "function"}}), "tool_choice.function"),
            (json!({"tools": [tool("f")], "parallel_tool_calls": 1}), "parallel_tool_calls"),
            (
                json!({"tools": [tool("f")], "tool_choice": allowed("some", &["f"])}),
                "tool_choice.allowed_tools.mode",
            ),
            (
                json!({"tools": [tool("f")], "tool_choice": allowed("auto", &["g"])}),
                "tool_choice.allowed_tools.tools",
            ),
            (json!({"tools": [tool("f")], "tool_choice": allowed("required", &[])}), "tool_choice"),
            (
                json!({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["f"]}}}),
                "tool_choice.allowed_tools.tools[0]",
            ),
            (json!({"functions": [{}]}), "functions"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().body()["error"]["param"], param, "{body}");
        }
        assert_eq!(read(json!({"tool_choice": "auto"})).unwrap().offered(), None);
        assert_eq!(read(json!({"tools": [tool("f")], "tool_choice": "none"})).unwrap().offered(), None);
    }

    fn allowed(mode: &str, names: &[&str]) -> Value {
        let tools: Vec<Value> =
            names.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
    }

    #[test]
    fn only_allowed_tools_are_offered() {
        for (mode, choice) in [("auto", ToolChoice::Auto), ("required", ToolChoice::Required)] {
            let body = json!({"tools": [tool("f"), tool("g")], "tool_choice": allowed(mode, &["g"])});
            let tools = read(body).unwrap();
            assert_eq!((&tools.choice, tools.names()), (&choice, vec!["g".to_owned()]));
            assert_eq!(tools.forced_schema().is_some(), choice == ToolChoice::Required);
        }
    }

    #[test]
    fn a_forced_call_has_the_tools_schema_with_its_references() {
        let named = json!({"type": "function", "function": {"name": "g"}});
        let schema =
            read(json!({"tools": [tool("f"), tool("g")], "tool_choice": named})).unwrap().forced_schema();
        let schema = schema.unwrap();
        assert_eq!((&schema["minItems"], &schema["maxItems"]), (&json!(1), &json!(1)));
        let items = schema["items"]["anyOf"].as_array().unwrap();
        assert_eq!((items.len(), &items[0]["properties"]["name"]), (1, &json!({"const": "g"})));
        assert_eq!(schema["$defs"]["tool1"]["properties"]["a"]["$ref"], "#/$defs/tool1/$defs/A");
        let auto = read(json!({"tools": [tool("f")]})).unwrap();
        assert_eq!((auto.forced_schema(), auto.choice), (None, ToolChoice::Auto));
    }
}
