//! The model's own chat template, in Jinja with the Hugging Face extensions.
//!
//! Templates were written against Python's Jinja as Hugging Face sets it up; what they rely on is here:
//! `raise_exception`, `strftime_now`, `tojson` in Python's spacing, `{% generation %}` blocks (which mark text for
//! training and mean nothing here), Python's string and dict methods, loop controls.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Map;

use super::template_json::to_json;

/// Why a conversation cannot be written as a prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template is not valid: {0:#}")]
    Syntax(#[source] Error),
    /// The template refuses this conversation.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the model's chat template failed: {0:#}")]
    Render(#[source] Error),
    /// The last message's text is not in the prompt as it is.
    #[error("the model's chat template rewrites the last message, so that the answer cannot go on from it")]
    NoPrefill,
}

/// A conversation, as templates see it.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// The messages, each an object with at least `role` and `content`.
    pub messages: Vec<serde_json::Value>,
    /// The offered tools in OpenAI's form; `None` where there are none.
    pub tools: Option<serde_json::Value>,
    /// Further variables.
    pub variables: Map<String, serde_json::Value>,
    /// The answer goes on from the last message, which is the assistant's, instead of beginning a new one.
    pub continue_last: bool,
    /// Whether the prompt ends with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
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
        let compiled = without_generation_tags(source);
        environment.add_template_owned(NAME, compiled).map_err(TemplateError::Syntax)?;
        Ok(Self { environment, source: source.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes a conversation as a prompt that the assistant goes on from.
    ///
    /// # Errors
    /// The template refuses the conversation or fails.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let Conversation { messages, tools, variables, continue_last, add_generation_prompt } = conversation;
        let mut values = variables.clone();
        let mut set = |name: &str, value: serde_json::Value| values.insert(name.to_owned(), value);
        set("messages", serde_json::Value::Array(messages.clone()));
        set("add_generation_prompt", (*add_generation_prompt && !continue_last).into());
        set("bos_token", self.bos.as_str().into());
        set("eos_token", self.eos.as_str().into());
        if let Some(tools) = tools {
            set("tools", tools.clone());
        }
        let template = self.environment.get_template(NAME).map_err(TemplateError::Render)?;
        let mut prompt = template.render(Serde(values)).map_err(|error| {
            match error.detail().and_then(|text| text.strip_prefix(RAISED)) {
                Some(words) => TemplateError::Refused(words.to_owned()),
                None => TemplateError::Render(error),
            }
        })?;
        if *continue_last {
            // Templates close the last turn; what they put behind its text is cut off, as in Hugging Face's own
            // `continue_final_message`.
            let text = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
            let found =
                [text, text.trim()].into_iter().find_map(|text| Some(prompt.rfind(text)? + text.len()));
            prompt.truncate(found.ok_or(TemplateError::NoPrefill)?);
        }
        Ok(prompt)
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by blocks that change nothing and trim white space alike.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}").map(|at| at + 2) else { break };
        let tag = &rest[start..start + length];
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out.push_str(&rest[..start]);
        out.push_str(&if replacement == word { tag.to_owned() } else { tag.replacen(word, replacement, 1) });
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conversation() -> Conversation {
        Conversation {
            messages: vec![
                json!({"role": "user", "content": " Hi <b> "}),
                json!({"role": "assistant", "content": "Yo"}),
            ],
            add_generation_prompt: true,
            ..Conversation::default()
        }
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        ChatTemplate::compile(source, "<s>", "</s>")?.render(&conversation())
    }

    #[test]
    fn templates_of_the_hub_render_as_there() {
        for (source, expected) in [
            (
                "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[INST] {{ m['content'].strip() }} [/INST]\n  {% else %}\n{{ m.content + eos_token }}\n  {% endif %}\n{% endfor %}",
                "<s>[INST] Hi <b> [/INST]\nYo</s>\n",
            ),
            ("{{ messages[1:] | length }}{{ tools is defined }}{{ strftime_now('%Y') | length }}", "1False4"),
            ("{% if add_generation_prompt %}go{% endif %}{{ messages[0].content.upper() }}", "go HI <B> "),
            ("a {%- generation -%} b {%- endgeneration %} c", "ab c"),
            ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Yo"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn variables_and_tools_reach_the_template_and_cannot_replace_the_messages() {
        let template = ChatTemplate::compile(
            "{{ enable_thinking }}{{ messages | length }}{{ tools | tojson }}",
            "<s>",
            "</s>",
        );
        let mut given = conversation();
        given.variables.insert("enable_thinking".into(), json!(false));
        given.variables.insert("messages".into(), json!([]));
        given.tools = Some(json!([{"type": "function"}]));
        assert_eq!(template.unwrap().render(&given).unwrap(), r#"False2[{"type": "function"}]"#);
    }

    #[test]
    fn an_answer_goes_on_from_the_last_message() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::compile(source, "", "").unwrap();
        let mut given = Conversation { continue_last: true, ..conversation() };
        assert_eq!(template.render(&given).unwrap(), "<user>Hi <b><end>\n<assistant>Yo");
        given.messages[1] = json!({"role": "assistant", "content": "Yo "});
        assert_eq!(template.render(&given).unwrap(), "<user>Hi <b><end>\n<assistant>Yo");
        let loud = ChatTemplate::compile("{{ messages[1].content.upper() }}", "", "").unwrap();
        assert!(matches!(loud.render(&given), Err(TemplateError::NoPrefill)));
    }

    #[test]
    fn a_refusal_carries_the_templates_words() {
        let message = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert_eq!(message, "the model's chat template refuses these messages: roles must alternate");
        assert!(matches!(render("{% if %}"), Err(TemplateError::Syntax(_))));
        assert!(matches!(render("{{ nothing.at.all }}"), Err(TemplateError::Render(_))));
    }
}
