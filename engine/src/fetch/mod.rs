//! Gets the model file onto the disk: local paths as they are, remote ones into the cache folder.
//!
//! A remote file is written as `.part`, continued after a break or a restart, and renamed when size and checksum hold,
//! so that a file under its own name is always whole.

mod http;
mod lock;
mod source;
mod verify;

use crate::startup::Download;
use atlas_engine_core::ExitCode;
use source::Source;
use std::path::{Path, PathBuf};

pub use source::display_name;

/// Why a model file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The scheme is not known or not built.
    #[error("model source {uri:?} is not supported: use hf://, https://, http://, file:// or a path{hint}")]
    Scheme {
        /// The source.
        uri: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// Something behind the scheme is missing.
    #[error("model source {uri:?} is incomplete: expected {expected}")]
    Incomplete {
        /// The source.
        uri: String,
        /// The form.
        expected: &'static str,
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
    #[error("--sha256 is the sum of one file, and {path} is a folder: leave it out")]
    FolderChecksum {
        /// The folder.
        path: PathBuf,
    },
    /// The cache folder cannot be written.
    #[error("cannot write {path} in the model cache")]
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
        hint: &'static str,
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
        source: http::Interrupted,
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
            Self::Scheme { .. } | Self::Incomplete { .. } | Self::FolderChecksum { .. } => ExitCode::Usage,
            Self::Checksum { .. } => ExitCode::ChecksumMismatch,
            Self::Client(_) => ExitCode::Internal,
            Self::Missing { .. } | Self::Cache { .. } | Self::Refused { .. } | Self::Broken { .. } => {
                ExitCode::ModelUnavailable
            }
        }
    }
}

/// Reads a model, a file or the files of a folder, so that the page cache holds what there is room for.
///
/// # Errors
/// It cannot be read.
pub async fn read_ahead(path: &Path) -> Result<(), FetchError> {
    let model = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        let files = if model.is_dir() {
            std::fs::read_dir(&model)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?
        } else {
            vec![model]
        };
        let mut bytes = 0;
        for file in files.iter().filter(|file| file.is_file()) {
            bytes += std::io::copy(&mut std::fs::File::open(file)?, &mut std::io::sink())?;
        }
        tracing::info!(bytes, milliseconds = began.elapsed().as_millis(), "holding the model");
        Ok(())
    });
    let failed = |source| FetchError::Missing { path: path.to_owned(), source };
    read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map_err(failed)
}

/// Gets a model file; the answer is its path.
///
/// # Errors
/// The file is missing, cannot be downloaded, or is another one than expected.
pub async fn fetch(
    uri: &str,
    cache: &Path,
    sha256: Option<&str>,
    progress: &Download,
) -> Result<PathBuf, FetchError> {
    let source = Source::parse(uri)?;
    let path = match &source {
        Source::File(path) => path.clone(),
        Source::Remote(remote) => cache.join(remote.cache_name()),
    };
    match (std::fs::metadata(&path), &source) {
        (Ok(metadata), _) if metadata.is_dir() => {
            if sha256.is_some() {
                return Err(FetchError::FolderChecksum { path });
            }
            progress.set_done(folder_bytes(&path));
        }
        (Ok(metadata), _) => progress.set_done(metadata.len()),
        (Err(error), Source::File(_)) => return Err(FetchError::Missing { path, source: error }),
        (Err(_), Source::Remote(remote)) => {
            // Two processes that share the cache, such as an engine and what keeps its weights warm, take turns.
            let _turn = lock::take_turn(&path).await;
            match std::fs::metadata(&path) {
                Ok(metadata) => progress.set_done(metadata.len()),
                Err(_) => http::download(remote, &path, sha256, progress).await?,
            }
        }
    }
    if let Some(expected) = sha256 {
        let (checked, expected) = (path.clone(), expected.to_owned());
        let count = progress.checked();
        let check = tokio::task::spawn_blocking(move || verify::check(&checked, &expected, &count));
        check.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    }
    Ok(path)
}

/// Bytes of the files in a folder; what cannot be looked at counts nothing, and is missed when it is opened.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // Hub caches keep links, which the path follows.
    entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .filter(|file| file.is_file())
        .map(|file| file.len())
        .sum()
}
