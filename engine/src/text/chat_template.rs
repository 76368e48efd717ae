//! The model's own chat template, in Jinja with the Hugging Face extensions.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

/// Why a conversation cannot be written as a prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the model's chat template is not valid: {0:#}")]
    Syntax(#[source] Error),
    /// The template refuses this conversation.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the model's chat template failed: {0:#}")]
    Render(#[source] Error),
}

/// A turn of a conversation, as templates see it.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// The speaker's name, where the client gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";
/// Marks errors that come from `raise_exception`, so that the client reads the template's own words.
const RAISED: &str = "raise_exception: ";

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the special tokens' texts.
    ///
    /// # Errors
    /// It is not valid Jinja.
    pub fn compile(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(TemplateError::Syntax)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(TemplateError::Syntax)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Writes a conversation as a prompt that the assistant goes on from.
    ///
    /// # Errors
    /// The template refuses the conversation or fails.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(TemplateError::Render)?;
        let values = context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(values).map_err(|error| {
            match error.detail().and_then(|text| text.strip_prefix(RAISED)) {
                Some(words) => TemplateError::Refused(words.to_owned()),
                None => TemplateError::Render(error),
            }
        })
    }
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it: templates were written against its spacing.
fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonFormatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// `{"a": 1, "b": 2}`.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let message =
            |role: &str, content: &str| Message { role: role.into(), content: content.into(), name: None };
        let messages = [message("user", " Hi <b> "), message("assistant", "Yo")];
        ChatTemplate::compile(source, "<s>", "</s>")?.render(&messages)
    }

    #[test]
    fn templates_of_the_hub_render_as_there() {
        for (source, expected) in [
            (
                "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[INST] {{ m['content'].strip() }} [/INST]\n  {% else %}\n{{ m.content + eos_token }}\n  {% endif %}\n{% endfor %}",
                "<s>[INST] Hi <b> [/INST]\nYo</s>\n",
            ),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " Hi <b> "}"#),
            ("{{ messages[1:] | length }}{{ tools is defined }}{{ strftime_now('%Y') | length }}", "1False4"),
            ("{% if add_generation_prompt %}go{% endif %}{{ messages[0].content.upper() }}", "go HI <B> "),
        ] {
            assert_eq!(render(source).unwrap(), expected);
        }
    }

    #[test]
    fn a_refusal_carries_the_templates_words() {
        let message = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert_eq!(message, "the model's chat template refuses these messages: roles must alternate");
        assert!(matches!(render("{% if %}"), Err(TemplateError::Syntax(_))));
        assert!(matches!(render("{{ nothing.at.all }}"), Err(TemplateError::Render(_))));
    }
}
