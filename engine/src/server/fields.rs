//! Typed reads from a JSON object, so that a wrong field is named in the error.
//!
//! `null` counts as absent and unknown fields are left alone, as with OpenAI.

use super::openai::ApiError;
use serde_json::{Map, Value};

/// A JSON object of a request, and where it stands in the body.
#[derive(Debug, Clone)]
pub struct Fields {
    values: Map<String, Value>,
    /// Path of the object, with a dot at its end; empty for the body itself.
    place: String,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Ok(Self::new(values)),
            Ok(_) => Err(ApiError::invalid(None, "the request body must be a JSON object")),
            Err(error) => {
                Err(ApiError::invalid(None, format!("the request body is not valid JSON: {error}")))
            }
        }
    }

    /// A body that is an object already.
    pub fn new(values: Map<String, Value>) -> Self {
        Self { values, place: String::new() }
    }

    /// An object within a body; `place` is its path.
    ///
    /// # Errors
    /// The value is no object.
    pub fn at(place: &str, value: &Value) -> Result<Self, ApiError> {
        let values = value.as_object().ok_or_else(|| wrong(place, value, "an object"))?;
        Ok(Self { values: values.clone(), place: format!("{place}.") })
    }

    /// The object itself.
    pub fn into_values(self) -> Map<String, Value> {
        self.values
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// Reads a field; `expected` describes what it must be.
    ///
    /// # Errors
    /// It is there and `read` does not take it.
    pub fn read<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(&self.path(name), value, expected))
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// It is missing.
    pub fn required<T>(&self, name: &str, value: Option<T>, expected: &str) -> Result<T, ApiError> {
        let path = self.path(name);
        value.ok_or_else(|| ApiError::invalid(Some(&path), format!("{path} is missing: give {expected}")))
    }

    /// A string.
    ///
    /// # Errors
    /// It is something else.
    pub fn string(&self, name: &str) -> Result<Option<&str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    /// A number.
    ///
    /// # Errors
    /// It is something else.
    pub fn float(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    /// A switch.
    ///
    /// # Errors
    /// It is something else.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A count.
    ///
    /// # Errors
    /// It is something else.
    pub fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number of at least 0", |value| value.as_u64()?.try_into().ok())
    }

    /// An array.
    ///
    /// # Errors
    /// It is something else.
    pub fn array(&self, name: &str) -> Result<Option<&Vec<Value>>, ApiError> {
        self.read(name, "an array", Value::as_array)
    }

    /// An object.
    ///
    /// # Errors
    /// It is something else.
    pub fn object(&self, name: &str) -> Result<Option<Self>, ApiError> {
        self.get(name).map(|value| Self::at(&self.path(name), value)).transpose()
    }

    /// A string or several.
    ///
    /// # Errors
    /// It is something else.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let read = self.read(name, "a string or an array of strings", |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        });
        Ok(read?.unwrap_or_default())
    }

    /// Token ids.
    ///
    /// # Errors
    /// It is something else.
    pub fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        self.read(name, "an array of token ids", token_ids)
    }

    /// Refuses a feature that is not built, unless it is switched off.
    ///
    /// # Errors
    /// It is switched on.
    pub fn refuse(&self, name: &str, remedy: &str) -> Result<(), ApiError> {
        let off = |value: &Value| match value {
            Value::Bool(on) => !on,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Null => true,
        };
        if self.get(name).is_none_or(off) {
            Ok(())
        } else {
            Err(ApiError::unsupported(&self.path(name), remedy))
        }
    }

    /// An error about a field.
    pub fn invalid(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        let path = self.path(name);
        ApiError::invalid(Some(&path), format!("{path} {message}"))
    }
}

/// Token ids of an array.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64()?.try_into().ok()).collect()
}

/// A field has the wrong value.
pub fn wrong(place: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::invalid(Some(place), format!("{place} is {}, expected {expected}", shown(value)))
}

/// A value in an error message, not longer than a line.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
