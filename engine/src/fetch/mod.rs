//! Gets the model onto the disk: local paths as they are, remote ones into the cache folder.
//!
//! A remote file is written as `.part`, continued after a break or a restart, and renamed when size and checksum hold,
//! so that a file under its own name is always whole. A folder of safetensors is gathered likewise in a folder whose
//! name ends in `.part`.

mod error;
mod folder;
mod http;
mod listing;
mod lock;
mod pass;
mod source;
mod space;
mod verify;

use crate::startup::Download;
use atlas_s3::Place;
use source::Source;
use std::path::{Path, PathBuf};

pub use error::FetchError;
pub use source::display_name;

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

/// A model that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its source.
    pub uri: &'a str,
    /// Where buckets are.
    pub place: &'a Place,
    /// The sum of its file.
    pub sha256: Option<&'a str>,
}

/// Gets a model file; the answer is its path.
///
/// # Errors
/// The file is missing, cannot be downloaded, or is another one than expected.
pub async fn fetch(wanted: Wanted<'_>, cache: &Path, progress: &Download) -> Result<PathBuf, FetchError> {
    let Wanted { uri, place, sha256 } = wanted;
    let source = Source::parse(uri, place)?;
    let cached = || cache.join(source::cache_name(uri, place));
    match &source {
        Source::File(path) => {
            let metadata = std::fs::metadata(path);
            let metadata = metadata.map_err(|source| FetchError::Missing { path: path.clone(), source })?;
            if metadata.is_dir() && sha256.is_some() {
                return Err(FetchError::FolderChecksum { path: path.clone() });
            }
            progress.set_done(bytes_of(path));
            check_sum(path, sha256, progress).await?;
            Ok(path.clone())
        }
        Source::Folder(_) if sha256.is_some() => Err(FetchError::FolderChecksum { path: uri.into() }),
        Source::Folder(folder) => {
            let path = cached();
            if !path.exists() {
                let _turn = lock::take_turn(&path).await;
                if !path.exists() {
                    folder::fetch(folder, &path, progress).await?;
                    return Ok(path);
                }
            }
            progress.set_done(bytes_of(&path));
            Ok(path)
        }
        Source::Remote(remote) => {
            let path = cached();
            if !is_usable(&path, sha256, progress).await? {
                // Two processes that share the cache, such as an engine and what keeps its weights warm, take turns.
                let _turn = lock::take_turn(&path).await;
                if !is_usable(&path, sha256, progress).await? {
                    let expected = http::Expected { sha256, limit: None, gguf: true };
                    http::download(&http::client(&remote.origin)?, remote, &path, expected, progress.file())
                        .await?;
                    // The download has computed it, and a second time would read gigabytes again.
                    sha256.into_iter().for_each(|sum| verify::remember(&path, sum));
                }
            }
            Ok(path)
        }
    }
}

/// Whether the cache has a file and it is the one that is wanted. One that was given in place of a model, such as a
/// page of a proxy, or that has another sum than is wanted by now, is downloaded anew.
async fn is_usable(path: &Path, sha256: Option<&str>, progress: &Download) -> Result<bool, FetchError> {
    if !path.exists() {
        return Ok(false);
    }
    if let Some(error) = verify::find_fault(path.to_owned()).await {
        tracing::warn!(file = %path.display(), %error, "what the cache has is no model: downloading it anew");
        return Ok(false);
    }
    progress.set_done(bytes_of(path));
    match check_sum(path, sha256, progress).await {
        Err(error @ FetchError::Checksum { .. }) => {
            tracing::warn!(%error, "the cache has another file: downloading it anew");
            Ok(false)
        }
        checked => checked.map(|()| true),
    }
}

async fn check_sum(path: &Path, sha256: Option<&str>, progress: &Download) -> Result<(), FetchError> {
    let Some(expected) = sha256 else { return Ok(()) };
    let (checked, expected) = (path.to_owned(), expected.to_owned());
    let count = progress.checked();
    let check = tokio::task::spawn_blocking(move || verify::check(&checked, &expected, &count));
    check.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Bytes of a file, or of the files in a folder; what cannot be looked at counts nothing, and is missed when it is opened.
fn bytes_of(path: &Path) -> u64 {
    let length =
        |path: &Path| std::fs::metadata(path).ok().filter(|file| file.is_file()).map(|file| file.len());
    if !path.is_dir() {
        return length(path).unwrap_or(0);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // Hub caches keep links, which the path follows.
    entries.filter_map(|entry| length(&entry.path())).sum()
}
