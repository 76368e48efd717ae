//! Downloads over HTTP: resumed by range, retried with growing pauses.
//!
//! The server's ETag is kept beside the `.part` file, and a continuation asks for the rest of that version only
//! (`If-Range`, RFC 9110 section 13.1.5; buckets know `If-Match` alone), so that a file which changed in between starts over instead of being mixed.

use super::pass::Pass;
use super::source::{Origin, Remote};
use super::{FetchError, space, verify};
use crate::startup::FileProgress;
use atlas_s3::Verb;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use reqwest::{Client, Response, StatusCode, redirect};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::fs::{self, OpenOptions};
use tokio::io::AsyncWriteExt;

/// Attempts in a row that bring nothing; a large file over a bad line may break any number of times.
const FRUITLESS_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence within a download.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why one attempt ended early; the next one may do better.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// The connection broke or was never made.
    #[error("the connection failed")]
    Connection(#[source] reqwest::Error),
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
    /// The file is another one than the one that was begun, so the whole of it is fetched.
    #[error("the file has changed since its download began")]
    Changed,
    /// What was continued does not have the expected sum, so the whole file is fetched again.
    #[error("the continued file has another checksum")]
    StalePart,
}

impl From<reqwest::Error> for Interrupted {
    /// Leaves the address out, which may hold a signature.
    fn from(error: reqwest::Error) -> Self {
        Self::Connection(error.without_url())
    }
}

/// What lies on the disk while a file is on its way.
struct Part {
    /// The bytes so far.
    file: PathBuf,
    /// Which version of the file they are of, where the server tells.
    etag: PathBuf,
}

impl Part {
    fn of(path: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { file: with(".part"), etag: with(".part.etag") }
    }

    async fn len(&self) -> u64 {
        fs::metadata(&self.file).await.map_or(0, |metadata| metadata.len())
    }

    async fn etag(&self) -> Option<String> {
        fs::read_to_string(&self.etag).await.ok().filter(|etag| !etag.is_empty())
    }

    /// Notes the version that is about to be written from its first byte on. Weak ETags cannot vouch for bytes.
    async fn note(&self, response: &Response) -> Result<(), std::io::Error> {
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        match etag.filter(|etag| etag.starts_with('"')) {
            Some(etag) => fs::write(&self.etag, etag).await,
            None => remove_if_there(&self.etag).await,
        }
    }

    async fn remove(&self) -> Result<(), std::io::Error> {
        remove_if_there(&self.etag).await?;
        remove_if_there(&self.file).await
    }
}

async fn remove_if_there(path: &Path) -> Result<(), std::io::Error> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One attempt's end.
enum Attempt {
    Done,
    Again(Interrupted),
}

/// The client for all downloads of a model, which are of one origin. Requests to a bucket are not sent on elsewhere: a
/// signature holds for one host, and a session's token is nobody else's.
///
/// # Errors
/// It could not be set up.
pub fn client(origin: &Origin) -> Result<Client, FetchError> {
    let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
    let client = match origin {
        Origin::Web | Origin::Hub => client,
        Origin::Bucket(_) => client.redirect(redirect::Policy::none()),
    };
    client.user_agent(concat!("atlas-engine/", env!("CARGO_PKG_VERSION"))).build().map_err(FetchError::Client)
}

/// What a file has to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// Its sum.
    pub sha256: Option<&'a str>,
    /// The most bytes it may have.
    pub limit: Option<u64>,
    /// Whether it is a model in GGUF.
    pub gguf: bool,
}

impl Expected<'_> {
    /// Refuses so many bytes, announced or received, where they are too many.
    ///
    /// # Errors
    /// They are.
    pub fn check_size(self, remote: &Remote, bytes: u64) -> Result<(), FetchError> {
        match self.limit {
            Some(limit) if bytes > limit => Err(FetchError::TooLarge { url: remote.shown(), bytes, limit }),
            _ => Ok(()),
        }
    }
}

