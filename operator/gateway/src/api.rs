//! One request from its head to its answer: identify the model, authorise, read the body, forward.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    auth,
    body::{self, AnswerBody},
    call::{Call, Needs},
    config::Timing,
    cors::Page,
    detached,
    dialect::Dialect,
    error::ApiError,
    forward,
    headers::{self, Wishes},
    identify::{self, BodyHead, HostNames},
    limits::{self, Reached, Usage},
    linger::Lingering,
    metrics::Metrics,
    registry::{Registry, View},
    table::ModelConfig,
};

/// The API of a gateway.
#[derive(Debug)]
pub struct Api {
    /// The models.
    pub registry: Arc<Registry>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The names under which models are reached.
    pub names: HostNames,
    /// Waits and limits.
    pub timing: Timing,
    /// What callers use of their limits.
    pub usage: Arc<Usage>,
}

impl Api {
    /// Answers a request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let request_id = request.headers().get(headers::REQUEST_ID).cloned();
        let dialect = Dialect::of(request.uri().path());
        let (head, incoming) = request.into_parts();
        let (page, mut meant) = (Page::of(&head), None);
        let answered = self.try_answer(head, incoming, page.as_ref(), &mut meant).await;
        let mut response = answered.unwrap_or_else(|error| error.into_response(dialect));
        if let Some(page) = page
            && page.is_let_in(&self.registry.view(), meant.as_ref())
        {
            page.may_read(response.headers_mut());
        }
        if let Some(id) = request_id {
            response.headers_mut().entry(headers::REQUEST_ID).or_insert(id);
        }
        response
    }

    /// Refuses what needs no engine to be refused.
    fn admit(
        &self,
        config: &ModelConfig,
        view: &View,
        headers: &HeaderMap,
        body_bytes: usize,
    ) -> Result<(Wishes, Admitted), ApiError> {
        let caller = auth::authorise(config, &view.keys, headers)?;
        if config.suspended {
            return Err(ApiError::Suspended { model: config.name.clone() });
        }
        if body_bytes > config.max_body_bytes {
            return Err(ApiError::BodyTooLarge { limit_bytes: config.max_body_bytes });
        }
        let wishes = Wishes::parse(headers)?;
        let Some(caller) = caller else {
            return Ok((wishes, Admitted { caller: String::new(), running: None }));
        };
        // Whoever is known by a key has it from a Secret; without one nobody is told apart.
        let secret = config.api_keys_secret.as_deref().unwrap_or_default();
        match self.usage.begin(secret, &caller, std::time::Instant::now()) {
            Ok(running) => Ok((wishes, Admitted { caller: caller.name, running: Some(running) })),
            Err(Reached { limit, value, retry_after }) => {
                self.metrics.limited(&config.name, limit);
                Err(ApiError::LimitReached { limit, value, retry_after })
            }
        }
    }

    /// `known` is the model that is meant, as soon as it is known.
    async fn try_answer(
        &self,
        head: Parts,
        incoming: Incoming,
        page: Option<&Page>,
        known: &mut Option<Arc<ModelConfig>>,
    ) -> Result<Response<AnswerBody>, ApiError> {
        let received = Instant::now();
        headers::check_clear(&head)?;
        let incoming = Lingering::new(&head.headers, incoming);
        let path = head.uri.path();
        // Engines have these two beside the API.
        let beside = || ["/tokenize", "/detokenize"].contains(&path).then(|| &path[1..]);
        let Some(path) = path.strip_prefix("/v1/").or_else(beside) else {
            return Err(ApiError::PathNotFound { path: path.to_owned() });
        };
        let view = self.registry.view();
        // A target that names a host counts more than the header (RFC 9112, 3.2.2).
        let host = head.uri.host().or_else(|| head.headers.get(header::HOST)?.to_str().ok());
        let named_by_host = identify::by_host(&view.configs, &self.names, host);
        *known = named_by_host.cloned();
        if let Some(leave) = page.filter(|page| page.is_let_in(&view, named_by_host)).and_then(Page::leave) {
            return Ok(leave);
        }
        if matches!(head.method, Method::GET | Method::HEAD)
            && let Some(response) = list_models(path, &view, named_by_host, &head.headers)
        {
            return response;
        }

        // The only model that it can mean: who may not use it is told so before anything of a body is kept.
        let meant =
            named_by_host.or_else(|| view.configs.values().next().filter(|_| view.configs.len() == 1));
        if let Some(config) = meant
            && let Err(error) = auth::authorise(config, &view.keys, &head.headers)
        {
            if let Some(model) = view.models.get(&config.name) {
                model.count(|counts| &counts.total);
            }
            self.metrics.answered(&config.name, None, error.status());
            return Err(error);
        }
        let encoding = head.headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
        if let Some(encoding) = encoding {
            return Err(ApiError::Encoded {
                encoding: String::from_utf8_lossy(encoding.as_bytes()).into_owned(),
            });
        }
        let largest = || view.configs.values().map(|model| model.max_body_bytes).max().unwrap_or_default();
        let limit = named_by_host.map_or_else(largest, |model| model.max_body_bytes);
        let body = read_body(incoming, limit, self.timing).await?;
        let (body_head, body) = BodyHead::of(body);
        let id = body_head.model.as_deref();
        let config = identify::identify(&view.configs, named_by_host, id)
            .map_err(|error| identify::not_json(&body).filter(|_| id.is_none()).unwrap_or(error))
            .map_err(|error| only_seen(error, &view, &head.headers))?;
        *known = Some(Arc::clone(config));
        let body = if config.client_priority { body } else { body_head.without_priority(body) };
        let needs = Needs::of(&head.method, path, &body_head, &body);
        // Both maps are made from one table, so the model is there.
        let Some(model) = view.models.get(&config.name) else {
            return Err(ApiError::ModelNotFound { id: body_head.model, available: Vec::new() });
        };
        let running = self.metrics.begin(&config.name);
        model.count(|counts| &counts.total);
        let checked = self
            .admit(config, &view, &head.headers, body.len())
            .and_then(|(wishes, admitted)| Ok((forward::required_tier(model, &wishes)?, wishes, admitted)));
        let response = match checked {
            Err(error) => {
                self.metrics.answered(&config.name, None, error.status());
                error.into_response(Dialect::of(path))
            }
            Ok((required_tier, wishes, Admitted { caller, running })) => {
                let limit = wishes.timeout.map_or(config.timeout, |timeout| timeout.min(config.timeout));
                let call = Call {
                    model: Arc::clone(model),
                    metrics: Arc::clone(&self.metrics),
                    method: head.method,
                    uri: detached::origin_form(&head.uri),
                    headers: detached::headers(&headers::for_engine(&head.headers, &caller)),
                    body,
                    needs,
                    required_tier,
                    across_models: wishes.across_models.unwrap_or(config.across_models),
                    caller,
                    _running: running,
                    place: OnceLock::new(),
                    received,
                    deadline: received + limit,
                };
                // Apart from this future, which most refusals never grow beyond.
                Box::pin(forward::forward(Arc::new(call))).await
            }
        };
        drop(running);
        Ok(response)
    }
}

