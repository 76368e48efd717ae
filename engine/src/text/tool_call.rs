//! One tool call written as a JSON object, read while it is being written.
//!
//! As soon as the name is known and the arguments begin, they are passed on as they come. An object in another order is
//! read when it is complete; one that is no call at all is given back as text.

use super::json_scan::{JsonScan, string_length};
use serde_json::Value;

/// What more text of a call leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallEvent {
    /// The call's name; its arguments follow.
    Name(String),
    /// More of the arguments' JSON text.
    Arguments(String),
    /// The object was no call: its text.
    NotACall(String),
}

#[derive(Debug)]
enum State {
    /// Name and arguments are not both there yet.
    Head {
        text: String,
    },
    /// The arguments' object is being written.
    Arguments {
        scan: JsonScan,
    },
    /// What follows the arguments up to the object's end.
    Tail,
    /// Another order, or no call: read when complete.
    Whole {
        text: String,
        scan: JsonScan,
    },
    Done,
}

/// Reads one call; the text given to it begins with the opening brace.
#[derive(Debug)]
pub struct CallReader {
    state: State,
    /// Names that count as calls; any where it is `None`.
    names: Option<Vec<String>>,
}

/// What the beginning of a call's object holds.
enum Head {
    Unclear,
    Call { name: String, arguments: usize },
    Other,
}

impl CallReader {
    /// A reader; with `names`, an object with another name is text.
    pub fn new(names: Option<Vec<String>>) -> Self {
        Self { state: State::Head { text: String::new() }, names }
    }

    /// Takes text; the events, and the rest of the text where the object ends in it.
    pub fn push(&mut self, text: &str) -> (Vec<CallEvent>, Option<String>) {
        let mut events = Vec::new();
        let mut rest = text.to_owned();
        loop {
            match &mut self.state {
                State::Head { text } => {
                    text.push_str(&rest);
                    match head(text) {
                        Head::Unclear => return (events, None),
                        Head::Call { name, arguments } if self.accepts(&name) => {
                            let State::Head { text } = &mut self.state else { return (events, None) };
                            rest = text.split_off(arguments);
                            events.push(CallEvent::Name(name));
                            self.state = State::Arguments { scan: JsonScan::default() };
                        }
                        Head::Call { .. } | Head::Other => {
                            let State::Head { text } = &mut self.state else { return (events, None) };
                            rest = std::mem::take(text);
                            self.state = State::Whole { text: String::new(), scan: JsonScan::default() };
                        }
                    }
                }
                State::Arguments { scan } => {
                    let end = scan.push(&rest);
                    let after = rest.split_off(end.unwrap_or(rest.len()));
                    if !rest.is_empty() {
                        events.push(CallEvent::Arguments(rest));
                    }
                    if end.is_none() {
                        return (events, None);
                    }
                    rest = after;
                    self.state = State::Tail;
                }
                // Further keys are rare and mean nothing here; a brace in them would be rarer still.
                State::Tail => match rest.find('}') {
                    None => return (events, None),
                    Some(end) => {
                        self.state = State::Done;
                        return (events, Some(rest.split_off(end + 1)));
                    }
                },
                State::Whole { text, scan } => {
                    let end = scan.push(&rest);
                    let after = rest.split_off(end.unwrap_or(rest.len()));
                    text.push_str(&rest);
                    if end.is_none() {
                        return (events, None);
                    }
                    let text = std::mem::take(text);
                    self.state = State::Done;
                    match whole(&text).filter(|(name, _)| self.accepts(name)) {
                        Some((name, arguments)) => {
                            events.extend([CallEvent::Name(name), CallEvent::Arguments(arguments)]);
                        }
                        None => events.push(CallEvent::NotACall(text)),
                    }
                    return (events, Some(after));
                }
                State::Done => return (events, Some(rest)),
            }
        }
    }

    /// The text of an object that ends before it is complete, where nothing of it was passed on.
    pub fn finish(self) -> Option<String> {
        match self.state {
            State::Head { text } | State::Whole { text, .. } if !text.is_empty() => Some(text),
            State::Head { .. }
            | State::Whole { .. }
            | State::Arguments { .. }
            | State::Tail
            | State::Done => None,
        }
    }

    fn accepts(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|known| known == name))
    }
}

/// Reads `{"name": "...", "arguments": {` from the beginning.
fn head(text: &str) -> Head {
    read_head(text).unwrap_or(Head::Unclear)
}

