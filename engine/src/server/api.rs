//! The API's routes, and what every API request passes first.

use super::fields::Fields;
use super::openai::ApiError;
use super::params::Resume;
use super::reply::InFlight;
use super::{App, Engine, chat, completions, health, tokenize};
use crate::status::Phase;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// All routes of the API port.
pub fn router(app: Arc<App>) -> Router {
    let limit = DefaultBodyLimit::max(app.max_body_bytes);
    health::routes()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/tokenize", post(tokenize_text))
        .route("/detokenize", post(detokenize_ids))
        .layer(limit)
        .fallback(|uri: Uri| async move { ApiError::not_found(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method_not_allowed(method.as_str(), uri.path())
        })
        .with_state(app)
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
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Json<Value>, ApiError> {
    let engine = serving(&app)?;
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

type Body = Result<Bytes, BytesRejection>;

async fn chat_completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let result = async {
        let (engine, fields, in_flight) = accept(&app, body)?;
        Resume::refuse(&fields)?;
        chat::answer(&app, engine, fields, in_flight, Default::default()).await
    };
    counted(&app, "/v1/chat/completions", result.await)
}

async fn text_completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let result = async {
        let (engine, fields, in_flight) = accept(&app, body)?;
        Resume::refuse(&fields)?;
        completions::answer(&app, engine, fields, in_flight, Default::default()).await
    };
    counted(&app, "/v1/completions", result.await)
}

async fn tokenize_text(State(app): State<Arc<App>>, body: Body) -> Response {
    let result = async {
        let (engine, fields, _in_flight) = accept(&app, body)?;
        Ok(Json(tokenize::tokenize(engine, &fields).await?).into_response())
    };
    counted(&app, "/tokenize", result.await)
}

async fn detokenize_ids(State(app): State<Arc<App>>, body: Body) -> Response {
    let result = async {
        let (engine, fields, _in_flight) = accept(&app, body)?;
        Ok(Json(tokenize::detokenize(engine, &fields)?).into_response())
    };
    counted(&app, "/detokenize", result.await)
}

/// Checks what every request must be: while serving, small enough, a JSON object, for a model that is here.
fn accept(app: &Arc<App>, body: Body) -> Result<(&Engine, Fields, InFlight), ApiError> {
    // Counted before the phase is looked at, so that draining cannot end between the two.
    let in_flight = InFlight::new(app.clone());
    let engine = serving(app)?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(app.max_body_bytes),
        _ => ApiError::invalid(None, "the request body could not be read"),
    })?;
    let fields = Fields::parse(&body)?;
    if let Some(Value::String(model)) = fields.get("model") {
        check_model(app, model)?;
    }
    Ok((engine, fields, in_flight))
}

fn counted(app: &App, path: &str, result: Result<Response, ApiError>) -> Response {
    let response = result.unwrap_or_else(IntoResponse::into_response);
    app.metrics.requests.with_label_values(&[path, response.status().as_str()]).inc();
    response
}

/// Requests that are being answered.
pub fn in_flight(app: &App) -> u64 {
    app.in_flight.load(Relaxed)
}
