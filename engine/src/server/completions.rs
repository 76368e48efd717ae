//! `/v1/completions`: texts go on.

use super::chat::usage_json;
use super::collect::Answer;
use super::constraint;
use super::delta::{Delta, Finish, Usage};
use super::echo::Echo;
use super::encode::{Front, encode};
use super::envelope::{Envelope, Kinds};
use super::fields::{Fields, token_ids, wrong};
use super::generate::{Generation, MAX_PROMPTS, Task};
use super::openai::ApiError;
use super::params::{Params, Resume};
use super::reply::{Event, InFlight, Writer, reply};
use super::{App, Engine, logprobs, unserved};
use crate::text::TextTokenizer;
use crate::text::answer::{AnswerRules, Part};
use atlas_engine_core::sampler::TokenLogprobs;
use atlas_engine_core::{FinishReason, TokenId};
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

const KINDS: Kinds = Kinds { id: "cmpl-", whole: "text_completion", chunk: "text_completion" };
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
    unserved::refuse_in_completions(&fields)?;
    let mut params = Params::read(&fields, Some(DEFAULT_MAX_TOKENS))?;
    params.resume_from(resume);
    // `false` and `true` are what some clients send; OpenAI's own form is a number.
    params.sampling.top_logprobs = fields
        .read("logprobs", "a whole number from 0 to 20", |value| match value {
            Value::Bool(on) => Some(on.then_some(0)),
            value => Some(Some(usize::try_from(value.as_u64()?).ok()?)),
        })?
        .flatten();
    let echo = fields.bool("echo")?.unwrap_or(false);
    params.prompt_logprobs = params.sampling.top_logprobs.filter(|_| echo);
    // Each prompt waits on its own: more than the queue takes could never be served.
    let given = prompts(&fields, MAX_PROMPTS.min(app.queue_limit.max(1)))?;
    let constraint = constraint::read(&fields)?;
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    // With a suffix the prompt is more than the text that was sent, and shown as its tokens are.
    let as_text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) if echo && suffix.is_none() => Some(text.clone()),
        Prompt::Text(_) | Prompt::Tokens(_) => None,
    };
    let texts: Vec<Option<String>> = given.iter().map(as_text).collect();
    let prompts = match suffix {
        Some(suffix) => fill_in_the_middle(engine, &fields, given, suffix).await?,
        None => token_prompts(engine, given, Front::AsPrompt).await?,
    };
    let stream = params.stream;
    let echoed: Vec<Echo> = match echo {
        true => {
            let of = |(prompt, text): (&Vec<TokenId>, _)| Echo::of(&engine.tokenizer, prompt, text);
            prompts.iter().zip(texts).map(of).collect()
        }
        false => vec![Echo::default(); prompts.len()],
    };
    // The model has to see the prompt, and what it would say next is not shown.
    let echo_only = echo && params.max_tokens == Some(0);
    params.prompt_only = echo_only;
    let mut writer = CompletionWriter::new(&params, engine, echoed);
    writer.echo_only = echo_only;
    params.resume.fill_up(prompts.len(), params.choices);
    let resumed = params.resume.from.as_ref().map_or(Vec::new(), |broken| broken.tokens.clone());
    let rules = AnswerRules::default();
    let grammar = match constraint {
        Some(constraint) => Some(constraint.compile(engine).await?),
        None => None,
    };
    let operation = "text_completion";
    let task =
        Task { prompts, operation, prompt_param: "prompt", params, rules, grammar, most_calls: usize::MAX };
    let generation = Generation::start(app, engine, task, in_flight.origin)?;
    writer.begun = generation.begun();
    writer.offsets = (0..generation.choices()).map(|index| writer.echo(index).start()).collect();
    for (index, tokens) in resumed.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let own: usize = tokens.iter().map(|token| logprobs::characters(&engine.tokenizer, *token)).sum();
        writer.offsets[index] = writer.echo(index).end(&engine.tokenizer).saturating_add_unsigned(own as u64);
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

async fn token_prompts(
    engine: &Engine,
    given: Vec<Prompt>,
    front: Front,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let texts = given.iter().filter_map(|prompt| match prompt {
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Tokens(_) => None,
    });
    let mut encoded = encode(engine, texts.collect(), front, "prompt").await?.into_iter();
    let ids = given.into_iter().map(|prompt| match prompt {
        Prompt::Text(_) => encoded.next().unwrap_or_default(),
        Prompt::Tokens(ids) => ids,
    });
    Ok(ids.collect())
}

