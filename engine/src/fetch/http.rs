//! Downloads over HTTP: resumed by range, retried with growing pauses.

use super::source::Remote;
use super::{FetchError, verify};
use crate::status::Download;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

const ATTEMPTS: u32 = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence within a download.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why one attempt ended early; the next one may do better.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// The connection broke or was never made.
    #[error("the connection failed")]
    Connection(#[from] reqwest::Error),
    /// The server has trouble.
    #[error("the server answers {0}")]
    Status(StatusCode),
    /// The stream ended before the file did.
    #[error("the stream ended after {bytes} of {expected} bytes")]
    Short {
        /// Bytes there are.
        bytes: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// What was continued does not have the expected sum, so the whole file is fetched again.
    #[error("the continued file has another checksum")]
    StalePart,
}

/// One attempt's end.
enum Attempt {
    Done,
    Again(Interrupted),
}

/// Downloads a file to `path`, through `path` with `.part` appended.
pub async fn download(
    remote: &Remote,
    path: &Path,
    sha256: Option<&str>,
    progress: &Download,
) -> Result<(), FetchError> {
    let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
    let client = client.user_agent(concat!("atlas-engine/", env!("CARGO_PKG_VERSION"))).build();
    let client = client.map_err(FetchError::Client)?;
    let part = part_path(path);
    if let Some(folder) = path.parent() {
        let failed = |source| FetchError::Cache { path: folder.to_owned(), source };
        fs::create_dir_all(folder).await.map_err(failed)?;
    }
    let mut pause = Duration::from_secs(1);
    for attempt in 1.. {
        progress.start_attempt();
        let again = match attempt_once(&client, remote, &part, progress).await? {
            Attempt::Done => match finish(&part, path, sha256, progress).await? {
                Attempt::Done => return Ok(()),
                Attempt::Again(reason) => reason,
            },
            Attempt::Again(reason) => reason,
        };
        if attempt == ATTEMPTS {
            return Err(FetchError::Broken { url: remote.url.clone(), attempts: attempt, source: again });
        }
        tracing::warn!(url = remote.url, attempt, error = %again, pause_seconds = pause.as_secs(), "download interrupted");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    Ok(())
}

fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

async fn attempt_once(
    client: &Client,
    remote: &Remote,
    part: &Path,
    progress: &Download,
) -> Result<Attempt, FetchError> {
    let failed = |source| FetchError::Cache { path: part.to_owned(), source };
    let have = fs::metadata(part).await.map_or(0, |metadata| metadata.len());
    let mut request = client.get(&remote.url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let token = std::env::var("HF_TOKEN").ok().filter(|token| remote.hugging_face && !token.is_empty());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(Attempt::Again(error.into())),
    };
    let status = response.status();
    // A range that starts at the file's end, or a part of something else: the size will tell, or the checksum.
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        if total_after_range(&response) == Some(have) {
            return Ok(Attempt::Done);
        }
        fs::remove_file(part).await.map_err(failed)?;
        return Ok(Attempt::Again(Interrupted::Status(status)));
    }
    if !status.is_success() {
        let temporary = status.is_server_error()
            || status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS;
        if temporary {
            return Ok(Attempt::Again(Interrupted::Status(status)));
        }
        let hint = match status.as_u16() {
            401 | 403 if remote.hugging_face => ": the repository may be gated; give a token in HF_TOKEN",
            401 | 403 => ": the server wants credentials",
            404 => ": check the source's spelling",
            _ => "",
        };
        return Err(FetchError::Refused { url: remote.url.clone(), status: status.as_u16(), hint });
    }
    let start = if status == StatusCode::PARTIAL_CONTENT { have } else { 0 };
    let mut options = OpenOptions::new();
    options.create(true).write(true).append(start > 0).truncate(start == 0);
    let file = options.open(part).await.map_err(failed)?;
    receive(response, file, start, progress).await.map_err(failed)
}

/// `*/TOTAL` of a 416 answer.
fn total_after_range(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_RANGE)?.to_str().ok()?.rsplit('/').next()?.parse().ok()
}

async fn receive(
    mut response: Response,
    mut file: File,
    start: u64,
    progress: &Download,
) -> Result<Attempt, std::io::Error> {
    let expected = response.content_length().map(|length| length + start);
    let mut bytes = start;
    progress.set(bytes, expected);
    let mut logged = Instant::now();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                file.write_all(&chunk).await?;
                bytes += chunk.len() as u64;
                progress.set(bytes, expected);
                if logged.elapsed() >= LOG_EVERY {
                    logged = Instant::now();
                    tracing::info!(bytes, total_bytes = expected, "downloading");
                }
            }
            Ok(None) => break,
            Err(error) => {
                file.flush().await?;
                return Ok(Attempt::Again(error.into()));
            }
        }
    }
    file.sync_all().await?;
    match expected {
        Some(expected) if expected != bytes => Ok(Attempt::Again(Interrupted::Short { bytes, expected })),
        _ => Ok(Attempt::Done),
    }
}

/// Checks the whole `.part` file and gives it its name. A wrong one is removed.
async fn finish(
    part: &Path,
    path: &Path,
    sha256: Option<&str>,
    progress: &Download,
) -> Result<Attempt, FetchError> {
    let failed = |source| FetchError::Cache { path: part.to_owned(), source };
    if let Some(expected) = sha256 {
        let file = part.to_owned();
        let found = tokio::task::spawn_blocking(move || verify::sha256(&file)).await;
        let found =
            found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map_err(failed)?;
        if found != expected {
            fs::remove_file(part).await.map_err(failed)?;
            // What was begun by an earlier process may be of an older file: one more try from the start.
            if progress.attempts() == 1 && progress.was_resumed() {
                return Ok(Attempt::Again(Interrupted::StalePart));
            }
            let (path, expected) = (path.to_owned(), expected.to_owned());
            let hint = ": the download was removed; the source holds another file than --sha256 names";
            return Err(FetchError::Checksum { path, found, expected, hint });
        }
    }
    fs::rename(part, path).await.map_err(failed)?;
    Ok(Attempt::Done)
}
