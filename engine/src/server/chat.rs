//! `/v1/chat/completions`, and what the other chat-like APIs share with it: from messages to a running answer.

use super::blocks::{BlockWriter, Blocks};
use super::collect::Answer;
use super::constraint::{self, Constraint};
use super::conversation::messages;
use super::delta::{Delta, Finish, Usage};
use super::encode::{Front, encode};
use super::envelope::{Envelope, Kinds};
use super::fields::Fields;
use super::generate::{Generation, Task};
use super::openai::ApiError;
use super::params::{Params, Resume};
use super::reply::{Event, InFlight, Origin, Writer, reply};
use super::tools::{ToolChoice, Tools};
use super::{App, Engine, logprobs, unserved};
use crate::text::answer::{AnswerRules, Part, ToolFormat};
use crate::text::chat_template::Conversation;
use crate::text::grammar::{Grammar, Language};
use crate::text::{TextTokenizer, generic_tools};
use atlas_engine_core::FinishReason;
use axum::response::Response;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const KINDS: Kinds = Kinds { id: "chatcmpl-", whole: "chat.completion", chunk: "chat.completion.chunk" };

/// A checked chat request.
pub struct ChatRequest {
    /// How to answer.
    pub params: Params,
    /// The conversation as templates read it.
    pub conversation: Conversation,
    tools: Tools,
    constraint: Option<Constraint>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// A field is wrong or asks for something that this server does not do.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        unserved::refuse_in_chat(fields)?;
        let mut params = Params::read(fields, None)?;
        params.sampling.top_logprobs = top_logprobs(fields)?;
        for (feature, remedy) in [("audio", "leave it out"), ("web_search_options", "leave it out")] {
            fields.refuse(feature, remedy)?;
        }
        if let Some(modalities) = fields.array("modalities")?
            && modalities.iter().any(|modality| modality != "text")
        {
            return Err(fields.invalid("modalities", "may hold \"text\" only: this model writes text"));
        }
        let tools = Tools::read(fields)?;
        let constraint = constraint::read(fields)?;
        if let Some(Constraint { place, .. }) = &constraint
            && tools.forced_schema().is_some()
            // OpenAI's is for what is said, and calls are not.
            && place != "response_format"
        {
            return Err(ApiError::invalid(
                Some(place),
                format!("{place} comes besides a tool_choice that forces a call: leave one of them out"),
            ));
        }
        let variables = variables(fields)?;
        let messages = messages(fields)?;
        let continue_last = fields.bool("continue_final_message")?.unwrap_or(false);
        if continue_last && messages.last().is_some_and(|last| last["role"] != "assistant") {
            return Err(fields.invalid("continue_final_message", "needs a last message of the assistant's"));
        }
        let conversation = Conversation {
            messages,
            tools: tools.offered(),
            variables,
            continue_last,
            add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
        };
        Ok(Self { params, conversation, tools, constraint })
    }

    /// The prompt as text.
    ///
    /// # Errors
    /// The model has no chat template, or it refuses the conversation.
    pub fn prompt(&self, engine: &Engine) -> Result<String, ApiError> {
        let template = engine.template.as_ref().ok_or_else(|| {
            ApiError::invalid(
                Some("messages"),
                "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            )
        })?;
        let mut conversation = self.conversation.clone();
        if ToolFormat::of_template(template.source()).is_none() {
            generic_tools::write_into(&mut conversation.messages, conversation.tools.take().as_ref());
        }
        // A template trips over input it was not written for far more often than over itself.
        template.render(&conversation).map_err(|error| ApiError::invalid(Some("messages"), error.to_string()))
    }

    /// How the answer to a prompt is to be read, and what it must hold to.
    async fn rules(&self, engine: &Engine, prompt: &str) -> Result<(AnswerRules, Option<Grammar>), ApiError> {
        let source = engine.template.as_ref().map_or("", |template| template.source());
        let forced = self.tools.forced_schema();
        let tools = match (&forced, self.tools.offered()) {
            (Some(_), _) => Some(ToolFormat::Array),
            (None, Some(_)) => Some(ToolFormat::of_template(source).unwrap_or(ToolFormat::Hermes)),
            (None, None) => None,
        };
        let forced =
            forced.map(|schema| Constraint { place: "tools".to_owned(), language: Language::Json(schema) });
        let grammar = match forced.or_else(|| self.constraint.clone()) {
            Some(constraint) => Some(constraint.compile(engine).await?),
            None => None,
        };
        let rules = AnswerRules {
            // A grammar leaves no room for thoughts.
            reasoning: grammar.is_none() && source.contains("<think>"),
            starts_inside: prompt.trim_end().ends_with("<think>"),
            tools,
            names: self.tools.names(),
        };
        Ok((rules, grammar))
    }

    /// Starts answering.
    ///
    /// # Errors
    /// The prompt cannot be written or does not fit, or the queue is full.
    pub async fn start(self, app: &App, engine: &Engine, origin: Origin) -> Result<Generation, ApiError> {
        let prompt = self.prompt(engine)?;
        let (rules, grammar) = self.rules(engine, &prompt).await?;
        let prompts = encode(engine, vec![prompt], Front::AsPrompt, "messages").await?;
        let most_calls = self.tools.most_calls();
        let task = Task {
            prompts,
            operation: "chat",
            prompt_param: "messages",
            params: self.params,
            rules,
            grammar,
            most_calls,
        };
        Generation::start(app, engine, task, origin)
    }

    /// Goes on with a broken answer, where the request does.
    pub fn resume_from(&mut self, resume: (Resume, Option<u64>)) {
        self.params.resume_from(resume);
        self.params.resume.fill_up(1, self.params.choices);
    }

    /// Answers in the way of another API, which has other names for some fields.
    ///
    /// # Errors
    /// As [`Self::start`], or the answer fails before anything was sent.
    pub async fn answer(
        self,
        app: &App,
        engine: &Engine,
        in_flight: InFlight,
        mut writer: BlockWriter<impl Blocks>,
        names: &[(&str, &str)],
    ) -> Result<Response, ApiError> {
        let stream = self.params.stream;
        let generation = self.start(app, engine, in_flight.origin).await;
        let mut generation = generation.map_err(|error| error.renamed(names))?;
        let begun = generation.begun().contains(&true);
        writer.replay(begun, generation.replayed());
        reply(generation, writer, stream, in_flight).await
    }

    /// Whether one tool is named, which OpenAI tells by another finish reason.
    pub fn names_a_tool(&self) -> bool {
        matches!(self.tools.choice, ToolChoice::Named(_))
    }
}

