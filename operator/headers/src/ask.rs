//! What is to be read, and on whose behalf.

use std::fmt;

use atlas_crds::{ModelSource, model::S3Options};
use atlas_s3::{Credentials, Place};

/// A header that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Where the model is.
    pub source: ModelSource,
    /// Where buckets are.
    pub place: Place,
    /// What the source asks for.
    pub pass: Pass,
}

impl From<ModelSource> for Ask {
    fn from(source: ModelSource) -> Self {
        Self { source, place: Place::default(), pass: Pass::None }
    }
}

/// What a source asks for before it answers. Its text shows no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Nothing of the model's own: the hub gets the reader's token, where there is one.
    None,
    /// A token of the hub.
    Token(String),
    /// Credentials of a bucket.
    S3(Credentials),
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token",
            Self::S3(_) => "S3",
        })
    }
}

/// Where the buckets of a model file are.
#[must_use]
pub fn place_of(options: Option<&S3Options>) -> Place {
    let S3Options { endpoint, region, path_style } = options.cloned().unwrap_or_default();
    Place { endpoint, region, path_style }
}
