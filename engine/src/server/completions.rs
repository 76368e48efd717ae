//! `/v1/completions`: texts go on.

use super::chat::usage_json;
use super::collect::Answer;
use super::fields::{Fields, token_ids, wrong};
use super::generate::{Delta, Finish, Generation, MAX_PROMPTS, Task, Usage, encode};
use super::openai::ApiError;
use super::params::{Params, Resume};
use super::reply::{Event, InFlight, Writer, new_id, reply};
use super::{App, Engine, logprobs, unix_seconds};
use crate::text::TextTokenizer;
use crate::text::answer::{AnswerRules, Part};
use atlas_engine_core::{FinishReason, TokenId};
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt as the request gives it.
enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// Answers a completion request.
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
    let mut params = Params::read(&fields, Some(DEFAULT_MAX_TOKENS))?;
    params.resume = resume.0;
    if let Some(seed) = resume.1 {
        params.sampling.seed = seed;
    }
    // `false` and `true` are what some clients send; OpenAI's own form is a number.
    params.sampling.top_logprobs = fields
        .read("logprobs", "a whole number from 0 to 20", |value| match value {
            Value::Bool(on) => Some(on.then_some(0)),
            value => Some(Some(usize::try_from(value.as_u64()?).ok()?)),
        })?
        .flatten();
    if let Some(best_of) = fields.count("best_of")?.filter(|best_of| *best_of != params.choices) {
        let n = params.choices;
        return Err(
            fields.invalid("best_of", format!("is {best_of} and n is {n}: this server shows every answer"))
        );
    }
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo && params.sampling.top_logprobs.is_some() {
        return Err(fields.invalid("echo", "cannot come with logprobs: the prompt's are not computed"));
    }
    // Each prompt waits on its own: more than the queue takes could never be served.
    let given = prompts(&fields, MAX_PROMPTS.min(app.queue_limit.max(1)))?;
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let prompts = match suffix {
        Some(suffix) => fill_in_the_middle(engine, &fields, given, suffix)?,
        None => token_prompts(engine, given).await?,
    };
    let stream = params.stream;
    // With a suffix, the text before the gap is the client's own and what it asks for is the gap.
    let echoed: Vec<String> = match echo {
        true => prompts.iter().map(|prompt| echo_of(engine, prompt)).collect(),
        false => vec![String::new(); prompts.len()],
    };
    let echo_only = echo && params.max_tokens == Some(0);
    let mut writer = CompletionWriter::new(&params, engine, echoed);
    if echo_only {
        return Ok(writer.echo_only(&prompts, stream));
    }
    params.resume.fill_up(prompts.len(), params.choices);
    let resumed = params.resume.from.as_ref().map_or(Vec::new(), |broken| broken.tokens.clone());
    let rules = AnswerRules::default();
    let task = Task { prompts, prompt_param: "prompt", params, rules, grammar: None, most_calls: usize::MAX };
    let generation = Generation::start(app, engine, task, in_flight.scope)?;
    writer.begun = generation.begun();
    writer.offsets = vec![0; generation.choices()];
    for (offset, tokens) in writer.offsets.iter_mut().zip(resumed) {
        *offset = tokens.iter().map(|token| logprobs::shown(&engine.tokenizer, *token).chars().count()).sum();
    }
    reply(generation, writer, stream, in_flight).await
}