/// Puts prefix and suffix around the model's marks, so that it writes what is missing between them.
async fn fill_in_the_middle(
    engine: &Engine,
    fields: &Fields,
    given: Vec<Prompt>,
    suffix: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let marks = engine.tokenizer.fill_in_the_middle();
    let [prefix, hole, middle] = marks.ok_or_else(|| {
        fields.invalid("suffix", "is not supported: this model was not trained to fill gaps")
    })?;
    // One text gives one list of ids.
    let suffix =
        encode(engine, vec![suffix.to_owned()], Front::Bare, "suffix").await?.pop().unwrap_or_default();
    let given = token_prompts(engine, given, Front::Bare).await?;
    let (bos, _) = engine.tokenizer.special_ids();
    let bos = bos.filter(|_| engine.tokenizer.adds_bos());
    let around = |before| {
        let start = bos.into_iter().chain([prefix]);
        start.chain(before).chain([hole]).chain(suffix.iter().copied()).chain([middle]).collect()
    };
    Ok(given.into_iter().map(around).collect())
}

/// Writes the completion API's objects.
struct CompletionWriter {
    envelope: Envelope,
    choices: usize,
    logprobs: bool,
    /// What each prompt's answers begin with.
    echo: Vec<Echo>,
    /// Whether nothing else is shown.
    echo_only: bool,
    tokenizer: Arc<TextTokenizer>,
    /// Whether a choice has sent its echo.
    begun: Vec<bool>,
    offsets: Vec<i64>,
}

impl CompletionWriter {
    fn new(params: &Params, engine: &Engine, echo: Vec<Echo>) -> Self {
        Self {
            envelope: Envelope::new(params, KINDS),
            choices: params.choices,
            logprobs: params.sampling.top_logprobs.is_some(),
            echo,
            echo_only: false,
            tokenizer: engine.tokenizer.clone(),
            begun: Vec::new(),
            offsets: Vec::new(),
        }
    }

    fn echo(&self, index: usize) -> &Echo {
        &self.echo[index / self.choices.max(1)]
    }

    /// Log-probabilities of an answer's next tokens, after those of the prompt where they are given.
    fn logprobs(
        &self,
        index: usize,
        prompt: Option<&[TokenLogprobs]>,
        tokens: &[(TokenId, TokenLogprobs)],
        offset: &mut i64,
    ) -> Value {
        let of_prompt = prompt.into_iter().flat_map(|prompt| self.echo(index).with(prompt));
        let of_answer = tokens.iter().map(|(token, logprobs)| (*token, Some(logprobs)));
        let listed: Vec<_> = of_prompt.chain(of_answer.filter(|_| !self.echo_only)).collect();
        logprobs::completion(&self.tokenizer, &listed, offset)
    }

    fn usage(&self, usage: Usage) -> Value {
        let hidden = self.echo_only.then_some(0);
        usage_json(Usage { completion_tokens: hidden.unwrap_or(usage.completion_tokens), ..usage })
    }

    fn finish_reason(&self, finish: &Finish) -> &'static str {
        match finish.reason {
            FinishReason::Stop if !self.echo_only => "stop",
            FinishReason::Stop | FinishReason::Length => "length",
        }
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
        let Delta { index, parts, token_ids, logprobs, prompt_logprobs, finish } = delta;
        let first = !std::mem::replace(&mut self.begun[index], true);
        let answer = if self.echo_only { String::new() } else { text_of(&parts) };
        let text = if first { format!("{}{answer}", self.echo(index).text) } else { answer };
        let prompt = prompt_logprobs.as_ref().map(|prompt| prompt.as_slice()).filter(|_| first);
        let logprobs = match self.logprobs && (prompt.is_some() || !logprobs.is_empty()) {
            true => {
                let mut offset = self.offsets[index];
                let shown = self.logprobs(index, prompt, &logprobs, &mut offset);
                self.offsets[index] = offset;
                shown
            }
            false => Value::Null,
        };
        let reason = finish.as_ref().map(|finish| self.finish_reason(finish));
        let empty = (!text.is_empty()).then(|| json!({"text": ""}));
        let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
        let ids = if self.echo_only { Vec::new() } else { token_ids };
        let usage = self.usage(usage);
        self.envelope.chunks(choice, empty, ids, &usage)
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let usage = self.usage(usage);
        self.envelope.end(usage)
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        Envelope::failed(error)
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| {
            let Answer { reasoning: _, content, calls: _, token_ids, logprobs, prompt_logprobs, finish } =
                answer;
            let logprobs = match self.logprobs {
                true => {
                    let prompt = prompt_logprobs.as_ref().map(|prompt| prompt.as_slice());
                    self.logprobs(index, prompt, &logprobs, &mut self.echo(index).start())
                }
                false => Value::Null,
            };
            let content = if self.echo_only { "" } else { content.as_str() };
            let text = format!("{}{content}", self.echo(index).text);
            let reason = self.finish_reason(&finish);
            let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
            self.envelope.with_ids(choice, if self.echo_only { Vec::new() } else { token_ids })
        });
        let choices = choices.collect();
        let usage = self.usage(usage);
        self.envelope.whole(choices, usage)
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
