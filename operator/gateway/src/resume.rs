//! Finds an engine that goes on with a broken stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use crate::{
    attempt::{Content, Form, attempt},
    call::Call,
    health::endpoint::Endpoint,
    relay::{Rest, Source},
};

/// Engines that are asked for one break.
const MAX_ATTEMPTS: usize = 8;

/// Which engines are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Those that serve the same model file, as soon as there is one.
    Same,
    /// The same, but none is waited for.
    SameNow,
    /// Those that serve another one.
    Others,
}

/// Sends the request that goes on to engines, until one does. The broken endpoint itself is asked again only after
/// something about the endpoints changed: a lost connection is not yet a lost engine.
pub async fn go_on(
    call: &Arc<Call>,
    broken: &Arc<Endpoint>,
    body: Bytes,
    among: Among,
) -> Option<(Source, Arc<Endpoint>)> {
    let model_file = broken.facts().model_file.clone()?;
    let hold = if among == Among::SameNow { Duration::ZERO } else { call.model.timing.resume_hold };
    let hold_until = call.deadline.min(Instant::now() + hold);
    let mut routes = call.model.routes();
    let mut tried = vec![Arc::clone(broken)];
    for _ in 0..MAX_ATTEMPTS {
        let view = Arc::clone(&routes.borrow_and_update());
        let chosen = view.choose(&call.needs, |endpoint| {
            (endpoint.facts().model_file.as_ref() == Some(&model_file)) == (among != Among::Others)
                && endpoint.takes_resume(call.dialect())
                && call.required_tier.as_ref().is_none_or(|tier| *tier == endpoint.config.tier)
                && !tried.iter().any(|other| Arc::ptr_eq(other, endpoint))
        });
        let Some(endpoint) = chosen else {
            tokio::select! {
                changed = routes.changed() => changed.ok()?,
                () = tokio::time::sleep_until(hold_until) => return None,
            }
            tried.clear();
            continue;
        };
        let sent = attempt(call, &endpoint, Form::Resumed(body.clone()));
        match tokio::time::timeout_at(call.deadline, sent).await.ok()? {
            Ok(reached) => {
                let (parts, content, rest) = Rest::split(reached);
                match content {
                    Content::Stream(upstream) if parts.status.is_success() && upstream.events => {
                        return Some((rest.into_source(upstream, Arc::clone(&endpoint)), endpoint));
                    }
                    // It does not know the contract, or cannot go on from there: nor can another one of its kind.
                    _ if parts.status.is_client_error() && parts.status != StatusCode::TOO_MANY_REQUESTS => {
                        return None;
                    }
                    _ => {}
                }
            }
            Err(failure) => {
                failure.blame(call, &endpoint);
            }
        }
        tried.push(endpoint);
    }
    None
}