/// Downloads a file to `path`, through `path` with `.part` appended.
///
/// # Errors
/// It cannot be had, does not fit, or is another one than expected.
pub async fn download(
    client: &Client,
    remote: &Remote,
    path: &Path,
    expected: Expected<'_>,
    progress: FileProgress<'_>,
) -> Result<(), FetchError> {
    let pass = Pass::of(remote)?;
    let part = Part::of(path);
    if let Some(folder) = path.parent() {
        let failed = |source| FetchError::Cache { path: folder.to_owned(), source };
        fs::create_dir_all(folder).await.map_err(failed)?;
    }
    let (mut attempts, mut fruitless, mut pause) = (0, 0, FIRST_PAUSE);
    loop {
        attempts += 1;
        progress.start_attempt();
        let before = part.len().await;
        let again = match attempt_once(client, (remote, &pass), &part, expected, progress).await? {
            Attempt::Done => {
                let continues_old = attempts == 1 && before > 0;
                match finish(&part, path, (remote, expected), progress, continues_old).await? {
                    Attempt::Done => return Ok(()),
                    Attempt::Again(reason) => reason,
                }
            }
            Attempt::Again(reason) => reason,
        };
        if part.len().await > before {
            (fruitless, pause) = (0, FIRST_PAUSE);
        } else {
            fruitless += 1;
        }
        if fruitless == FRUITLESS_ATTEMPTS {
            return Err(FetchError::Broken { url: remote.shown(), attempts, source: again });
        }
        tracing::warn!(url = remote.shown(), attempt = attempts, error = %again, pause_seconds = pause.as_secs(), "download interrupted");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

/// What a server says of a file without sending it: `None` where there is none, sizes where it tells them.
pub async fn look(client: &Client, remote: &Remote) -> Option<Option<u64>> {
    // Whoever knows no HEAD, or signs addresses for GET alone, is asked again when the file is fetched.
    let Ok(pass) = Pass::of(remote) else { return Some(None) };
    let request = pass.request(client, Verb::Head, remote);
    let Ok(response) = request.send().await else { return Some(None) };
    let length = response.headers().get(CONTENT_LENGTH).and_then(|text| text.to_str().ok()?.parse().ok());
    match response.status() {
        StatusCode::NOT_FOUND | StatusCode::GONE => None,
        status => Some(length.filter(|_| status.is_success())),
    }
}

async fn attempt_once(
    client: &Client,
    (remote, pass): (&Remote, &Pass<'_>),
    part: &Part,
    expected: Expected<'_>,
    progress: FileProgress<'_>,
) -> Result<Attempt, FetchError> {
    let failed = |source| FetchError::Cache { path: part.file.clone(), source };
    let have = part.len().await;
    let begun = part.etag().await;
    let mut request = pass.request(client, Verb::Get, remote);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
        if let Some(etag) = &begun {
            request = request.header(pass.version_header(), etag);
        }
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(Attempt::Again(error.into())),
    };
    let status = response.status();
    // Who knows nothing of the condition sends the rest of another version, which must not be mixed with this one.
    let sent = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
    let other = begun.is_some() && sent.is_some() && begun.as_deref() != sent;
    let mixed = status == StatusCode::PARTIAL_CONTENT && other;
    if have > 0 && (mixed || status == StatusCode::PRECONDITION_FAILED) {
        part.remove().await.map_err(failed)?;
        return Ok(Attempt::Again(Interrupted::Changed));
    }
    // A range that starts at the file's end, or a part of something else: the size will tell, or the checksum.
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        if total_after_range(&response) == Some(have) {
            return Ok(Attempt::Done);
        }
        part.remove().await.map_err(failed)?;
        return Ok(Attempt::Again(Interrupted::Status(status)));
    }
    if !status.is_success() {
        let temporary = status.is_server_error()
            || status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS;
        if temporary {
            return Ok(Attempt::Again(Interrupted::Status(status)));
        }
        let hint = pass.explain(response).await;
        return Err(FetchError::Refused { url: remote.shown(), status: status.as_u16(), hint });
    }
    let start = if status == StatusCode::PARTIAL_CONTENT { have } else { 0 };
    if let Some(bytes) = response.content_length() {
        expected.check_size(remote, start.saturating_add(bytes))?;
        if let Some(folder) = part.file.parent() {
            space::check(folder, bytes)?;
        }
    }
    if start == 0 {
        part.note(&response).await.map_err(failed)?;
    }
    let received = receive(response, part, start, |bytes| expected.check_size(remote, bytes), progress).await;
    if let Err(FetchError::TooLarge { .. }) = received {
        part.remove().await.map_err(failed)?;
    }
    received
}

/// `*/TOTAL` of a 416 answer.
fn total_after_range(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_RANGE)?.to_str().ok()?.rsplit('/').next()?.parse().ok()
}