const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// What templates get besides the conversation: what the request gives, and how much the model is to think.
fn variables(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    // A request may give none.
    let mut variables = fields.object("chat_template_kwargs")?.map(Fields::into_values).unwrap_or_default();
    let effort =
        fields.read("reasoning_effort", "one of none, minimal, low, medium, high and xhigh", |value| {
            value.as_str().filter(|effort| EFFORTS.contains(effort))
        })?;
    if let Some(effort) = effort {
        variables.entry("reasoning_effort").or_insert(effort.into());
        // The word of Qwen's templates and of many others.
        if effort == "none" {
            variables.entry("enable_thinking").or_insert(false.into());
        }
    }
    Ok(variables)
}

fn top_logprobs(fields: &Fields) -> Result<Option<usize>, ApiError> {
    let top = fields.count("top_logprobs")?;
    match (fields.bool("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(fields.invalid("top_logprobs", "needs logprobs: true")),
    }
}

/// Answers a chat request.
///
/// # Errors
/// The request is wrong, or the answer fails before anything was sent.
pub async fn answer(
    app: &App,
    engine: &Engine,
    fields: Fields,
    in_flight: InFlight,
    resume: (Resume, Option<u64>),
) -> Result<Response, ApiError> {
    let mut request = ChatRequest::read(&fields)?;
    request.resume_from(resume);
    let stream = request.params.stream;
    let mut writer = ChatWriter::new(&request, engine);
    let generation = request.start(app, engine, in_flight.origin).await?;
    writer.begun = generation.begun();
    writer.calls = generation.calls();
    reply(generation, writer, stream, in_flight).await
}

/// Writes the chat API's objects.
struct ChatWriter {
    envelope: Envelope,
    logprobs: bool,
    named: bool,
    short_ids: bool,
    tokenizer: Arc<TextTokenizer>,
    /// Whether a choice has sent its role.
    begun: Vec<bool>,
    /// Calls of each choice.
    calls: Vec<usize>,
}

impl ChatWriter {
    fn new(request: &ChatRequest, engine: &Engine) -> Self {
        let params = &request.params;
        let source = engine.template.as_ref().map_or("", |template| template.source());
        Self {
            envelope: Envelope::new(params, KINDS),
            logprobs: params.sampling.top_logprobs.is_some(),
            named: request.names_a_tool(),
            short_ids: ToolFormat::of_template(source) == Some(ToolFormat::Mistral),
            tokenizer: engine.tokenizer.clone(),
            begun: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// The same for a resumed answer as for the unbroken one. Mistral's templates insist on nine characters.
    fn call_id(&self, choice: usize, call: usize) -> String {
        let digest = hex::encode(Sha256::digest(format!("{} {choice} {call}", self.envelope.id)));
        if self.short_ids { digest[..9].to_owned() } else { format!("call_{}", &digest[..24]) }
    }

    fn finish_reason(&self, finish: &Finish) -> &'static str {
        match finish.reason {
            FinishReason::Length => "length",
            FinishReason::Stop if finish.has_calls && !self.named => "tool_calls",
            FinishReason::Stop => "stop",
        }
    }

    /// What a chunk adds to the message.
    fn delta(&mut self, index: usize, parts: Vec<Part>) -> Map<String, Value> {
        let mut delta = Map::new();
        if !std::mem::replace(&mut self.begun[index], true) {
            delta.insert("role".into(), "assistant".into());
            // As OpenAI does: a message that begins with a call has no content, not an empty one.
            let calls_first = matches!(parts.first(), Some(Part::Call { .. }));
            delta.insert("content".into(), if calls_first { Value::Null } else { "".into() });
        }
        let mut calls: Vec<Value> = Vec::new();
        for part in parts {
            match part {
                Part::Reasoning(text) => append(&mut delta, "reasoning_content", &text),
                Part::Content(text) => append(&mut delta, "content", &text),
                Part::Call { name } => {
                    let call = self.calls[index];
                    self.calls[index] += 1;
                    calls.push(json!({"index": call, "id": self.call_id(index, call), "type": "function",
                        "function": {"name": name, "arguments": ""}}));
                }
                Part::Arguments(text) => {
                    let call = self.calls[index].saturating_sub(1);
                    match calls.last_mut().filter(|last| last["index"] == call) {
                        Some(last) => {
                            let joined =
                                last["function"]["arguments"].as_str().unwrap_or_default().to_owned() + &text;
                            last["function"]["arguments"] = joined.into();
                        }
                        None => calls.push(json!({"index": call, "function": {"arguments": text}})),
                    }
                }
            }
        }
        if !calls.is_empty() {
            delta.insert("tool_calls".into(), calls.into());
        }
        delta
    }
}

/// Joins text into a field.
fn append(delta: &mut Map<String, Value>, name: &str, text: &str) {
    let joined = delta.get(name).and_then(Value::as_str).unwrap_or_default().to_owned() + text;
    delta.insert(name.into(), joined.into());
}

/// OpenAI's usage object.
pub fn usage_json(usage: Usage) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    })
}