/// Reads `prompt`: a string, token ids, or several of either.
fn prompts(fields: &Fields, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let place = fields.path("prompt");
    let value =
        fields.required("prompt", fields.get("prompt"), "a string, token ids, or several of either")?;
    let prompts = match value {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(values) if values.first().is_some_and(Value::is_number) => {
            vec![Prompt::Tokens(token_ids(value).ok_or_else(|| wrong(&place, value, "token ids"))?)]
        }
        Value::Array(values) => {
            let one = |(index, value): (usize, &Value)| match value {
                Value::String(text) => Ok(Prompt::Text(text.clone())),
                value => token_ids(value).map(Prompt::Tokens).ok_or_else(|| {
                    wrong(&format!("{place}[{index}]"), value, "a string or an array of token ids")
                }),
            };
            values.iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
        other => return Err(wrong(&place, other, "a string, token ids, or several of either")),
    };
    match prompts.len() {
        0 => Err(fields.invalid("prompt", "is empty: give at least one prompt")),
        count if count > most => {
            Err(fields.invalid("prompt", format!("has {count} prompts, and {most} are allowed")))
        }
        _ => Ok(prompts),
    }
}

async fn token_prompts(engine: &Engine, given: Vec<Prompt>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let texts = given.iter().filter_map(|prompt| match prompt {
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Tokens(_) => None,
    });
    let mut encoded = encode(engine, texts.collect()).await?.into_iter();
    let ids = given.into_iter().map(|prompt| match prompt {
        Prompt::Text(_) => encoded.next().unwrap_or_default(),
        Prompt::Tokens(ids) => ids,
    });
    Ok(ids.collect())
}

/// Puts prefix and suffix around the model's marks, so that it writes what is missing between them.
fn fill_in_the_middle(
    engine: &Engine,
    fields: &Fields,
    given: Vec<Prompt>,
    suffix: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let marks = engine.tokenizer.fill_in_the_middle();
    let [prefix, hole, middle] = marks.ok_or_else(|| {
        fields.invalid("suffix", "is not supported: this model was not trained to fill gaps")
    })?;
    let encode =
        |text: &str| engine.tokenizer.encode(text).map_err(|error| ApiError::internal(error.to_string()));
    let suffix = encode(suffix)?;
    let (bos, _) = engine.tokenizer.special_ids();
    let bos = bos.filter(|_| engine.tokenizer.adds_bos());
    given
        .into_iter()
        .map(|prompt| {
            let before = match prompt {
                Prompt::Text(text) => encode(&text)?,
                Prompt::Tokens(ids) => ids,
            };
            let start = bos.into_iter().chain([prefix]);
            Ok(start.chain(before).chain([hole]).chain(suffix.iter().copied()).chain([middle]).collect())
        })
        .collect()
}

/// The prompt's text without what the tokenizer put in front.
fn echo_of(engine: &Engine, prompt: &[TokenId]) -> String {
    let (bos, _) = engine.tokenizer.special_ids();
    let bos = bos.filter(|_| engine.tokenizer.adds_bos());
    let text = match (prompt, bos) {
        ([first, rest @ ..], Some(bos)) if *first == bos => rest,
        (all, _) => all,
    };
    engine.tokenizer.decode(text)
}

/// Writes the completion API's objects.
struct CompletionWriter {
    id: String,
    created: u64,
    model: String,
    choices: usize,
    include_usage: bool,
    continuous_usage: bool,
    logprobs: bool,
    seed: Option<u64>,
    return_token_ids: bool,
    /// What each prompt's answers begin with.
    echo: Vec<String>,
    tokenizer: Arc<TextTokenizer>,
    /// Whether a choice has sent its echo.
    begun: Vec<bool>,
    offsets: Vec<usize>,
}

impl CompletionWriter {
    fn new(params: &Params, engine: &Engine, echo: Vec<String>) -> Self {
        let broken = params.resume.from.as_ref();
        Self {
            id: broken.map_or_else(|| new_id("cmpl-"), |broken| broken.id.clone()),
            created: broken.map_or_else(unix_seconds, |broken| broken.created),
            model: params.model.clone(),
            choices: params.choices,
            include_usage: params.include_usage,
            continuous_usage: params.continuous_usage,
            logprobs: params.sampling.top_logprobs.is_some(),
            seed: params.resume.return_token_ids.then_some(params.sampling.seed),
            return_token_ids: params.resume.return_token_ids,
            echo,
            tokenizer: engine.tokenizer.clone(),
            begun: Vec::new(),
            offsets: Vec::new(),
        }
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "choices": choices})
    }

    fn echo(&self, index: usize) -> &str {
        self.echo.get(index / self.choices.max(1)).map_or("", String::as_str)
    }

    fn chunk(&mut self, choice: Value, usage: Usage) -> Event {
        let mut chunk = self.object(vec![choice]);
        if let Some(seed) = self.seed.take() {
            chunk["seed"] = seed.into();
        }
        if self.include_usage {
            chunk["usage"] = if self.continuous_usage { usage_json(usage) } else { Value::Null };
        }
        Event::data(&chunk)
    }

    /// The answer where nothing is to be generated.
    fn echo_only(&mut self, prompts: &[Vec<TokenId>], stream: bool) -> Response {
        let choice = |(index, text): (usize, &String)| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "length"});
        let mut object = self.object(self.echo.iter().enumerate().map(choice).collect());
        object["usage"] =
            usage_json(Usage { prompt_tokens: prompts.iter().map(Vec::len).sum(), completion_tokens: 0 });
        if stream {
            let headers = [(axum::http::header::CONTENT_TYPE, "text/event-stream")];
            return (headers, format!("data: {object}\n\ndata: [DONE]\n\n")).into_response();
        }
        Json(object).into_response()
    }
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn text_of(parts: &[Part]) -> String {
    let text = parts.iter().filter_map(|part| match part {
        Part::Content(text) => Some(text.as_str()),
        Part::Reasoning(_) | Part::Call { .. } | Part::Arguments(_) => None,
    });
    text.collect()
}

