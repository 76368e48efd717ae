//! What all generating requests share: how to pick tokens, when to stop, how to answer.
//!
//! Everything is read once, here, and every error names its field.

use super::fields::Fields;
use super::openai::ApiError;
use super::unserved;
use atlas_engine_core::request::MAX_CHOICES;
use atlas_engine_core::{SamplingParams, TokenId};
use serde_json::Value;

/// How a request wants its answer.
#[derive(Debug, Clone)]
pub struct Params {
    /// The model id that was asked for.
    pub model: String,
    /// Answers a prompt.
    pub choices: usize,
    /// Answer as server-sent events.
    pub stream: bool,
    /// With usage in a last event.
    pub include_usage: bool,
    /// With usage so far in every event.
    pub continuous_usage: bool,
    /// Lower ones are computed first.
    pub priority: i32,
    /// Token limit of the answer.
    pub max_tokens: Option<usize>,
    /// The field that gave it.
    pub limit_name: &'static str,
    /// Tell log-probabilities of the prompt, with so many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Nothing is wanted but the prompt.
    pub prompt_only: bool,
    /// How to pick tokens.
    pub sampling: SamplingParams,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Whether the answer shows the stop string that ended it.
    pub include_stop: bool,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<TokenId>,
    /// Go on after end-of-generation tokens.
    pub ignore_eos: bool,
    /// What the resume contract adds.
    pub resume: Resume,
}

/// The fields of the resume contract, which only the internal port takes.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// Every chunk tells its token ids.
    pub return_token_ids: bool,
    /// Id, creation time and tokens of the broken answer.
    pub from: Option<Broken>,
}

/// A broken answer.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Its id.
    pub id: String,
    /// Its creation time.
    pub created: u64,
    /// What each choice has already.
    pub tokens: Vec<Vec<TokenId>>,
}

/// OpenAI allows four; more do no harm here, but not any number.
const MAX_STOPS: usize = 16;
/// A stop string is searched in every piece of text.
const MAX_STOP_BYTES: usize = 1024;

impl Params {
    /// Goes on with a broken answer, where the request does, with its seed.
    pub fn resume_from(&mut self, (resume, seed): (Resume, Option<u64>)) {
        self.resume = resume;
        self.sampling.seed = seed.unwrap_or(self.sampling.seed);
    }

    /// Reads a body; `logprobs` are read by each API, since their forms differ.
    ///
    /// # Errors
    /// A field is of the wrong type. Ranges are the core's to check.
    pub fn read(fields: &Fields, default_max_tokens: Option<usize>) -> Result<Self, ApiError> {
        let model = fields.required("model", fields.string("model")?, "the model's id")?;
        unserved::refuse(fields)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let options = fields.object("stream_options")?;
        if options.is_some() && !stream {
            return Err(fields.invalid("stream_options", "is for stream: true only"));
        }
        let option = |name: &str| match &options {
            Some(options) => options.bool(name).map(|value| value.unwrap_or(false)),
            None => Ok(false),
        };
        let stop = fields.strings("stop")?;
        if stop.len() > MAX_STOPS {
            return Err(
                fields.invalid("stop", format!("has {} strings, and {MAX_STOPS} are allowed", stop.len()))
            );
        }
        if let Some(long) = stop.iter().map(String::len).find(|length| *length > MAX_STOP_BYTES) {
            return Err(fields
                .invalid("stop", format!("has a string of {long} bytes, and {MAX_STOP_BYTES} are allowed")));
        }
        let choices = fields.count("n")?.unwrap_or(1);
        if let Some(best_of) = fields.count("best_of")?.filter(|best_of| *best_of != choices) {
            let message = format!("is {best_of} and n is {choices}: this server shows every answer");
            return Err(fields.invalid("best_of", message));
        }
        let older = fields.count("max_tokens")?;
        let (limit, limit_name) = match fields.count("max_completion_tokens")? {
            None => (older, "max_tokens"),
            newer => (newer, "max_completion_tokens"),
        };
        Ok(Self {
            model: model.to_owned(),
            choices,
            stream,
            include_usage: option("include_usage")?,
            continuous_usage: option("continuous_usage_stats")?,
            priority: priority(fields)?,
            max_tokens: limit.or(default_max_tokens),
            limit_name,
            prompt_logprobs: None,
            prompt_only: false,
            sampling: sampling(fields)?,
            stop,
            include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            stop_tokens: fields.token_ids("stop_token_ids")?.unwrap_or_default(),
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            resume: Resume::default(),
        })
    }
}

