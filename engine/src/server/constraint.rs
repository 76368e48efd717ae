//! What a whole answer must hold to: OpenAI's `response_format`, and the fields that vLLM and llama.cpp have for it.
//!
//! One of them may be given; a form that cannot be held to is refused by its field, never left out.

use super::Engine;
use super::fields::Fields;
use super::openai::ApiError;
use crate::text::gbnf;
use crate::text::grammar::{Grammar, Language};
use crate::text::schema::close_objects;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// What an answer must hold to, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Constraint {
    /// Path of the field.
    pub place: String,
    /// The texts that are allowed.
    pub language: Language,
}

/// Forms from here on are compiled one at a time: the longest take seconds and hundreds of megabytes.
const LONG_BYTES: usize = 8 << 10;

/// vLLM's and llama.cpp's fields at the top of a body, and the form that each gives.
const FIELDS: &[(&str, Form)] = &[
    ("guided_json", Form::Schema),
    ("guided_regex", Form::Regex),
    ("guided_choice", Form::Choice),
    ("guided_grammar", Form::Grammar),
    ("guided_json_object", Form::Object),
    ("json_schema", Form::Schema),
    ("grammar", Form::Grammar),
];
/// The same within vLLM's `structured_outputs`.
const STRUCTURED: &[(&str, Form)] = &[
    ("json", Form::Schema),
    ("regex", Form::Regex),
    ("choice", Form::Choice),
    ("grammar", Form::Grammar),
    ("json_object", Form::Object),
];

#[derive(Debug, Clone, Copy)]
enum Form {
    Schema,
    Regex,
    Choice,
    Grammar,
    Object,
}

/// Reads what the answer must hold to, if anything.
///
/// # Errors
/// A field is of the wrong form, asks for something that cannot be held to, or is one of several.
pub fn read(fields: &Fields) -> Result<Option<Constraint>, ApiError> {
    for (name, remedy) in [
        ("guided_whitespace_pattern", "leave it out: white space between tokens is up to 16 characters"),
        ("structural_tag", "use tools, or a grammar"),
    ] {
        fields.refuse(name, remedy)?;
    }
    let mut found = Vec::new();
    found.extend(response_format(fields)?);
    collect(fields, FIELDS, &mut found)?;
    if let Some(structured) = fields.object("structured_outputs")? {
        for (name, remedy) in [
            ("structural_tag", "use tools, or a grammar"),
            ("whitespace_pattern", "leave it out: white space between tokens is up to 16 characters"),
            ("disable_any_whitespace", "leave it out: white space between tokens is up to 16 characters"),
        ] {
            structured.refuse(name, remedy)?;
        }
        let before = found.len();
        collect(&structured, STRUCTURED, &mut found)?;
        if found.len() == before {
            return Err(
                fields.invalid("structured_outputs", "needs json, regex, choice, grammar or json_object")
            );
        }
    }
    if let [first, second, ..] = found.as_slice() {
        let message = format!("{} comes besides {}: an answer holds to one form", second.place, first.place);
        return Err(ApiError::invalid(Some(&second.place), message));
    }
    Ok(found.pop())
}

fn collect(fields: &Fields, forms: &[(&str, Form)], found: &mut Vec<Constraint>) -> Result<(), ApiError> {
    for (name, form) in forms {
        if let Some(language) = language(fields, name, *form)? {
            found.push(Constraint { place: fields.path(name), language });
        }
    }
    Ok(())
}

fn language(fields: &Fields, name: &str, form: Form) -> Result<Option<Language>, ApiError> {
    let text = || Ok(fields.string(name)?.filter(|text| !text.trim().is_empty()));
    Ok(match form {
        Form::Schema => fields.read(name, "a JSON schema", schema)?.map(Language::Json),
        Form::Regex => text()?.map(|regex| Language::Regex(regex.to_owned())),
        Form::Object => {
            fields.bool(name)?.filter(|on| *on).map(|_| Language::Json(json!({"type": "object"})))
        }
        Form::Choice => {
            let choices = fields.read(name, "an array of texts to choose from", |value| {
                let choices = value.as_array()?.iter().map(|choice| Some(choice.as_str()?.to_owned()));
                choices.collect::<Option<Vec<_>>>().filter(|choices| !choices.is_empty())
            })?;
            choices.map(Language::Choice)
        }
        Form::Grammar => match text()? {
            None => None,
            // What llama.cpp takes, and vLLM too; Lark's rules have a single colon.
            Some(grammar) if grammar.contains("::=") => {
                let lark = gbnf::to_lark(grammar);
                Some(Language::Lark(lark.map_err(|error| fields.invalid(name, error.to_string()))?))
            }
            Some(grammar) => Some(Language::Lark(grammar.to_owned())),
        },
    })
}

