//! Tells browsers which pages may use a model.
//!
//! A browser asks for leave without the page's key, and reads no answer without it, errors included: both are the
//! gateway's to say. A model without a list is left to what its engines say.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::{
    body::{self, AnswerBody},
    registry::View,
    table::ModelConfig,
};

/// What a page may read besides the body.
const READABLE: HeaderValue =
    HeaderValue::from_static("retry-after, x-atlas-model, x-atlas-tier, x-request-id");
/// Seconds for which a browser remembers its leave.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");

/// A page that asks.
#[derive(Debug)]
pub struct Page {
    origin: HeaderValue,
    asks_for_leave: bool,
    wants: Option<HeaderValue>,
}

impl Page {
    /// The page that a request comes from, where it comes from one.
    #[must_use]
    pub fn of(head: &Parts) -> Option<Self> {
        let origin = head.headers.get(header::ORIGIN)?.clone();
        let asks_for_leave = head.method == Method::OPTIONS
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let wants = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        Some(Self { origin, asks_for_leave, wants })
    }

    /// Whether it may use the model, or any model where none is meant yet: whoever asks for leave does not name one.
    #[must_use]
    pub fn is_let_in(&self, view: &View, model: Option<&Arc<ModelConfig>>) -> bool {
        let listed = |model: &Arc<ModelConfig>| {
            model
                .cors_origins
                .iter()
                .any(|origin| origin == "*" || origin.as_bytes() == self.origin.as_bytes())
        };
        model.map_or_else(|| view.configs.values().any(listed), listed)
    }

    /// The answer to one that asks for leave; `None` where it asks for something else.
    #[must_use]
    pub fn leave(&self) -> Option<Response<AnswerBody>> {
        if !self.asks_for_leave {
            return None;
        }
        let mut response = Response::new(body::whole(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        if let Some(wants) = &self.wants {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wants.clone());
        }
        Some(response)
    }

    /// Lets the page read an answer.
    pub fn may_read(self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, READABLE);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}