fn priority(fields: &Fields) -> Result<i32, ApiError> {
    let read =
        fields.read("priority", "a whole number of 32 bits", |value| value.as_i64()?.try_into().ok())?;
    Ok(read.unwrap_or(0))
}

fn sampling(fields: &Fields) -> Result<SamplingParams, ApiError> {
    // -1 is vLLM's word for "all".
    let top_k = fields.read("top_k", "a whole number of at least -1", |value| match value.as_i64()? {
        -1 => Some(0),
        number => usize::try_from(number).ok(),
    })?;
    let seed = fields.read("seed", "a whole number", |value| {
        value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
    })?;
    let bias = fields.read("logit_bias", "an object of token ids and numbers", logit_bias)?;
    Ok(SamplingParams {
        temperature: fields.float("temperature")?.unwrap_or(1.0),
        top_k: top_k.unwrap_or(0),
        top_p: fields.float("top_p")?.unwrap_or(1.0),
        min_p: fields.float("min_p")?.unwrap_or(0.0),
        typical_p: fields.float("typical_p")?.unwrap_or(1.0),
        repetition_penalty: fields.float("repetition_penalty")?.unwrap_or(1.0),
        presence_penalty: fields.float("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: fields.float("frequency_penalty")?.unwrap_or(0.0),
        logit_bias: bias.unwrap_or_default(),
        seed: seed.unwrap_or_else(draw_seed),
        min_tokens: fields.count("min_tokens")?.unwrap_or(0),
        top_logprobs: None,
    })
}

/// A seed that survives JSON readers which know doubles only.
fn draw_seed() -> u64 {
    rand::random::<u64>() >> 12
}

fn logit_bias(value: &Value) -> Option<Vec<(u32, f32)>> {
    let pairs = value.as_object()?.iter();
    pairs.map(|(token, bias)| Some((token.parse().ok()?, bias.as_f64()? as f32))).collect()
}

impl Resume {
    /// Reads the contract's fields and the broken answer's seed.
    ///
    /// # Errors
    /// A field is of the wrong type, or `resume_tokens` comes without `resume`.
    pub fn read(fields: &Fields) -> Result<(Self, Option<u64>), ApiError> {
        let return_token_ids = fields.bool("return_token_ids")?.unwrap_or(false);
        let tokens =
            fields.read("resume_tokens", "an array of token ids, or one such array a choice", |value| {
                let lists = value.as_array()?;
                match lists.first() {
                    Some(Value::Array(_)) => lists.iter().map(super::fields::token_ids).collect(),
                    _ => Some(vec![super::fields::token_ids(value)?]),
                }
            })?;
        let Some(tokens) = tokens else { return Ok((Self { return_token_ids, from: None }, None)) };
        let resume = fields.object("resume")?;
        let resume = fields.required("resume", resume, "the broken stream's id, created and seed")?;
        let id = resume.required("id", resume.string("id")?, "the broken stream's id")?.to_owned();
        let whole = |name: &str| resume.read(name, "a whole number", Value::as_u64);
        let created = resume.required("created", whole("created")?, "the broken stream's created")?;
        let from = Some(Broken { id, created, tokens });
        Ok((Self { return_token_ids, from }, whole("seed")?))
    }

    /// Gives the choices that the broken stream had not shown anything of yet their empty share. What has more shares
    /// than choices, or more choices than are allowed, is refused later.
    pub fn fill_up(&mut self, prompts: usize, choices: usize) {
        if let (Some(broken), 1..=MAX_CHOICES) = (&mut self.from, choices) {
            let count = (prompts * choices).max(broken.tokens.len());
            broken.tokens.resize(count, Vec::new());
        }
    }

    /// Refuses the contract's fields where they may not come from: the public port.
    ///
    /// # Errors
    /// One of them is there.
    pub fn refuse(fields: &Fields) -> Result<(), ApiError> {
        for name in ["return_token_ids", "resume_tokens", "resume"] {
            fields.refuse(name, "only the gateway may send it, to the internal port")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Params, ApiError> {
        Params::read(&Fields::parse(body.as_bytes())?, Some(16))
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (field, param) in [
            (r#""model": 3"#, "model"),
            (r#""model": null"#, "model"),
            (r#""temperature": "hot""#, "temperature"),
            (r#""max_tokens": -1"#, "max_tokens"),
            (r#""max_completion_tokens": 1.5"#, "max_completion_tokens"),
            (r#""n": "2""#, "n"),
            (r#""stop": [1]"#, "stop"),
            (r#""stop_token_ids": [-1]"#, "stop_token_ids"),
            (r#""logit_bias": {"x": 1}"#, "logit_bias"),
            (r#""logit_bias": [1]"#, "logit_bias"),
            (r#""seed": 1.5"#, "seed"),
            (r#""top_k": -2"#, "top_k"),
            (r#""min_tokens": true"#, "min_tokens"),
            (r#""priority": "high""#, "priority"),
            (r#""priority": 4294967296"#, "priority"),
            (r#""ignore_eos": 1"#, "ignore_eos"),
            (r#""stream": "yes""#, "stream"),
            (r#""stream_options": {"include_usage": true}"#, "stream_options"),
            (r#""stream": true, "stream_options": 3"#, "stream_options"),
            (r#""stream": true, "stream_options": {"include_usage": 1}"#, "stream_options.include_usage"),
        ] {
            // Of two fields of a name the later one counts.
            let error = read(&format!(r#"{{"model": "m", {field}}}"#)).unwrap_err();
            assert_eq!(error.body()["error"]["param"], param, "{field}");
            assert_eq!(error.status, 400, "{field}");
        }
    }

    #[test]
    fn nulls_and_unknown_fields_are_taken() {
        let params = read(
            r#"{"model": "m", "temperature": null, "n": 1, "user": "u", "metadata": {"a": "b"}, "made_up": [1],
            "seed": -1, "top_k": -1, "max_completion_tokens": 5, "max_tokens": 9, "store": true}"#,
        )
        .unwrap();
        assert_eq!(
            (params.max_tokens, params.sampling.temperature, params.sampling.top_k, params.sampling.seed),
            (Some(5), 1.0, 0, u64::MAX)
        );
    }

    #[test]
    fn resumed_tokens_are_read_in_both_forms_and_need_their_origin() {
        let read = |body: &str| Resume::read(&Fields::parse(body.as_bytes()).unwrap());
        let origin = r#""resume": {"id": "x", "created": 5, "seed": 7}"#;
        for (tokens, expected) in
            [("[1, 2]", vec![vec![1, 2]]), ("[[1], []]", vec![vec![1], vec![]]), ("[]", vec![vec![]])]
        {
            let (resume, seed) = read(&format!(r#"{{"resume_tokens": {tokens}, {origin}}}"#)).unwrap();
            assert_eq!((resume.from.unwrap().tokens, seed), (expected, Some(7)));
        }
        for (body, param) in [
            (r#"{"resume_tokens": [1]}"#, "resume"),
            (r#"{"resume_tokens": [1, [2]], "resume": {}}"#, "resume_tokens"),
            (r#"{"resume_tokens": [1], "resume": {"id": "x"}}"#, "resume.created"),
        ] {
            assert_eq!(read(body).unwrap_err().body()["error"]["param"], param, "{body}");
        }
    }
}
