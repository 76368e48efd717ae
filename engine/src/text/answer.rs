//! Splits an answer into reasoning, content and tool calls while it is being written.
//!
//! A pure function of the text so far: cutting the text elsewhere gives the same parts, so a stream that is resumed
//! goes on where it broke. Whole answers and streams share it.

use super::builtin_call::builtin;
use super::tool_call::{CallEvent, CallReader};

/// How a model family writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{...}</tool_call>` (Hermes, Qwen).
    Hermes,
    /// `[TOOL_CALLS][{...}, {...}]`, or `[TOOL_CALLS]name[ARGS]{...}` (Mistral).
    Mistral,
    /// `{"name": ..., "parameters": {...}}` as the whole answer, also behind `<|python_tag|>` (Llama 3).
    Llama,
    /// A JSON array of calls and nothing else: what this engine's grammar forces.
    Array,
}

impl ToolFormat {
    /// The format that a chat template shows its model; `None` where the template knows no tools.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        Some(if source.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if source.contains("<|python_tag|>") || source.contains("<|start_header_id|>") {
            Self::Llama
        } else {
            Self::Hermes
        })
    }
}

/// What an answer is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Thoughts before the answer.
    Reasoning(String),
    /// The answer.
    Content(String),
    /// A call begins.
    Call {
        /// The function's name.
        name: String,
    },
    /// More of the last call's arguments, as JSON text.
    Arguments(String),
}

/// How to read an answer.
#[derive(Debug, Clone, Default)]
pub struct AnswerRules {
    /// Whether the model thinks aloud in `<think>` tags.
    pub reasoning: bool,
    /// Whether the prompt ends within the thoughts already.
    pub starts_inside: bool,
    /// How calls are written, where tools are offered.
    pub tools: Option<ToolFormat>,
    /// Names of the offered tools.
    pub names: Vec<String>,
}

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";

