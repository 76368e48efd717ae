//! Sends a request to the best endpoint, and to the next one when that fails before the client saw a byte.
//!
//! Answers that are not streams are held back until they are whole, and streams until their first event, so the client
//! sees one answer. What breaks later is `relay`'s.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use tracing::debug;

use crate::{
    attempt::{Content, Failure, Form, Reached, attempt},
    body::{self, AnswerBody},
    call::Call,
    error::ApiError,
    headers::{self, Wishes},
    health::endpoint::Endpoint,
    hold,
    model::{Model, Routes},
    queue::Full,
    relay::{Relay, Rest},
};

/// Attempts of one request, over all endpoints and while it is held.
const MAX_ATTEMPTS: usize = 16;
/// Engines that may end the connection of one request without an answer: what broke them all may be the request itself,
/// and one that is sent on and on would take every tier down.
const MAX_BREAKS: usize = 3;
/// Pause before endpoints that refused are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How an attempt ended.
enum Outcome {
    /// With the answer for the client; `waited` is the part of the time that was the engine's.
    Answer { response: Response<AnswerBody>, waited: Duration },
    /// With a whole answer that says that another endpoint should be asked: 429 or a server error.
    Refused(Response<AnswerBody>),
    /// With the answer that the context is too short for the request.
    TooLong(Response<AnswerBody>),
    /// Without an answer.
    Failed(Failure),
}

/// Sends a request and returns the one answer that the client sees.
pub async fn forward(call: Arc<Call>) -> Response<AnswerBody> {
    call.model.budget.earn(std::time::Instant::now());
    let counted = Arc::clone(&call);
    let dialect = call.dialect();
    let finished = move |done: &Result<Response<AnswerBody>, ApiError>| count(&counted, done);
    let work = try_all(Arc::clone(&call));
    let done = if call.needs.streams {
        hold::answer(call, Box::pin(work), finished).await
    } else {
        let done = work.await;
        finished(&done);
        done
    };
    done.unwrap_or_else(|error| error.into_response(dialect))
}