/// `None` where the text is too short to tell.
fn read_head(text: &str) -> Option<Head> {
    let mut cursor = Cursor { rest: text };
    if !cursor.take(&["{"])? {
        return Some(Head::Other);
    }
    // Llama writes the type in front at times.
    if cursor.take(&["\"type\""])?
        && !(cursor.take(&[":"])? && cursor.take(&["\"function\""])? && cursor.take(&[","])?)
    {
        return Some(Head::Other);
    }
    if !(cursor.take(&["\"name\""])? && cursor.take(&[":"])?) {
        return Some(Head::Other);
    }
    let Some(name) = cursor.string()? else { return Some(Head::Other) };
    if !(cursor.take(&[","])? && cursor.take(&["\"arguments\"", "\"parameters\""])? && cursor.take(&[":"])?) {
        return Some(Head::Other);
    }
    let value = cursor.rest.trim_start();
    match value.chars().next()? {
        '{' => Some(Head::Call { name, arguments: text.len() - value.len() }),
        _ => Some(Head::Other),
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl Cursor<'_> {
    /// Whether one of these follows after white space, and then goes behind it; `None` where the text ends too early.
    fn take(&mut self, wanted: &[&str]) -> Option<bool> {
        let rest = self.rest.trim_start();
        if let Some(after) = wanted.iter().find_map(|wanted| rest.strip_prefix(wanted)) {
            self.rest = after;
            return Some(true);
        }
        if wanted.iter().any(|wanted| wanted.starts_with(rest)) { None } else { Some(false) }
    }

    /// A JSON string's text; `Some(None)` where something else follows.
    fn string(&mut self) -> Option<Option<String>> {
        let rest = self.rest.trim_start();
        if !rest.is_empty() && !rest.starts_with('"') {
            return Some(None);
        }
        let length = string_length(rest)?;
        let text = serde_json::from_str(&rest[..length]).ok();
        self.rest = &rest[length..];
        Some(text)
    }
}

/// Name and arguments of a complete object.
fn whole(text: &str) -> Option<(String, String)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let fields = value.as_object()?;
    // OpenAI's own form has the call one level deeper.
    let fields = fields.get("function").and_then(Value::as_object).unwrap_or(fields);
    let name = fields.get("name")?.as_str()?.to_owned();
    let arguments = match fields.get("arguments").or_else(|| fields.get("parameters")) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ Value::Object(_)) => value.to_string(),
        None | Some(Value::Null) => "{}".to_owned(),
        Some(_) => return None,
    };
    Some((name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text cut into pieces of this many characters, joining what comes.
    fn read(text: &str, size: usize, names: Option<&[&str]>) -> (Vec<CallEvent>, Option<String>) {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let mut reader = CallReader::new(names);
        let mut joined: Vec<CallEvent> = Vec::new();
        let characters: Vec<char> = text.chars().collect();
        let mut rest: Option<String> = None;
        for piece in characters.chunks(size) {
            let piece: String = piece.iter().collect();
            if let Some(rest) = &mut rest {
                rest.push_str(&piece);
                continue;
            }
            let (events, after) = reader.push(&piece);
            for event in events {
                match (joined.last_mut(), event) {
                    (Some(CallEvent::Arguments(text)), CallEvent::Arguments(more)) => text.push_str(&more),
                    (_, event) => joined.push(event),
                }
            }
            rest = after;
        }
        (joined, rest)
    }

    fn call(name: &str, arguments: &str) -> Vec<CallEvent> {
        vec![CallEvent::Name(name.into()), CallEvent::Arguments(arguments.into())]
    }

    #[test]
    fn calls_in_every_order_are_read_in_pieces_of_any_size() {
        for (text, events, rest) in [
            (r#"{"name": "f", "arguments": {"a": "}"}} x"#, call("f", r#"{"a": "}"}"#), " x"),
            (r#"{"name":"f","parameters":{}}"#, call("f", "{}"), ""),
            (
                r#"{ "type": "function", "name": "f", "parameters": {"b": [1]} }"#,
                call("f", r#"{"b": [1]}"#),
                "",
            ),
            (r#"{"arguments": {"a": 1}, "name": "f"}]"#, call("f", r#"{"a":1}"#), "]"),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, call("f", r#"{"a": 1}"#), ""),
            (r#"{"name": "f"}"#, call("f", "{}"), ""),
            (r#"{"type": "function", "function": {"name": "f", "arguments": {}}}"#, call("f", "{}"), ""),
            (r#"{"other": 1} "#, vec![CallEvent::NotACall(r#"{"other": 1}"#.into())], " "),
        ] {
            for size in [1, 2, 3, 7, 100] {
                assert_eq!(
                    read(text, size, None),
                    (events.clone(), Some(rest.to_owned())),
                    "{text} by {size}"
                );
            }
        }
    }

    #[test]
    fn arguments_are_passed_on_before_they_are_complete() {
        let mut reader = CallReader::new(None);
        assert_eq!(reader.push(r#"{"name": "f", "#).0, []);
        assert_eq!(
            reader.push(r#""arguments": {"a"#).0,
            [CallEvent::Name("f".into()), CallEvent::Arguments("{\"a".into())]
        );
    }

    #[test]
    fn an_object_with_an_unknown_name_is_text_where_names_are_given() {
        let text = r#"{"name": "Bob", "arguments": {"a": 1}}"#;
        let expected = (vec![CallEvent::NotACall(text.into())], Some(String::new()));
        assert_eq!(read(text, 3, Some(&["f"])), expected);
        let mut reader = CallReader::new(None);
        assert_eq!(reader.push("{\"na"), (vec![], None));
        assert_eq!(reader.finish(), Some("{\"na".to_owned()));
    }
}
