//! Typed reads from a request body, so that a wrong field is named in the error.
//!
//! `null` counts as absent and unknown fields are left alone, as with OpenAI.

use super::openai::ApiError;
use atlas_engine_core::SamplingParams;
use serde_json::{Map, Value};

/// A request body.
pub struct Fields(Map<String, Value>);

/// What chat and completion requests share.
pub struct Common {
    /// The model id that was asked for.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// With usage in a last event.
    pub include_usage: bool,
    /// Token limit of the answer.
    pub max_tokens: Option<usize>,
    /// How to pick tokens.
    pub sampling: SamplingParams,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Go on after end-of-generation tokens.
    pub ignore_eos: bool,
}

/// OpenAI allows four; more do no harm here, but not any number.
const MAX_STOPS: usize = 16;

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid(None, "the request body must be a JSON object")),
            Err(error) => {
                Err(ApiError::invalid(None, format!("the request body is not valid JSON: {error}")))
            }
        }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn read<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong =
            || ApiError::invalid(Some(name), format!("{name} is {}, expected {expected}", shown(value)));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn float(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number of at least 0", |value| value.as_u64()?.try_into().ok())
    }

    /// Refuses a feature that is not built, unless it is switched off.
    pub fn refuse(&self, name: &str, remedy: &str) -> Result<(), ApiError> {
        let off = |value: &Value| match value {
            Value::Bool(on) => !on,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Null => true,
        };
        if self.get(name).is_none_or(off) { Ok(()) } else { Err(ApiError::unsupported(name, remedy)) }
    }

    /// What chat and completion requests share.
    ///
    /// # Errors
    /// A field is wrong or asks for something that is not built.
    pub fn common(&self, default_max_tokens: Option<usize>) -> Result<Common, ApiError> {
        let model = self.read("model", "a string", Value::as_str)?;
        let model =
            model.ok_or_else(|| ApiError::invalid(Some("model"), "model is missing: name the model id"))?;
        if let Some(choices) = self.count("n")?.filter(|choices| *choices != 1) {
            return Err(ApiError::invalid(
                Some("n"),
                format!("n is {choices}, and this server gives 1 answer only"),
            ));
        }
        self.refuse("logprobs", "leave it out")?;
        self.refuse("top_logprobs", "leave it out")?;
        if let Some(format) = self.get("response_format")
            && format.get("type").and_then(Value::as_str) != Some("text")
        {
            return Err(ApiError::unsupported("response_format", "leave it out or use {\"type\": \"text\"}"));
        }
        let options = self.get("stream_options");
        let stream = self.bool("stream")?.unwrap_or(false);
        if options.is_some() && !stream {
            return Err(ApiError::invalid(Some("stream_options"), "stream_options is for stream: true only"));
        }
        Ok(Common {
            model: model.to_owned(),
            stream,
            include_usage: options
                .and_then(|options| options.get("include_usage"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
            max_tokens: self
                .count("max_completion_tokens")?
                .or(self.count("max_tokens")?)
                .or(default_max_tokens),
            sampling: self.sampling()?,
            stop: self.stop()?,
            ignore_eos: self.bool("ignore_eos")?.unwrap_or(false),
        })
    }

    fn sampling(&self) -> Result<SamplingParams, ApiError> {
        // -1 is vLLM's word for "all".
        let top_k = self.read("top_k", "a whole number of at least -1", |value| match value.as_i64()? {
            -1 => Some(0),
            number => usize::try_from(number).ok(),
        })?;
        let seed = self.read("seed", "a whole number", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })?;
        Ok(SamplingParams {
            temperature: self.float("temperature")?.unwrap_or(1.0),
            top_k: top_k.unwrap_or(0),
            top_p: self.float("top_p")?.unwrap_or(1.0),
            min_p: self.float("min_p")?.unwrap_or(0.0),
            repetition_penalty: self.float("repetition_penalty")?.unwrap_or(1.0),
            presence_penalty: self.float("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: self.float("frequency_penalty")?.unwrap_or(0.0),
            logit_bias: self
                .read("logit_bias", "an object of token ids and numbers", logit_bias)?
                .unwrap_or_default(),
            seed: seed.unwrap_or_else(rand::random),
            typical_p: self.float("typical_p")?.unwrap_or(1.0),
            min_tokens: self.count("min_tokens")?.unwrap_or(0),
            top_logprobs: None,
        })
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.read("stop", "a string or an array of strings", |value| match value {
            Value::String(stop) => Some(vec![stop.clone()]),
            Value::Array(stops) => stops.iter().map(|stop| stop.as_str().map(str::to_owned)).collect(),
            _ => None,
        })?;
        let stops: Vec<String> = stops.unwrap_or_default();
        if stops.len() > MAX_STOPS {
            let message = format!("stop has {} strings, and {MAX_STOPS} are allowed", stops.len());
            return Err(ApiError::invalid(Some("stop"), message));
        }
        Ok(stops)
    }
}

fn logit_bias(value: &Value) -> Option<Vec<(u32, f32)>> {
    let pairs = value.as_object()?.iter();
    pairs.map(|(token, bias)| Some((token.parse().ok()?, bias.as_f64()? as f32))).collect()
}

/// A value in an error message, not longer than a line.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        for (body, param) in [
            (r#"{"model": 3}"#, "model"),
            (r#"{}"#, "model"),
            (r#"{"model": "m", "temperature": "hot"}"#, "temperature"),
            (r#"{"model": "m", "max_tokens": -1}"#, "max_tokens"),
            (r#"{"model": "m", "n": 2}"#, "n"),
            (r#"{"model": "m", "stop": [1]}"#, "stop"),
            (r#"{"model": "m", "logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"model": "m", "seed": 1.5}"#, "seed"),
            (r#"{"model": "m", "top_k": -2}"#, "top_k"),
            (r#"{"model": "m", "logprobs": true}"#, "logprobs"),
            (r#"{"model": "m", "response_format": {"type": "json_object"}}"#, "response_format"),
            (r#"{"model": "m", "stream_options": {"include_usage": true}}"#, "stream_options"),
        ] {
            let error = Fields::parse(body.as_bytes())
                .and_then(|fields| fields.common(None).map(|_| ()))
                .unwrap_err();
            assert_eq!(error.body()["error"]["param"], param, "{body}");
            assert_eq!(error.status, 400, "{body}");
        }
    }

    #[test]
    fn nulls_unknown_fields_and_switched_off_features_are_taken() {
        let body = r#"{"model": "m", "temperature": null, "n": 1, "logprobs": false, "user": "u", "made_up": [1],
            "response_format": {"type": "text"}, "seed": -1, "top_k": -1, "max_completion_tokens": 5, "max_tokens": 9}"#;
        let common = Fields::parse(body.as_bytes()).and_then(|fields| fields.common(Some(16))).unwrap();
        assert_eq!(
            (common.max_tokens, common.sampling.temperature, common.sampling.top_k),
            (Some(5), 1.0, 0)
        );
        assert_eq!(common.sampling.seed, u64::MAX);
    }
}
