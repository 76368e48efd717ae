//! The form in which errors are told: that of the API whose path was asked for.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

/// The API that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, and every path that is none of the others.
    OpenAi,
    /// OpenAI's Responses: its streams have named events.
    Responses,
    /// Anthropic's Messages.
    Anthropic,
}

/// Something that went wrong, before it is written in a dialect.
#[derive(Debug)]
pub struct Problem {
    /// The status that it has, or would have had before the stream began.
    pub status: StatusCode,
    /// For machines.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Dialect {
    /// Reads it off a path, with or without `/v1/`.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let path = path.strip_prefix("/v1/").unwrap_or(path);
        match path.split('/').next() {
            Some("messages") => Self::Anthropic,
            Some("responses") => Self::Responses,
            _ => Self::OpenAi,
        }
    }

    /// The body of an answer that is an error.
    #[must_use]
    pub fn body(self, problem: &Problem) -> Value {
        let Problem { status, code, message } = problem;
        match self {
            Self::OpenAi | Self::Responses => json!({"error": {
                "message": message, "type": openai_type(*status), "param": null, "code": code,
            }}),
            Self::Anthropic => json!({"type": "error", "error": {
                "type": anthropic_type(*status), "message": message, "code": code,
            }}),
        }
    }

    /// The event that ends a stream which has begun.
    #[must_use]
    pub fn event(self, problem: &Problem) -> Bytes {
        self.event_of(&self.body(problem))
    }

    /// The same of an error body, be it ours or an engine's.
    #[must_use]
    pub fn event_of(self, body: &Value) -> Bytes {
        Bytes::from(match self {
            Self::OpenAi => format!("data: {body}\n\n"),
            Self::Anthropic => format!("event: error\ndata: {body}\n\n"),
            Self::Responses => {
                let error = &body["error"];
                let flat = json!({"type": "error", "code": error["code"], "message": error["message"],
                    "param": error["param"]});
                format!("event: error\ndata: {flat}\n\n")
            }
        })
    }
}

fn openai_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_form_of_the_path_that_was_asked_for() {
        let check = |path: &str, status: u16, body: Value, event: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let problem = Problem { status, code: "some_code", message: "why".into() };
            let dialect = Dialect::of(path);
            assert_eq!(dialect.body(&problem), body, "{path}");
            let told = dialect.event(&problem);
            let told = std::str::from_utf8(&told).unwrap();
            let data = told.strip_prefix(event).unwrap_or_else(|| panic!("{path}: {told}"));
            let data: Value = serde_json::from_str(data).unwrap();
            let flat = json!({"type": "error", "code": "some_code", "message": "why", "param": null});
            assert_eq!(data, if dialect == Dialect::Responses { flat } else { body }, "{path}");
        };
        let openai = |kind: &str| json!({"error": {"message": "why", "type": kind, "param": null, "code": "some_code"}});
        let anthropic = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "why", "code": "some_code"}});
        check("/v1/chat/completions", 503, openai("server_error"), "data: ");
        check("/v1/responses", 429, openai("rate_limit_error"), "event: error\ndata: ");
        check("/v1/messages", 503, anthropic("overloaded_error"), "event: error\ndata: ");
        check("/v1/messages/count_tokens", 404, anthropic("not_found_error"), "event: error\ndata: ");
        check("messages", 401, anthropic("authentication_error"), "event: error\ndata: ");
        check("/v1/messagesque", 404, openai("invalid_request_error"), "data: ");
    }
}
