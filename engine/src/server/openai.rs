//! OpenAI's error body.

use atlas_engine_core::{MaskError, RequestError};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An answer that is not a success.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after_seconds: Option<u32>,
    queue_length: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after_seconds: None,
            queue_length: None,
        }
    }

    fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The request is wrong; `param` names the field.
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self { param: param.map(str::to_owned), ..error }
    }

    /// The request asks for something that is not built.
    pub fn unsupported(param: &str, remedy: &str) -> Self {
        let message = format!("{param} is not supported by this server: {remedy}");
        Self::invalid(Some(param), message).code("unsupported_parameter")
    }

    /// Nobody serves this model id here.
    pub fn model_not_found(model: &str, served: &[String]) -> Self {
        let message = format!("the model {model:?} does not exist here; served are: {}", served.join(", "));
        let error =
            Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("model_not_found");
        Self { param: Some("model".into()), ..error }
    }

    /// No such path.
    pub fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("there is no {path} here"))
    }

    /// The path exists with another method.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// Two readers could read the request in two ways.
    pub fn ambiguous(problem: &str) -> Self {
        let message = format!("the request can be read in two ways: {problem}");
        Self::invalid(None, message).code("ambiguous_request")
    }

    /// The body is too large.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request body exceeds the {limit} bytes that this server takes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("request_too_large")
    }

    /// The body is compressed, or otherwise written in a way that is not read here.
    pub fn encoded(encoding: &str) -> Self {
        let message = format!("the request body has the Content-Encoding {encoding:?}: send it as it is");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
            .code("unsupported_encoding")
    }

    /// The body did not arrive in time.
    pub fn slow_body(seconds: u64) -> Self {
        let message = format!("the request body did not arrive within {seconds} seconds");
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message).code("request_timeout")
    }

    /// No key, or one that is not known.
    pub fn unauthorized() -> Self {
        let message = "this server needs an API key: send it as \"Authorization: Bearer KEY\"";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    /// The queue is full.
    pub fn queue_full(waiting: usize) -> Self {
        let message = format!("the server is busy: {waiting} requests are waiting; try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).code("queue_full");
        Self { retry_after_seconds: Some(2), queue_length: Some(waiting as u64), ..error }
    }

    /// More requests are being answered than the server takes at a time.
    pub fn busy(running: u64, waiting: u64) -> Self {
        let message =
            format!("the server is busy: {running} requests are being answered, {waiting} of them wait");
        let error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("too_many_requests");
        Self { retry_after_seconds: Some(2), queue_length: Some(waiting), ..error }
    }

    /// The model is not loaded yet.
    pub fn loading(phase: &str) -> Self {
        let message = format!("the model is not ready yet (phase {phase}); try again later");
        let error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("engine_not_ready");
        Self { retry_after_seconds: Some(2), ..error }
    }

    /// The server is stopping.
    pub fn draining() -> Self {
        let error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is stopping; try again");
        Self { retry_after_seconds: Some(1), ..error.code("engine_draining") }
    }

    /// The engine gave the request up: its device is short of memory, or the process is about to end.
    pub fn engine_failed() -> Self {
        let message = "the engine gave this request up: its device failed or is short of memory; try again";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).code("engine_failed");
        Self { retry_after_seconds: Some(1), ..error }
    }

    /// The request took too long.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the request took longer than the {seconds} seconds that this server allows");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).code("request_timeout")
    }

    /// What the answer is held to cannot tell how it goes on; `place` is the field that asked for it.
    pub fn grammar(place: Option<&str>, error: MaskError) -> Self {
        let form = place.unwrap_or("grammar");
        let message = format!(
            "the answer is not complete, since it cannot be held to {form} any longer: {error}; give it fewer \
             alternatives, and no rules by which a text can be read in many ways"
        );
        Self::invalid(place, message).code("grammar_gave_up")
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).code("internal_error")
    }

    /// A request that the core refuses; `prompt` is the API's name of the prompt.
    pub fn from_request(error: &RequestError, prompt: &str) -> Self {
        let refused = Self::invalid(Some(error.param().unwrap_or(prompt)), error.to_string());
        match error {
            RequestError::ContextLength { .. } | RequestError::FarTooLong { .. } => {
                refused.code("context_length_exceeded")
            }
            RequestError::EmptyPrompt
            | RequestError::OutOfRange { .. }
            | RequestError::ResumedChoices { .. }
            | RequestError::ResumedLength { .. }
            | RequestError::UnknownToken { .. } => refused,
        }
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        let Self { status: _, kind, code, param, message, retry_after_seconds: _, queue_length: _ } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    /// The same with the names of another API: a field, or what begins with it, is called otherwise there.
    pub fn renamed(self, names: &[(&str, &str)]) -> Self {
        let Some(param) = &self.param else { return self };
        // A tool's function is an object of its own in the chat API alone.
        let flat = param.replace("].function.", "].");
        let renamed = names.iter().find_map(|(from, to)| {
            let rest = flat.strip_prefix(from)?;
            rest.chars().next().is_none_or(|next| matches!(next, '.' | '[')).then(|| format!("{to}{rest}"))
        });
        let name = renamed.unwrap_or(flat);
        Self { message: self.message.replace(param.as_str(), &name), param: Some(name), ..self }
    }

    /// The same at another place.
    pub fn at(self, place: &str) -> Self {
        let message = match &self.param {
            Some(param) => self.message.replace(param.as_str(), place),
            None => self.message,
        };
        Self { message, param: Some(place.to_owned()), ..self }
    }

    /// The answer with a body in the form of some API.
    pub fn response(&self, body: &Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(length) = self.queue_length {
            headers.insert(QUEUE_LENGTH, HeaderValue::from(length));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Requests in the queue, on answers that say the server is busy.
const QUEUE_LENGTH: &str = "x-atlas-queue-length";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(&self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_field_of_the_api_that_was_asked() {
        let names = [("messages", "input"), ("max_tokens", "max_output_tokens")];
        for (param, expected) in [
            ("messages[0].role", "input[0].role"),
            ("max_tokens", "max_output_tokens"),
            ("max_tokens_more", "max_tokens_more"),
        ] {
            let body = ApiError::invalid(Some(param), format!("{param} is wrong")).renamed(&names).body();
            assert_eq!(body["error"]["param"], expected);
            assert_eq!(body["error"]["message"], format!("{expected} is wrong"));
        }
    }
}
