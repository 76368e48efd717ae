//! Whether the caller may use the model.
//!
//! A model that asks for keys is closed until they were read: an access rule that is not known must never open it.

use http::{HeaderMap, HeaderName, header};

use crate::{
    error::ApiError,
    headers,
    keys::{Caller, KeyRing},
    table::ModelConfig,
};

/// Lets the caller pass and says who it is, where the model asks.
///
/// # Errors
///
/// The model asks for a key, and there is none, a wrong one, or the keys are not known yet.
pub fn authorise(model: &ModelConfig, keys: &KeyRing, given: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    let Some(secret) = &model.api_keys_secret else { return Ok(None) };
    let Some(keys) = keys.get(secret) else {
        return Err(ApiError::KeysNotRead { model: model.name.clone(), secret: secret.clone() });
    };
    let text = |name: &HeaderName| given.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(&header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    // Clients of `/v1/messages` send it under a name of its own.
    let key = bearer.or_else(|| text(&headers::API_KEY));
    let caller = key.and_then(|key| keys.find(key)).cloned();
    let told = key.is_some();
    caller.map(Some).ok_or_else(|| ApiError::NotAuthorised { model: model.name.clone(), told })
}