/// A schema, which vLLM's clients also send as text.
fn schema(value: &Value) -> Option<Value> {
    match value {
        Value::Object(_) | Value::Bool(_) => Some(value.clone()),
        Value::String(text) => serde_json::from_str(text)
            .ok()
            .filter(|schema: &Value| !schema.is_string())
            .and_then(|value| schema(&value)),
        _ => None,
    }
}

fn response_format(fields: &Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let known = "text, json_object or json_schema";
    let language = match format.required("type", format.string("type")?, known)? {
        "text" => return Ok(None),
        // llama.cpp's form of a schema.
        "json_object" => {
            let given = format.read("schema", "a JSON schema", schema)?;
            Language::Json(given.unwrap_or_else(|| json!({"type": "object"})))
        }
        "json_schema" => {
            let given = format.object("json_schema")?;
            let given = format.required("json_schema", given, "the schema's name and schema")?;
            let schema = given.read("schema", "a JSON schema", |value| {
                (value.is_object() || value.is_boolean()).then_some(value)
            })?;
            Language::Json(given.required("schema", schema.cloned(), "a JSON schema")?)
        }
        _ => return Err(format.invalid("type", format!("must be {known}"))),
    };
    Ok(Some(Constraint { place: fields.path("response_format"), language }))
}

impl Constraint {
    /// Compiles it, off the threads that serve others.
    ///
    /// # Errors
    /// It cannot be held to.
    pub async fn compile(self, engine: &Engine) -> Result<Grammar, ApiError> {
        let Self { place, mut language } = self;
        if let Language::Json(schema) = &mut language {
            close_objects(schema);
        }
        let long = language.byte_count() >= LONG_BYTES;
        let turn = if long { Some(engine.encoder.turn().await?) } else { None };
        let (tell, compiled) = oneshot::channel();
        let started = engine.grammars.clone().compile(language, move |compiled| {
            // Nobody is told where the client has left.
            let _ = tell.send(compiled);
            drop(turn);
        });
        started.map_err(|error| ApiError::internal(error.to_string()))?;
        let compiled = compiled.await.map_err(|error| ApiError::internal(error.to_string()))?;
        match compiled {
            Ok(grammar) => Ok(grammar.at(place)),
            Err(error) => Err(ApiError::invalid(Some(&place), format!("{place}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Option<Constraint>, ApiError> {
        read(&Fields::new(body.as_object().unwrap().clone()))
    }

    #[test]
    fn the_answers_form_is_read_from_every_field() {
        let object = || json!({"type": "object"});
        let json = |schema: Value| Language::Json(schema);
        for (body, place, language) in [
            (json!({"response_format": {"type": "json_object"}}), "response_format", json(object())),
            (
                json!({"response_format": {"type": "json_object", "schema": {"type": "integer"}}}),
                "response_format",
                json(json!({"type": "integer"})),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": true}}}),
                "response_format",
                json(json!(true)),
            ),
            (json!({"guided_json": {"a": 1}}), "guided_json", json(json!({"a": 1}))),
            (
                json!({"guided_json": "{\"a\": 1}", "guided_choice": null}),
                "guided_json",
                json(json!({"a": 1})),
            ),
            (json!({"guided_json_object": true}), "guided_json_object", json(object())),
            (json!({"guided_regex": "a+"}), "guided_regex", Language::Regex("a+".into())),
            (
                json!({"guided_choice": ["a", "b"]}),
                "guided_choice",
                Language::Choice(vec!["a".into(), "b".into()]),
            ),
            (
                json!({"guided_grammar": "start: \"a\""}),
                "guided_grammar",
                Language::Lark("start: \"a\"".into()),
            ),
            (json!({"json_schema": {}, "grammar": ""}), "json_schema", json(json!({}))),
            (
                json!({"structured_outputs": {"choice": ["x"], "json": null}}),
                "structured_outputs.choice",
                Language::Choice(vec!["x".into()]),
            ),
        ] {
            let expected = Constraint { place: place.into(), language };
            assert_eq!(parse(body.clone()).unwrap(), Some(expected), "{body}");
        }
        for none in
            [json!({}), json!({"response_format": {"type": "text"}}), json!({"guided_json_object": false})]
        {
            assert_eq!(parse(none.clone()).unwrap(), None, "{none}");
        }
    }

    #[test]
    fn a_wrong_form_is_named() {
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_object", "schema": 3}}), "response_format.schema"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": "no schema"}), "guided_json"),
            (json!({"guided_json": "\"{}\""}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": [1]}), "guided_choice"),
            (json!({"guided_regex": 1}), "guided_regex"),
            (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
            (json!({"grammar": "root ::= other"}), "grammar"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"structural_tag": "{}"}}), "structured_outputs.structural_tag"),
            (json!({"structured_outputs": {"regex": []}}), "structured_outputs.regex"),
            (
                json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
                "structured_outputs.regex",
            ),
            (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex"),
        ] {
            assert_eq!(parse(body.clone()).unwrap_err().body()["error"]["param"], param, "{body}");
        }
    }
}