impl Writer for ChatWriter {
    fn events(&mut self, delta: Delta, usage: Usage) -> Vec<Event> {
        let Delta { index, parts, token_ids, logprobs, prompt_logprobs: _, finish } = delta;
        let logprobs = match self.logprobs && !logprobs.is_empty() {
            true => logprobs::chat(&self.tokenizer, &logprobs),
            false => Value::Null,
        };
        let reason = finish.as_ref().map(|finish| self.finish_reason(finish));
        let shows = !parts.is_empty() || !self.begun[index];
        let delta = self.delta(index, parts);
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        let empty = shows.then(|| json!({"delta": {}}));
        self.envelope.chunks(choice, empty, token_ids, &usage_json(usage))
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        self.envelope.end(usage_json(usage))
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        Envelope::failed(error)
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| {
            let Answer { reasoning, content, calls, token_ids, logprobs, prompt_logprobs: _, finish } =
                answer;
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            if !reasoning.is_empty() {
                message["reasoning_content"] = reasoning.into();
            }
            if !calls.is_empty() {
                let calls = calls.into_iter().enumerate().map(|(call, (name, arguments))| {
                    json!({"id": self.call_id(index, call), "type": "function",
                        "function": {"name": name, "arguments": arguments}})
                });
                message["tool_calls"] = calls.collect();
                if message["content"] == "" {
                    message["content"] = Value::Null;
                }
            }
            let logprobs =
                if self.logprobs { logprobs::chat(&self.tokenizer, &logprobs) } else { Value::Null };
            let reason = self.finish_reason(&finish);
            let choice =
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason});
            self.envelope.with_ids(choice, token_ids)
        });
        let choices = choices.collect();
        self.envelope.whole(choices, usage_json(usage))
    }
}