/// Writes an answer down from byte `start` on, as long as `check` agrees with how many bytes there are.
async fn receive(
    mut response: Response,
    part: &Part,
    start: u64,
    check: impl Fn(u64) -> Result<(), FetchError>,
    progress: FileProgress<'_>,
) -> Result<Attempt, FetchError> {
    let failed = |source| FetchError::Cache { path: part.file.clone(), source };
    let mut options = OpenOptions::new();
    options.create(true).write(true).append(start > 0).truncate(start == 0);
    let mut file = options.open(&part.file).await.map_err(failed)?;
    let expected = response.content_length().map(|length| length + start);
    let mut bytes = start;
    progress.set(bytes, expected);
    let mut logged = Instant::now();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                bytes += chunk.len() as u64;
                check(bytes)?;
                file.write_all(&chunk).await.map_err(failed)?;
                progress.set(bytes, expected);
                if logged.elapsed() >= LOG_EVERY {
                    logged = Instant::now();
                    progress.log();
                }
            }
            Ok(None) => break,
            Err(error) => {
                file.flush().await.map_err(failed)?;
                return Ok(Attempt::Again(error.into()));
            }
        }
    }
    file.sync_all().await.map_err(failed)?;
    match expected {
        Some(expected) if expected != bytes => Ok(Attempt::Again(Interrupted::Short { bytes, expected })),
        _ => Ok(Attempt::Done),
    }
}

/// Checks the whole `.part` file and gives it its name. A wrong one is removed.
async fn finish(
    part: &Part,
    path: &Path,
    (remote, expected): (&Remote, Expected<'_>),
    progress: FileProgress<'_>,
    continues_old: bool,
) -> Result<Attempt, FetchError> {
    let failed = |source| FetchError::Cache { path: part.file.clone(), source };
    if expected.gguf
        && let Some(source) = verify::find_fault(part.file.clone()).await
    {
        part.remove().await.map_err(failed)?;
        return Err(FetchError::NoModel { url: remote.shown(), source });
    }
    if let Some(expected) = expected.sha256 {
        let file = part.file.clone();
        let (count, from) = progress.checked();
        let found = tokio::task::spawn_blocking(move || verify::sha256(&file, &count, from)).await;
        let found =
            found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map_err(failed)?;
        if found != expected {
            part.remove().await.map_err(failed)?;
            // What was begun by an earlier process may be of an older file: one more try from the start.
            if continues_old {
                return Ok(Attempt::Again(Interrupted::StalePart));
            }
            let (path, expected) = (path.to_owned(), expected.to_owned());
            let hint = ": the download was removed; the source holds another file than was announced";
            return Err(FetchError::Checksum { path, found, expected, hint });
        }
    }
    fs::rename(&part.file, path).await.map_err(failed)?;
    remove_if_there(&part.etag).await.map_err(failed)?;
    Ok(Attempt::Done)
}
