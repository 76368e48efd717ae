//! What every suite needs: waiting for a condition, finding the project's binaries, a model's header, logs.

mod headers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use headers::{header_of_width, narrow_header, wide_header};

/// How often a condition is looked at; short, since tests wait for it, and cheap against a local API server.
const POLL: Duration = Duration::from_millis(50);

/// A condition that did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s for {what}; last seen: {last}", timeout.as_secs())]
pub struct Timeout {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub timeout: Duration,
    /// What the last look found instead.
    pub last: String,
}

/// Looks again and again until `check` gives a value; what it finds instead (`Err`) goes into the error.
///
/// # Errors
/// When `timeout` has passed, also while a look is still under way.
pub async fn wait_until<T, E, F>(
    what: &str,
    timeout: Duration,
    mut check: impl FnMut() -> F,
) -> Result<T, Timeout>
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let deadline = Instant::now() + timeout;
    let mut last = "nothing yet".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(found)) => last = found.to_string(),
            Err(_) => {}
        }
        // A look that answers at once wins against an expired timeout, so the clock is asked as well.
        if Instant::now() >= deadline {
            return Err(Timeout { what: what.to_owned(), timeout, last });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The folder that cargo puts this build's binaries in.
///
/// It is found from the running program, so that it is right for every profile and target folder.
pub fn binary_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new(""));
    // Test programs lie one folder deeper than binaries.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.to_owned()
}

/// A binary of this workspace that is not built yet.
#[derive(Debug, thiserror::Error)]
#[error("{} is not built; run `cargo build --workspace --bins`", .0.display())]
pub struct NotBuilt(pub PathBuf);

/// The path of one of the workspace's binaries, such as `atlas-operator` or `atlas-engine`.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf, NotBuilt> {
    let path = binary_folder().join(name);
    if path.is_file() { Ok(path) } else { Err(NotBuilt(path)) }
}

/// Sends the library's logs to the test's output; `RUST_LOG` chooses; by default warnings, but not of connections that a start waits for. May be called again.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // The client calls every connection that is refused an error, and a server that starts refuses many.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,kube_client=off"));
    // A second call finds the first one's subscriber in place, which is what is wanted.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_that_fails_says_what_it_saw_last() {
        let mut looks = 0;
        let error = wait_until("rain", Duration::from_secs(0), || {
            looks += 1;
            std::future::ready(Err::<(), _>(format!("sun {looks}")))
        })
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for rain; last seen: sun 1");
    }

    #[tokio::test]
    async fn a_wait_gives_back_what_the_check_found() {
        let mut looks = 0;
        let found = wait_until("three looks", Duration::from_secs(5), || {
            looks += 1;
            std::future::ready(if looks == 3 { Ok(looks) } else { Err(looks) })
        });
        assert_eq!(found.await.unwrap(), 3);
    }
}