impl Writer for CompletionWriter {
    fn events(&mut self, delta: Delta, usage: Usage) -> Vec<Event> {
        let Delta { index, parts, token_ids, logprobs, finish } = delta;
        let first = !std::mem::replace(&mut self.begun[index], true);
        let echo = if first { self.echo(index) } else { "" };
        let text = format!("{echo}{}", text_of(&parts));
        let logprobs = match self.logprobs && !logprobs.is_empty() {
            true => logprobs::completion(&self.tokenizer, &logprobs, &mut self.offsets[index]),
            false => Value::Null,
        };
        let reason = finish.as_ref().map(finish_reason);
        let shows = !text.is_empty();
        let mut choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
        if self.return_token_ids {
            choice["token_ids"] = token_ids.into();
            return vec![self.chunk(choice, usage)];
        }
        let (Some(reason), true) = (reason, shows) else { return vec![self.chunk(choice, usage)] };
        choice["finish_reason"] = Value::Null;
        let end = json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason});
        vec![self.chunk(choice, usage), self.chunk(end, usage)]
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if self.include_usage {
            let mut chunk = self.object(Vec::new());
            chunk["usage"] = usage_json(usage);
            events.push(Event::data(&chunk));
        }
        events.push(Event::done());
        events
    }

    fn failed(&mut self, error: &ApiError) -> Event {
        Event::data(&error.body())
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| {
            let Answer { reasoning: _, content, calls: _, token_ids, logprobs, finish } = answer;
            let logprobs = match self.logprobs {
                true => logprobs::completion(&self.tokenizer, &logprobs, &mut 0),
                false => Value::Null,
            };
            let text = format!("{}{content}", self.echo(index));
            let reason = finish_reason(&finish);
            let mut choice =
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
            if self.return_token_ids {
                choice["token_ids"] = token_ids.into();
            }
            choice
        });
        let choices = choices.collect();
        let mut object = self.object(choices);
        object["usage"] = usage_json(usage);
        if let Some(seed) = self.seed {
            object["seed"] = seed.into();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_read_in_every_form() {
        let read =
            |prompt: Value| prompts(&Fields::new(json!({"prompt": prompt}).as_object().unwrap().clone()), 64);
        for (prompt, count) in [
            (json!("a"), 1),
            (json!(["a", "b"]), 2),
            (json!([1, 2]), 1),
            (json!([[1, 2], [3]]), 2),
            (json!(["a", [3]]), 2),
        ] {
            assert_eq!(read(prompt.clone()).map(|prompts| prompts.len()).ok(), Some(count), "{prompt}");
        }
        for (prompt, param) in [
            (json!(null), "prompt"),
            (json!(3), "prompt"),
            (json!([]), "prompt"),
            (json!([1, "a"]), "prompt"),
            (json!([-1]), "prompt"),
            (json!(["a", 1]), "prompt[1]"),
            (json!([["a"]]), "prompt[0]"),
            (json!(vec!["a"; 65]), "prompt"),
        ] {
            let error = read(prompt.clone()).err().unwrap();
            assert_eq!(error.body()["error"]["param"], param, "{prompt}");
        }
    }
}
