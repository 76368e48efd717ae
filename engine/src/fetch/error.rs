//! Why a model could not be had, each with what to do about it.

use super::http::Interrupted;
use atlas_engine_core::ExitCode;
use atlas_format::{GgufError, SafetensorsError};
use atlas_s3::{MissingKey, PlaceError};
use std::path::PathBuf;

/// Why a model file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The scheme is not known.
    #[error("model source {uri:?} is not supported: use hf://, https://, http://, s3://, file:// or a path")]
    Scheme {
        /// The source.
        uri: String,
    },
    /// An object of a bucket has no address.
    #[error("the object's address cannot be made")]
    Place(#[source] PlaceError),
    /// Half of the credentials is missing.
    #[error("the credentials of the bucket are incomplete: give both keys, or neither for a public bucket")]
    Credentials(#[source] MissingKey),
    /// Something behind the scheme is missing.
    #[error("model source {uri:?} is incomplete: expected {expected}")]
    Incomplete {
        /// The source.
        uri: String,
        /// The form.
        expected: &'static str,
    },
    /// A repository or folder lacks files of a model.
    #[error("{place} lacks {}{hint}", names.join(", "))]
    Lacks {
        /// The repository or folder.
        place: String,
        /// What is not there.
        names: Vec<String>,
        /// What to do instead.
        hint: String,
    },
    /// What describes a folder cannot be read.
    #[error("{url} does not describe a model's files")]
    Listing {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index of a folder is wrong.
    #[error("{url} is damaged")]
    Index {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: SafetensorsError,
    },
    /// What is read as a whole is larger than anything of its kind.
    #[error(
        "{url} has at least {bytes} bytes, and {limit} are the most that such a file may have: check the source"
    )]
    TooLarge {
        /// The address.
        url: String,
        /// Bytes that were announced or came.
        bytes: u64,
        /// The most there may be.
        limit: u64,
    },
    /// The disk is too small for what is left to be fetched.
    #[error(
        "{path} has {free} bytes free, and {needed} more are to be downloaded: make room, or use a larger volume"
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that it has free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// There is no such file.
    #[error("model file {path} cannot be read: check --model and the volume that should hold it")]
    Missing {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A checksum is given for a folder.
    #[error(
        "--sha256 is the sum of one file, and {path} is a folder: leave it out, and name a commit as revision instead"
    )]
    FolderChecksum {
        /// The folder, or its address.
        path: PathBuf,
    },
    /// The cache folder cannot be written.
    #[error(
        "cannot write {path}: the model cache must have room, and be writable for the user of this process"
    )]
    Cache {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server refuses, and would again.
    #[error("{url} answers {status}{hint}")]
    Refused {
        /// The address.
        url: String,
        /// Its answer.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// The download broke again and again.
    #[error("downloading {url} failed {attempts} times")]
    Broken {
        /// The address.
        url: String,
        /// Attempts.
        attempts: u32,
        /// The last break.
        #[source]
        source: Interrupted,
    },
    /// Something else came in place of a model.
    #[error(
        "{url} sent no whole model: check the source, and whether a proxy or a login page answers in its place; nothing of it was kept"
    )]
    NoModel {
        /// The address.
        url: String,
        /// What shows it.
        #[source]
        source: GgufError,
    },
    /// The HTTP client could not be built.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The file is another one.
    #[error("{path} has the sha256 {found}, expected {expected}{hint}")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Its sum.
        found: String,
        /// The expected one.
        expected: String,
        /// What was done about it.
        hint: &'static str,
    },
}

impl FetchError {
    /// The exit code of the contract.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Scheme { .. } | Self::Incomplete { .. } | Self::FolderChecksum { .. } | Self::Place(_) => {
                ExitCode::Usage
            }
            Self::Checksum { .. } => ExitCode::ChecksumMismatch,
            Self::Client(_) => ExitCode::Internal,
            Self::Index { .. } | Self::TooLarge { .. } | Self::NoModel { .. } => ExitCode::ModelInvalid,
            Self::Missing { .. }
            | Self::Lacks { .. }
            | Self::Listing { .. }
            | Self::NoSpace { .. }
            | Self::Cache { .. }
            | Self::Refused { .. }
            | Self::Credentials(_)
            | Self::Broken { .. } => ExitCode::ModelUnavailable,
        }
    }
}