/// Texts that mean something here though models may have them as control tokens, which otherwise never show.
pub const MARKERS: &[&str] =
    &[THINK, THINK_END, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"];

#[derive(Debug)]
enum State {
    /// The answer may begin with thoughts.
    Start,
    Thoughts,
    Text,
    Call(CallReader),
    /// After a call: a separator, another call, or the end of the calls.
    Between,
    /// Mistral's newer form: the name of a function.
    Name(String),
    /// Mistral's newer form: its arguments' object.
    Arguments(super::json_scan::JsonScan),
    /// Llama's built-in tools: read when complete.
    Python(String),
}

/// Splits one answer.
#[derive(Debug)]
pub struct AnswerParser {
    rules: AnswerRules,
    state: State,
    held: String,
    /// Whether content was given out.
    spoke: bool,
    called: bool,
}

/// Whether more can be done with the text at hand.
enum Step {
    Again,
    Wait,
}

impl AnswerParser {
    /// A parser at the beginning of an answer.
    pub fn new(rules: AnswerRules) -> Self {
        let state = match (rules.reasoning, rules.starts_inside) {
            (true, true) => State::Thoughts,
            (true, false) => State::Start,
            (false, _) => State::Text,
        };
        Self { rules, state, held: String::new(), spoke: false, called: false }
    }

    /// Whether what comes now are thoughts.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thoughts)
    }

    /// Whether the answer calls a tool.
    pub fn has_calls(&self) -> bool {
        self.called
    }

    /// Takes text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        if self.rules.tools.is_none()
            && matches!(self.state, State::Text)
            && (self.spoke || !self.rules.reasoning)
        {
            return if text.is_empty() { Vec::new() } else { vec![Part::Content(text.to_owned())] };
        }
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Step::Again = self.step(&mut parts) {}
        join(parts)
    }

    /// What was held back, when no text follows.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match std::mem::replace(&mut self.state, State::Text) {
            State::Thoughts => parts.push(Part::Reasoning(held.trim_end().to_owned())),
            State::Start | State::Text => parts.push(Part::Content(held)),
            State::Call(reader) => parts.extend(reader.finish().map(Part::Content)),
            State::Python(code) => self.python(&(code + &held), &mut parts),
            State::Name(name) => parts.push(Part::Content(name + &held)),
            State::Between | State::Arguments(_) => {}
        }
        // The beginning of a call that was forced and cut is nothing that the model says.
        if self.rules.tools == Some(ToolFormat::Array) {
            parts.clear();
        }
        // White space around calls is no content.
        parts.retain(|part| !matches!(part, Part::Content(text) if self.called && text.trim().is_empty()));
        join(parts)
    }

    fn step(&mut self, parts: &mut Vec<Part>) -> Step {
        match &mut self.state {
            State::Start => {
                let begun = self.held.trim_start();
                if let Some(after) = begun.strip_prefix(THINK) {
                    self.held = after.to_owned();
                    self.state = State::Thoughts;
                } else if THINK.starts_with(begun) {
                    return Step::Wait;
                } else {
                    self.state = State::Text;
                }
                Step::Again
            }
            State::Thoughts => self.thoughts(parts),
            State::Text => self.text(parts),
            State::Call(reader) => {
                let (events, rest) = reader.push(&std::mem::take(&mut self.held));
                for event in events {
                    match event {
                        CallEvent::Name(name) => {
                            self.called = true;
                            parts.push(Part::Call { name });
                        }
                        CallEvent::Arguments(text) => parts.push(Part::Arguments(text)),
                        CallEvent::NotACall(text) => parts.push(Part::Content(text)),
                    }
                }
                let Some(rest) = rest else { return Step::Wait };
                self.held = rest;
                // An answer of Llama's that turned out to be no call is text to its end.
                let text = self.rules.tools == Some(ToolFormat::Llama) && !self.called;
                self.spoke |= text;
                self.state = if text { State::Text } else { State::Between };
                Step::Again
            }
            State::Between => self.between(),
            State::Name(name) => {
                let Some(end) = self.held.find(['{', '[']) else {
                    name.push_str(&std::mem::take(&mut self.held));
                    return Step::Wait;
                };
                if "[ARGS]".starts_with(&self.held[end..]) {
                    return Step::Wait;
                }
                name.push_str(&self.held[..end]);
                self.held = self.held[end..].trim_start_matches("[ARGS]").to_owned();
                if self.held.is_empty() {
                    return Step::Wait;
                }
                parts.push(Part::Call { name: name.trim().to_owned() });
                self.called = true;
                self.state = State::Arguments(super::json_scan::JsonScan::default());
                Step::Again
            }
            State::Arguments(scan) => {
                let end = scan.push(&self.held);
                let after = self.held.split_off(end.unwrap_or(self.held.len()));
                let text = std::mem::replace(&mut self.held, after);
                if !text.is_empty() {
                    parts.push(Part::Arguments(text));
                }
                if end.is_none() {
                    return Step::Wait;
                }
                self.state = State::Between;
                Step::Again
            }
            State::Python(code) => {
                code.push_str(&std::mem::take(&mut self.held));
                Step::Wait
            }
        }
    }

    fn thoughts(&mut self, parts: &mut Vec<Part>) -> Step {
        if let Some(end) = self.held.find(THINK_END) {
            let thoughts = self.held[..end].trim_end();
            parts.push(Part::Reasoning(self.lead(thoughts).to_owned()));
            self.held = self.held[end + THINK_END.len()..].to_owned();
            // What follows the thoughts begins without the line breaks between them.
            self.spoke = false;
            self.state = State::Text;
            return Step::Again;
        }
        // White space at the end belongs to the thoughts only where they go on.
        let safe = self.held.len() - beginning(&self.held, &[THINK_END]);
        let safe = self.held[..safe].trim_end().len();
        let rest = self.held.split_off(safe);
        let text = self.lead(&self.held).to_owned();
        self.held = rest;
        if !text.is_empty() {
            self.spoke = true;
            parts.push(Part::Reasoning(text));
        }
        Step::Wait
    }

    /// Text without the white space before the first word.
    fn lead<'a>(&self, text: &'a str) -> &'a str {
        if self.spoke { text } else { text.trim_start() }
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> Step {
        if self.rules.reasoning && !self.spoke {
            self.held = self.held.trim_start().to_owned();
        }
        let markers: &[&str] = match self.rules.tools {
            None => &[],
            Some(ToolFormat::Hermes) => &["<tool_call>"],
            Some(ToolFormat::Mistral) => &["[TOOL_CALLS]"],
            Some(ToolFormat::Llama) => &["<|python_tag|>"],
            Some(ToolFormat::Array) => {
                let begun = self.held.trim_start();
                if begun.is_empty() {
                    return Step::Wait;
                }
                self.held = begun.strip_prefix('[').unwrap_or(begun).to_owned();
                self.state = State::Between;
                return Step::Again;
            }
        };
        if self.rules.tools == Some(ToolFormat::Llama) && !self.spoke {
            let begun = self.held.trim_start();
            if begun.is_empty() {
                return Step::Wait;
            }
            if begun.starts_with('{') {
                self.held = begun.to_owned();
                self.state = State::Call(CallReader::new(Some(self.rules.names.clone())));
                return Step::Again;
            }
        }
        let found = markers.iter().filter_map(|marker| Some((self.held.find(marker)?, marker.len()))).min();
        if let Some((at, length)) = found {
            let before = self.held[..at].trim_end();
            if !before.is_empty() {
                parts.push(Part::Content(before.to_owned()));
            }
            self.held = self.held[at + length..].to_owned();
            self.state = State::Between;
            return Step::Again;
        }
        let mut safe = self.held.len() - beginning(&self.held, markers);
        if !markers.is_empty() {
            safe = self.held[..safe].trim_end().len();
        }
        let rest = self.held.split_off(safe);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            self.spoke = true;
            parts.push(Part::Content(text));
        }
        Step::Wait
    }

    /// Behind a marker or a call: finds what comes next.
    fn between(&mut self) -> Step {
        let begun = self.held.trim_start();
        let Some(first) = begun.chars().next() else { return Step::Wait };
        match (self.rules.tools, first) {
            (_, '{') => {
                self.held = begun.to_owned();
                self.state = State::Call(CallReader::new(None));
            }
            (Some(ToolFormat::Mistral | ToolFormat::Array), '[' | ',' | ']')
            | (Some(ToolFormat::Llama), ';' | ',') => self.held = begun[first.len_utf8()..].to_owned(),
            (Some(ToolFormat::Hermes), '<') if "</tool_call>".starts_with(begun) && begun.len() < 12 => {
                return Step::Wait;
            }
            (Some(ToolFormat::Hermes), '<') if begun.starts_with("</tool_call>") => {
                self.held = begun["</tool_call>".len()..].to_owned();
                self.state = State::Text;
                self.spoke = true;
            }
            (Some(ToolFormat::Mistral), _) if !self.called && (first.is_alphabetic() || first == '_') => {
                self.held = begun.to_owned();
                self.state = State::Name(String::new());
            }
            (Some(ToolFormat::Llama), _) if !self.called => {
                self.state = State::Python(std::mem::take(&mut self.held));
                return Step::Wait;
            }
            _ => {
                self.spoke = true;
                self.state = State::Text;
                // A forced array has nothing after it.
                if self.rules.tools == Some(ToolFormat::Array) {
                    self.rules.tools = None;
                }
            }
        }
        Step::Again
    }

    /// `name.call(key="value")` of Llama's built-in tools, or code for an interpreter.
    fn python(&mut self, code: &str, parts: &mut Vec<Part>) {
        let known = |name: &str| self.rules.names.iter().any(|known| known == name);
        let interpreter = ["code_interpreter", "python", "ipython"].into_iter().find(|name| known(name));
        let call = builtin(code).filter(|(name, _)| known(name));
        let call =
            call.or_else(|| Some((interpreter?.to_owned(), serde_json::json!({"code": code}).to_string())));
        match call {
            Some((name, arguments)) => {
                self.called = true;
                parts.extend([Part::Call { name }, Part::Arguments(arguments)]);
            }
            None => parts.push(Part::Content(code.to_owned())),
        }
    }
}

/// Length of the longest end of `text` that may become one of these.
pub(super) fn beginning(text: &str, wanted: &[&str]) -> usize {
    let longest = |wanted: &&str| {
        let mut lengths = wanted.char_indices().map(|(at, _)| at).rev();
        lengths.find(|length| text.ends_with(&wanted[..*length])).unwrap_or(0)
    };
    wanted.iter().map(longest).max().unwrap_or(0)
}

/// Joins neighbours of a kind and drops empty ones.
fn join(parts: Vec<Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Reasoning(text)), Part::Reasoning(more))
            | (Some(Part::Content(text)), Part::Content(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
            (_, Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text)) if text.is_empty() => {}
            (_, part) => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
