//! Why a header could not be read, in words that name the source, what was met and what to do.

use std::time::Duration;

use atlas_format::GgufError;
use atlas_operator_core::vram::{SafetensorsError, ShapeError};
use atlas_s3::PlaceError;

use crate::guard::Forbidden;

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The scheme leads nowhere from here.
    #[error("{scheme}:// is read by the engine alone{hint}")]
    Scheme {
        /// The scheme.
        scheme: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// An object of a bucket has no address.
    #[error("{0}")]
    Place(PlaceError),
    /// The address behind a source cannot be read.
    #[error("{url} is no address")]
    Url {
        /// As it was written.
        url: String,
    },
    /// The host is not public.
    #[error("{url}: {source}: name its range in --header-allow-addresses to let the operator read it")]
    Forbidden {
        /// The address without its query.
        url: String,
        /// Which host.
        source: Forbidden,
    },
    /// The server refuses.
    #[error("{url} answers {status}{hint}")]
    Refused {
        /// The address without its query.
        url: String,
        /// Its answer.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// No connection, or it broke.
    #[error("{url} cannot be reached: {reason}")]
    Unreachable {
        /// The address without its query.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// It took too long.
    #[error("{url} did not send the header within {} s", limit.as_secs())]
    Late {
        /// The address without its query.
        url: String,
        /// The limit.
        limit: Duration,
    },
    /// The file changed while it was read.
    #[error("{url} changed while its header was read")]
    Changed {
        /// The address without its query.
        url: String,
    },
    /// The header is longer than anything that is read for a plan.
    #[error("the header of {url} goes on after {limit} bytes, where reading stops")]
    TooLong {
        /// The address without its query.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The file is shorter than its header says.
    #[error("{url} ends within its header, after {bytes} bytes: the file is truncated")]
    Truncated {
        /// The address without its query.
        url: String,
        /// Bytes there were.
        bytes: u64,
    },
    /// It is no model file, or a damaged one.
    #[error("{url}: {source}")]
    Gguf {
        /// The address without its query.
        url: String,
        /// Why.
        source: GgufError,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("{url}: {source}")]
    Safetensors {
        /// The address without its query.
        url: String,
        /// Why.
        source: SafetensorsError,
    },
    /// A file beside the model is no JSON.
    #[error("{url} is not the JSON that is expected there")]
    Json {
        /// The address without its query.
        url: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The numbers in it cannot be planned with.
    #[error("{url}: {source}")]
    Shape {
        /// The address without its query.
        url: String,
        /// Why.
        source: ShapeError,
    },
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
}

impl HeaderError {
    /// Whether another try may end otherwise without anybody changing the source.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Late { .. } | Self::Changed { .. } => true,
            // A gated repository is opened, a file is uploaded: worth another look, not a quick one.
            Self::Refused { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            Self::Scheme { .. }
            | Self::Place(_)
            | Self::Url { .. }
            | Self::Forbidden { .. }
            | Self::TooLong { .. }
            | Self::Truncated { .. }
            | Self::Gguf { .. }
            | Self::Safetensors { .. }
            | Self::Json { .. }
            | Self::Shape { .. }
            | Self::Client(_) => false,
        }
    }

    /// Whether the file itself is wrong, so that an engine would refuse it too.
    #[must_use]
    pub const fn is_wrong_file(&self) -> bool {
        matches!(self, Self::Gguf { .. } | Self::Safetensors { .. } | Self::Truncated { .. })
    }

    /// The kind, for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Scheme { .. } => "scheme",
            Self::Url { .. } | Self::Place(_) => "url",
            Self::Forbidden { .. } => "forbidden",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::Late { .. } => "late",
            Self::Changed { .. } => "changed",
            Self::TooLong { .. } => "too_long",
            Self::Truncated { .. } | Self::Gguf { .. } | Self::Safetensors { .. } | Self::Json { .. } => {
                "format"
            }
            Self::Shape { .. } => "shape",
            Self::Client(_) => "client",
        }
    }
}
