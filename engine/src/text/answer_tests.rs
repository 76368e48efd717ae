//! What an answer shows of its tokens, whole and resumed, over random ones.

use super::*;
use proptest::prelude::*;

fn rules(reasoning: bool, tools: Option<ToolFormat>) -> AnswerRules {
    AnswerRules {
        reasoning,
        starts_inside: false,
        tools,
        names: vec!["f".into(), "g".into(), "python".into()],
    }
}

/// The parts of a text that comes in pieces of this many characters.
fn split(rules: &AnswerRules, text: &str, size: usize) -> Vec<Part> {
    let mut parser = AnswerParser::new(rules.clone());
    let characters: Vec<char> = text.chars().collect();
    let mut parts: Vec<Part> = Vec::new();
    for piece in characters.chunks(size.max(1)) {
        parts.extend(parser.push(&piece.iter().collect::<String>()));
    }
    parts.extend(parser.finish());
    join(parts)
}

fn content(text: &str) -> Part {
    Part::Content(text.into())
}

fn thought(text: &str) -> Part {
    Part::Reasoning(text.into())
}

fn call(name: &str, arguments: &str) -> [Part; 2] {
    [Part::Call { name: name.into() }, Part::Arguments(arguments.into())]
}

fn check(rules: &AnswerRules, text: &str, expected: &[Part]) {
    for size in [1, 2, 3, 5, 8, 13, 1000] {
        assert_eq!(split(rules, text, size), expected, "{text:?} by {size}");
    }
}

#[test]
fn thoughts_are_told_from_the_answer() {
    let plain = rules(true, None);
    check(&plain, "<think>\nHm, 2.\n</think>\n\nIt is 2.\n", &[thought("Hm, 2."), content("It is 2.\n")]);
    check(&plain, "No thoughts < here", &[content("No thoughts < here")]);
    check(&plain, "<think>never ends \n", &[thought("never ends")]);
    check(&plain, "<think>\n\n</think>\n\nx", &[content("x")]);
    let inside = AnswerRules { starts_inside: true, ..plain };
    check(&inside, "a </thin b</think> c", &[thought("a </thin b"), content("c")]);
    check(&rules(false, None), "<think>x</think>", &[content("<think>x</think>")]);
}

#[test]
fn calls_of_every_family_are_read() {
    let both = [call("f", r#"{"a": 1}"#), call("g", "{}")].concat();
    for (format, text) in [
        (
            ToolFormat::Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>",
        ),
        (
            ToolFormat::Mistral,
            r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]"#,
        ),
        (ToolFormat::Llama, r#"{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}"#),
        (
            ToolFormat::Llama,
            r#"<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}"#,
        ),
        (ToolFormat::Array, r#"[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]"#),
    ] {
        check(&rules(false, Some(format)), text, &both);
    }
    check(
        &rules(false, Some(ToolFormat::Mistral)),
        r#"[TOOL_CALLS]f[ARGS]{"a": 1}"#,
        &call("f", r#"{"a": 1}"#),
    );
    let llama = rules(false, Some(ToolFormat::Llama));
    check(&llama, "<|python_tag|>f.call(q=\"a, b\")", &call("f", r#"{"q":"a, b"}"#));
    check(&llama, "<|python_tag|>print(1)", &call("python", r#"{"code":"print(1)"}"#));
}

#[test]
fn text_around_calls_stays_and_white_space_does_not() {
    let hermes = rules(true, Some(ToolFormat::Hermes));
    let text =
        "<think>let me</think>\nI look.\n\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n";
    let expected = [&[thought("let me"), content("I look.")][..], &call("f", "{}")].concat();
    check(&hermes, text, &expected);
    check(&hermes, "a <tool b\n", &[content("a <tool b\n")]);
    check(&hermes, "<tool_call>{\"name\": \"f\", \"argu", &[content("{\"name\": \"f\", \"argu")]);
    let llama = rules(false, Some(ToolFormat::Llama));
    check(&llama, "{\"name\": \"Bob\"} is {\"a\": 1}", &[content("{\"name\": \"Bob\"} is {\"a\": 1}")]);
    check(&llama, "Hello {\"name\": \"f\"}", &[content("Hello {\"name\": \"f\"}")]);
}

#[test]
fn a_forced_call_that_was_cut_is_no_content() {
    let forced = rules(false, Some(ToolFormat::Array));
    for text in ["", "[", "[{\"na", "[{\"name\": \"f\""] {
        check(&forced, text, &[]);
    }
    check(&forced, "[{\"name\": \"f\", \"arguments\": {\"a", &call("f", "{\"a"));
}

#[test]
fn the_format_comes_from_the_template() {
    for (source, expected) in [
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>", Some(ToolFormat::Hermes)),
        ("{% if tools %}[TOOL_CALLS]", Some(ToolFormat::Mistral)),
        ("{% if tools %}<|start_header_id|>", Some(ToolFormat::Llama)),
    ] {
        assert_eq!(ToolFormat::of_template(source), expected, "{source}");
    }
}

proptest! {
    /// A resumed stream feeds the same text in other pieces: the parts must not depend on the cuts.
    #[test]
    fn cutting_the_text_elsewhere_changes_nothing(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "f",
            "{\"name\": \"f\", \"arguments\": {\"a\": \"}\"}}", "{\"name\": ", "{}", "[", "]", ",", ";", " ", "\n", "é", "<", "}",
        ]), 0..12),
        reasoning: bool, starts_inside: bool, format in 0_usize..5, size in 1_usize..9,
    ) {
        let formats = [None, Some(ToolFormat::Hermes), Some(ToolFormat::Mistral), Some(ToolFormat::Llama), Some(ToolFormat::Array)];
        let rules = AnswerRules { starts_inside, ..rules(reasoning, formats[format]) };
        let text = pieces.concat();
        prop_assert_eq!(split(&rules, &text, size), split(&rules, &text, usize::MAX));
    }
}
