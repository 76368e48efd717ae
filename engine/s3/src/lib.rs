//! Objects of buckets behind the S3 protocol: where one is, how a GET of it is signed, and what a refusal means.
//!
//! Pure: no IO, no clock, no environment. Operator and engine both read objects, and both ask here.

mod place;
mod refusal;
mod sign;

pub use place::{DEFAULT_REGION, Object, Place, PlaceError};
pub use refusal::{BUCKET_REGION_HEADER, Refusal};
pub use sign::{ACCESS_KEY_ID, Credentials, MissingKey, SECRET_ACCESS_KEY, SESSION_TOKEN, Verb};
