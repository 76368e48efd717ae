//! The API's routes, and what every API request passes first.

use super::fields::Fields;
use super::openai::ApiError;
use super::params::Resume;
use super::reply::InFlight;
use super::{
    App, Engine, access, anthropic, anthropic_writer, chat, completions, embeddings, health, responses,
    tokenize,
};
use crate::status::Phase;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Time in which a request's body must be there.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Chat,
    Completions,
    Responses,
    Messages,
    CountTokens,
    Embeddings,
    Tokenize,
    Detokenize,
}

impl Endpoint {
    const ALL: [Self; 8] = [
        Self::Chat,
        Self::Completions,
        Self::Responses,
        Self::Messages,
        Self::CountTokens,
        Self::Embeddings,
        Self::Tokenize,
        Self::Detokenize,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Embeddings => "/v1/embeddings",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
        }
    }

    fn route(self, resumable: bool) -> MethodRouter<Arc<App>> {
        post(move |State(app): State<Arc<App>>, request: Request| async move {
            let result = answer(&app, self, resumable, request).await;
            let response = result.unwrap_or_else(|error| self.refusal(&error));
            app.metrics.requests.with_label_values(&[self.path(), response.status().as_str()]).inc();
            response
        })
    }

    fn refusal(self, error: &ApiError) -> Response {
        refusal(self.path(), error)
    }
}

/// An error in the form of the API that the path belongs to.
pub fn refusal(path: &str, error: &ApiError) -> Response {
    let messages = Endpoint::Messages.path();
    let anthropic = path.strip_prefix(messages).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    error.response(&if anthropic { anthropic_writer::error_body(error) } else { error.body() })
}

/// All routes of the API port.
pub fn router(app: Arc<App>) -> Router {
    let mut router =
        health::routes().route("/v1/models", get(models)).route("/v1/models/{model}", get(model));
    for endpoint in Endpoint::ALL {
        router = router.route(endpoint.path(), endpoint.route(false));
    }
    router
        .fallback(|uri: Uri| async move { refusal(uri.path(), &ApiError::not_found(uri.path())) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            refusal(uri.path(), &ApiError::method_not_allowed(method.as_str(), uri.path()))
        })
        .layer(from_fn_with_state(app.clone(), access::require_key))
        // Outermost, since browsers ask for leave without a key.
        .layer(from_fn_with_state(app.clone(), access::allow_origins))
        .with_state(app)
}

/// The routes that take the fields of the resume contract: the internal port's.
pub fn resumable(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Responses, Endpoint::Messages] {
        router = router.route(endpoint.path(), endpoint.route(true));
    }
    router.with_state(app)
}

async fn answer(
    app: &Arc<App>,
    endpoint: Endpoint,
    resumable: bool,
    request: Request,
) -> Result<Response, ApiError> {
    // Counted before the phase is looked at, so that draining cannot end between the two.
    let in_flight = InFlight::new(app.clone(), request.headers());
    let engine = serving(app)?;
    let running = app.in_flight.load(Relaxed);
    if running > app.max_concurrent as u64 {
        return Err(ApiError::busy(running, app.status.progress.waiting.load(Relaxed)));
    }
    let fields = Fields::parse(&read_body(app, request).await?)?;
    if let Some(Value::String(model)) = fields.get("model") {
        check_model(app, model)?;
    }
    let resume = match resumable {
        true => Resume::read(&fields)?,
        false => {
            Resume::refuse(&fields)?;
            Default::default()
        }
    };
    match endpoint {
        Endpoint::Chat => chat::answer(app, engine, fields, in_flight, resume).await,
        Endpoint::Completions => completions::answer(app, engine, fields, in_flight, resume).await,
        Endpoint::Responses => responses::answer(app, engine, fields, in_flight, resume).await,
        Endpoint::Messages => anthropic::answer(app, engine, fields, in_flight, resume).await,
        Endpoint::CountTokens => Ok(Json(anthropic::count_tokens(engine, &fields).await?).into_response()),
        Endpoint::Embeddings => {
            Ok(Json(embeddings::answer(app, engine, &fields, in_flight.origin).await?).into_response())
        }
        Endpoint::Tokenize => Ok(Json(tokenize::tokenize(engine, &fields).await?).into_response()),
        Endpoint::Detokenize => Ok(Json(tokenize::detokenize(engine, &fields)?).into_response()),
    }
}

/// A body within its limits of size and time.
async fn read_body(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let limit = app.max_body_bytes;
    if let Some(encoding) =
        request.headers().get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity")
    {
        return Err(ApiError::encoded(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let body: Body = request.into_body();
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, limit)).await;
    let read = read.map_err(|_| ApiError::slow_body(BODY_TIMEOUT.as_secs()))?;
    read.map_err(|error| {
        let cause = std::error::Error::source(&error);
        match cause.is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>()) {
            true => ApiError::too_large(limit),
            false => ApiError::invalid(None, "the request body could not be read"),
        }
    })
}

/// The engine, where requests are served now.
fn serving(app: &App) -> Result<&Engine, ApiError> {
    match (app.status.phase(), app.engine.get()) {
        (Phase::Serving, Some(engine)) => Ok(engine),
        (Phase::Draining, _) => Err(ApiError::draining()),
        (phase, _) => Err(ApiError::loading(&format!("{phase:?}"))),
    }
}

fn model_object(app: &App, engine: &Engine, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "atlas",
        "root": app.status.model_file(),
        "max_model_len": engine.limits.context_tokens,
        "meta": {
            "n_vocab": engine.limits.vocabulary,
            "tokenizer": engine.tokenizer.label(),
            "chat_template": engine.template.is_some(),
            "fill_in_the_middle": engine.tokenizer.fill_in_the_middle().is_some(),
        },
    })
}

async fn models(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let engine = serving(&app)?;
    let names = app.served_model_names.iter();
    let models: Vec<Value> = names.map(|name| model_object(&app, engine, name)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let engine = serving(&app)?;
    // Bytes that are no text name no model.
    let Path(name) = name.unwrap_or_else(|_| Path("\u{fffd}".to_owned()));
    check_model(&app, &name)?;
    Ok(Json(model_object(&app, engine, &name)))
}

fn check_model(app: &App, name: &str) -> Result<(), ApiError> {
    let served = &app.served_model_names;
    if served.iter().any(|served| served == name) {
        Ok(())
    } else {
        Err(ApiError::model_not_found(name, served))
    }
}

/// Requests that are being answered.
pub fn in_flight(app: &App) -> u64 {
    app.in_flight.load(Relaxed)
}