/// Who was let in.
struct Admitted {
    caller: String,
    running: Option<limits::Running>,
}

/// The error without the ids of models that the caller may not use.
fn only_seen(mut error: ApiError, view: &View, headers: &HeaderMap) -> ApiError {
    if let ApiError::ModelNotFound { available, .. } = &mut error {
        let may_see = |model: &ModelConfig| auth::authorise(model, &view.keys, headers).is_ok();
        available.retain(|id| view.configs.values().any(|model| model.answers_to(id) && may_see(model)));
    }
    error
}

async fn read_body(
    incoming: Lingering,
    limit_bytes: usize,
    timing: Timing,
) -> Result<bytes::Bytes, ApiError> {
    if incoming.size_hint().lower() > limit_bytes as u64 {
        return Err(ApiError::BodyTooLarge { limit_bytes });
    }
    let collected =
        tokio::time::timeout(timing.body_timeout, Limited::new(incoming, limit_bytes).collect()).await;
    match collected {
        Err(_) => Err(ApiError::BodyTooSlow { seconds: timing.body_timeout.as_secs() }),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { limit_bytes }),
        Ok(Err(_)) => Err(ApiError::BodyBroken),
        // A copy of its own size: a small body would keep the connection's whole read buffer from being used again.
        Ok(Ok(collected)) => Ok(bytes::Bytes::copy_from_slice(&collected.to_bytes())),
    }
}

/// `/v1/models` and `/v1/models/ID`, which need no engine; `None` for every other path. Who may not use a model does not
/// see it.
fn list_models(
    path: &str,
    view: &View,
    named_by_host: Option<&Arc<ModelConfig>>,
    headers: &HeaderMap,
) -> Option<Result<Response<AnswerBody>, ApiError>> {
    let shown = || -> Vec<&Arc<ModelConfig>> {
        named_by_host.map_or_else(|| view.configs.values().collect(), |model| vec![model])
    };
    let may_see = |model: &ModelConfig| auth::authorise(model, &view.keys, headers).is_ok();
    let entry = |id: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": "atlas"});
    if path == "models" {
        let ids: Vec<_> = shown()
            .iter()
            .filter(|model| may_see(model))
            .flat_map(|model| model.ids().map(entry).collect::<Vec<_>>())
            .collect();
        return Some(Ok(body::json(StatusCode::OK, &json!({"object": "list", "data": ids}))));
    }
    // Clients send an id with a slash in either form.
    let id = percent_decode_str(path.strip_prefix("models/")?).decode_utf8_lossy();
    Some(
        identify::identify(&view.configs, named_by_host, Some(&id))
            .map_err(|error| only_seen(error, view, headers))
            .and_then(|model| auth::authorise(model, &view.keys, headers))
            .map(|_| body::json(StatusCode::OK, &entry(&id))),
    )
}
