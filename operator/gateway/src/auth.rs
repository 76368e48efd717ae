//! Whether the caller may use the model.
//!
//! API keys are not built yet, and the controller says so on the AtlasModel (`NotImplemented`). Until then a model
//! that asks for keys is closed: an access rule that is not understood must never open it.

use http::HeaderMap;

use crate::{error::ApiError, table::ModelConfig};

/// Lets the caller pass, or says why not.
///
/// # Errors
///
/// The model asks for API keys.
pub fn authorise(model: &ModelConfig, _headers: &HeaderMap) -> Result<(), ApiError> {
    if model.needs_api_key { Err(ApiError::AccessNotSupported { model: model.name.clone() }) } else { Ok(()) }
}