/// Counts how a request came out, and notes it: the access log.
fn count(call: &Call, done: &Result<Response<AnswerBody>, ApiError>) {
    let model = call.model.config();
    let status = done.as_ref().map_or_else(ApiError::status, Response::status);
    let header = |name| done.as_ref().ok().and_then(|response| response.headers().get(name)?.to_str().ok());
    debug!(
        model = %model.name,
        path = call.uri.path(),
        caller = %call.caller,
        status = status.as_u16(),
        tier = header(headers::TIER),
        request_id = call.headers.get(headers::REQUEST_ID).and_then(|id| id.to_str().ok()),
        millis = u64::try_from(call.received.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    match done {
        Ok(response) => {
            let tier = response.headers().get(headers::TIER).and_then(|value| value.to_str().ok());
            call.metrics.answered(&model.name, tier, response.status());
        }
        Err(error) => {
            call.model.count(|counts| &counts.failed);
            call.metrics.answered(&model.name, None, error.status());
        }
    }
}

/// The attempts of one request.
struct Attempts {
    tried: Vec<Arc<Endpoint>>,
    count: usize,
    /// Those that ended in a connection which broke behind the request.
    breaks: usize,
    last_refusal: Option<Response<AnswerBody>>,
    /// The answer that a context was too short, and that context.
    too_long: Option<(Response<AnswerBody>, u64)>,
}

async fn try_all(call: Arc<Call>) -> Result<Response<AnswerBody>, ApiError> {
    let model = &call.model;
    let config = model.config();
    let hold_until = call.deadline.min(call.received + model.timing.hold);
    let timed_out = || {
        let millis = call.deadline.duration_since(call.received).as_millis();
        ApiError::Timeout { model: config.name.clone(), millis }
    };
    // Kept with the call, whose last holder is the answer's body.
    let waits = call.metrics.queue(&config.name);
    let most = config.queue.saturating_mul(model.endpoints().len().max(1));
    let entered = tokio::time::timeout_at(call.deadline, model.queue.enter(&call.caller, most)).await;
    let place = entered.map_err(|_| timed_out())?;
    let place = place.map_err(|Full { queued, served_in }| {
        let model = config.name.clone();
        ApiError::Busy { model, queued, retry_after: served_in }
    })?;
    // Nobody else sets it.
    let _ = call.place.set(place);
    drop(waits);
    let mut held = None;
    let mut routes = model.routes();
    let mut attempts =
        Attempts { tried: Vec::new(), count: 0, breaks: 0, last_refusal: None, too_long: None };
    loop {
        let view = Arc::clone(&routes.borrow_and_update());
        if let (Some(tier), Some(active)) = (&call.required_tier, &view.active_tier)
            && tier != active
            && !view.serves(tier)
        {
            let (model, reasons) = (config.name.clone(), model.describe_tiers());
            return Err(ApiError::TierNotActive { model, tier: tier.clone(), reasons });
        }
        if let Some(endpoint) = choose(&call, &view, &attempts)? {
            // The first retry is free: when an engine is lost, everything that it held moves at once.
            if attempts.count >= 2 && !model.budget.spend(std::time::Instant::now()) {
                let model = config.name.clone();
                return attempts.last_refusal.ok_or(ApiError::RetriesUsedUp { model });
            }
            attempts.count += 1;
            let tried = tokio::time::timeout_at(call.deadline, try_one(&call, &endpoint)).await;
            match tried.map_err(|_| timed_out())? {
                Outcome::Answer { response, waited } => {
                    if attempts.count == 1 {
                        call.metrics.added(&config.name, call.received.elapsed().saturating_sub(waited));
                    }
                    return Ok(response);
                }
                Outcome::Refused(response) => {
                    note_retry(&call, &endpoint, response.status().as_str());
                    attempts.last_refusal = Some(response);
                }
                Outcome::TooLong(response) => {
                    attempts.too_long = Some((response, context_of(&call, &endpoint)));
                }
                Outcome::Failed(failure) => {
                    if matches!(failure, Failure::Lost(_)) {
                        call.metrics.aborted(&config.name);
                    }
                    note_retry(&call, &endpoint, failure.blame(&call, &endpoint));
                    attempts.breaks += usize::from(matches!(failure, Failure::Broken));
                    if attempts.breaks >= MAX_BREAKS {
                        let (model, breaks) = (config.name.clone(), attempts.breaks);
                        return Err(ApiError::EnginesBreak { model, breaks });
                    }
                }
            }
            attempts.tried.push(endpoint);
            continue;
        }
        if let Some((response, context)) = attempts.too_long {
            return too_long(&call, &view, context).map_or(Ok(response), Err);
        }
        // Everything that may be asked was asked. "Too many" and "broken" are answers; "not now" and no answer at
        // all are worth waiting for.
        let refusal = attempts.last_refusal.as_ref().map(Response::status);
        let worth_waiting = refusal.is_none_or(|status| status == StatusCode::SERVICE_UNAVAILABLE);
        if !worth_waiting || attempts.count >= MAX_ATTEMPTS || Instant::now() >= hold_until {
            let (model, reasons) = (config.name.clone(), model.describe_tiers());
            return attempts.last_refusal.ok_or(ApiError::NoTierServes { model, reasons });
        }
        if held.is_none() {
            let place = model.hold().ok_or_else(|| ApiError::TooManyHeld { model: config.name.clone() })?;
            held = Some((place, call.metrics.hold(&config.name)));
        }
        tokio::select! {
            changed = routes.changed() => if changed.is_err() { return Err(timed_out()) },
            () = tokio::time::sleep(RETRY_PAUSE), if !attempts.tried.is_empty() => {}
            () = tokio::time::sleep_until(hold_until) => {}
        }
        attempts.tried.clear();
    }
}

/// The endpoint to ask next.
///
/// # Errors
///
/// Every endpoint that serves has too short a context, and a better tier has not: that is said before anything is sent.
fn choose(call: &Call, view: &Routes, attempts: &Attempts) -> Result<Option<Arc<Endpoint>>, ApiError> {
    if attempts.count >= MAX_ATTEMPTS {
        return Ok(None);
    }
    let may_try = |endpoint: &Arc<Endpoint>| {
        call.required_tier.as_ref().is_none_or(|tier| *tier == endpoint.config.tier)
            && !attempts.tried.iter().any(|other| Arc::ptr_eq(other, endpoint))
    };
    if let Some((_, too_short)) = attempts.too_long {
        return Ok(
            view.choose(&call.needs, |endpoint| may_try(endpoint) && context_of(call, endpoint) > too_short)
        );
    }
    let fits = |endpoint: &Arc<Endpoint>| context_of(call, endpoint) >= call.needs.least_tokens;
    if let Some(endpoint) = view.choose(&call.needs, |endpoint| may_try(endpoint) && fits(endpoint)) {
        return Ok(Some(endpoint));
    }
    // What no tier can take is refused by the engine, which can count tokens.
    let Some(endpoint) = view.choose(&call.needs, may_try) else { return Ok(None) };
    match too_long(call, view, context_of(call, &endpoint)) {
        Some(error) if attempts.count == 0 => Err(error),
        _ => Ok(Some(endpoint)),
    }
}

/// What the engine says itself, or else what it was started with.
fn context_of(call: &Call, endpoint: &Endpoint) -> u64 {
    endpoint.facts().context_tokens.unwrap_or_else(|| {
        let config = call.model.config();
        let tier = config.tiers.iter().find(|tier| tier.name == endpoint.config.tier);
        tier.map_or(u64::MAX, |tier| tier.context_tokens)
    })
}

/// Says that a tier which does not serve now has the context that the request needs, where there is one.
fn too_long(call: &Call, view: &Routes, context_tokens: u64) -> Option<ApiError> {
    let config = call.model.config();
    let enough = call.needs.least_tokens.max(context_tokens.saturating_add(1));
    let larger = config.tiers.iter().find(|tier| tier.context_tokens >= enough)?;
    if call.required_tier.as_ref().is_some_and(|required| *required != larger.name) {
        return None;
    }
    Some(ApiError::TierTooSmall {
        model: config.name.clone(),
        serving: view.active_tier.clone().unwrap_or_else(|| "none".to_owned()),
        context_tokens,
        larger: larger.name.clone(),
        larger_tokens: larger.context_tokens,
    })
}

/// The only tier that may answer, where the client wants that.
///
/// # Errors
///
/// The model has no such tier.
pub fn required_tier(model: &Model, wishes: &Wishes) -> Result<Option<String>, ApiError> {
    let config = model.config();
    if let Some(tier) = &wishes.require_tier {
        if !config.tiers.iter().any(|known| known.name == *tier) {
            let expected = "the name of one of the model's tiers";
            return Err(ApiError::BadHeader { name: "x-atlas-require-tier", value: tier.clone(), expected });
        }
        return Ok(Some(tier.clone()));
    }
    let first = config.pinned_tier.as_ref().or_else(|| config.tiers.first().map(|tier| &tier.name));
    Ok(first.filter(|_| wishes.no_fallback).cloned())
}

fn note_retry(call: &Call, endpoint: &Endpoint, cause: &str) {
    let (name, address) = (&endpoint.config.model, endpoint.config.api);
    debug!(model = %name, tier = %endpoint.config.tier, %address, cause, "an attempt failed");
    call.model.count(|counts| &counts.retried);
    call.metrics.retried(name, cause);
}

async fn try_one(call: &Arc<Call>, endpoint: &Arc<Endpoint>) -> Outcome {
    let form = match &call.needs.with_ids {
        Some(body) if endpoint.takes_resume(call.dialect()) => Form::WithIds(body.clone()),
        _ => Form::Plain,
    };
    match attempt(call, endpoint, form).await {
        Ok(reached) => judge(call, endpoint, reached),
        Err(failure) => Outcome::Failed(failure),
    }
}

fn judge(call: &Arc<Call>, endpoint: &Arc<Endpoint>, reached: Reached) -> Outcome {
    let waited = reached.waited;
    let (parts, content, rest) = Rest::split(reached);
    let status = parts.status;
    let too_long =
        matches!(&content, Content::Whole(bytes) if status == StatusCode::BAD_REQUEST && is_too_long(bytes));
    let body = match content {
        Content::Whole(bytes) => body::whole(bytes),
        Content::Stream(upstream) => Relay::body(Arc::clone(call), upstream, Arc::clone(endpoint), rest),
    };
    let tier = &endpoint.config.tier;
    let config = call.model.config();
    let display_model = config.display_model(tier);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers::for_client(&parts.headers, tier, display_model);
    if too_long {
        Outcome::TooLong(response)
    } else if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Outcome::Refused(response)
    } else {
        Outcome::Answer { response, waited }
    }
}

fn is_too_long(body: &Bytes) -> bool {
    let value = serde_json::from_slice::<Value>(body).unwrap_or_default();
    value["error"]["code"] == "context_length_exceeded"
}
