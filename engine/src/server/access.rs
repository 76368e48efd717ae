//! Who may use the API: keys from a file, and the web origins that browsers let in.

use super::App;
use super::api::refusal;
use super::openai::ApiError;
use atlas_engine_core::Scope;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

/// Whom a gateway let in: it keeps their key to itself.
const CALLER: &str = "x-atlas-caller";
/// How long a file's keys are taken as they are before it is looked at again.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

type Hash = [u8; 32];

/// The keys of a file, one a line, read again when it changes.
pub struct ApiKeys {
    file: PathBuf,
    read: Mutex<Read>,
}

struct Read {
    looked: Instant,
    changed: Option<SystemTime>,
    hashes: Vec<Hash>,
}

impl ApiKeys {
    /// Reads a file; empty lines and lines that begin with `#` are no keys.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(file: PathBuf) -> std::io::Result<Self> {
        let changed = std::fs::metadata(&file)?.modified().ok();
        let hashes = hashes(&std::fs::read_to_string(&file)?);
        Ok(Self { file, read: Mutex::new(Read { looked: Instant::now(), changed, hashes }) })
    }

    /// Whether a key is among them. Takes the same time for every key of a length.
    pub fn accept(&self, key: &str, now: Instant) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(read.looked) >= LOOK_AGAIN {
            read.looked = now;
            self.read_again(&mut read);
        }
        let given: Hash = Sha256::digest(key).into();
        // No early way out: neither which key matched nor where a hash differed shows in the time it takes.
        let differs = |hash: &Hash| hash.iter().zip(given).fold(0, |sum, (left, right)| sum | (left ^ right));
        read.hashes.iter().fold(false, |found, hash| found | (differs(hash) == 0))
    }

    /// A file that is gone or unreadable for a moment, as while a Secret is swapped, keeps its last keys.
    fn read_again(&self, read: &mut Read) {
        let changed = std::fs::metadata(&self.file).and_then(|metadata| metadata.modified()).ok();
        if changed == read.changed {
            return;
        }
        match std::fs::read_to_string(&self.file) {
            Ok(text) => {
                read.hashes = hashes(&text);
                read.changed = changed;
                tracing::info!(keys = read.hashes.len(), "API keys read again");
            }
            Err(error) => tracing::warn!(%error, "the API keys' file cannot be read; the last keys stay"),
        }
    }
}

fn hashes(text: &str) -> Vec<Hash> {
    let keys = text.lines().map(str::trim).filter(|key| !key.is_empty() && !key.starts_with('#'));
    keys.map(|key| Sha256::digest(key).into()).collect()
}

/// The key of a request: OpenAI's header, or Anthropic's.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' '));
    let bearer =
        bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// Whose cached prefixes a request may use: those of its own key, or of the caller that a gateway names, for this
/// model, so that nobody can find out what others asked from how fast an answer begins.
pub fn scope(headers: &HeaderMap, model: &str) -> Scope {
    let mut digest = Sha256::new();
    // Without a key or a caller it is the scope of everybody who has none.
    let caller = headers.get(CALLER).map(HeaderValue::as_bytes).unwrap_or_default();
    // The lengths keep them apart.
    for part in [model.as_bytes(), key(headers).unwrap_or_default().as_bytes(), caller] {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    let hash: Hash = digest.finalize().into();
    let (first, _) = hash.as_chunks::<16>();
    Scope(u128::from_le_bytes(first[0]))
}

/// Lets only requests with a key through, where keys are set. Probes and metrics need none.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let open = ["/healthz", "/readyz", "/health", "/metrics"].contains(&request.uri().path());
    let Some(keys) = app.api_keys.as_ref().filter(|_| !open) else { return next.run(request).await };
    let accepted = key(request.headers()).is_some_and(|key| keys.accept(key, Instant::now()));
    if accepted {
        return next.run(request).await;
    }
    refusal(request.uri().path(), &ApiError::unauthorized())
}

/// Tells browsers which pages may use the API: those of the listed origins; `*` is all.
pub async fn allow_origins(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let listed = |origin: &HeaderValue| {
        app.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    };
    let Some(origin) = origin.filter(listed) else { return next.run(request).await };
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    #[test]
    fn every_key_and_model_has_a_scope_of_its_own() {
        let with = |key: Option<&'static str>, caller: Option<&'static str>, model: &str| {
            let headers = [(header::AUTHORIZATION, key), (HeaderName::from_static(CALLER), caller)];
            let given = headers
                .into_iter()
                .filter_map(|(name, value)| Some((name, HeaderValue::from_static(value?))));
            scope(&given.collect(), model)
        };
        assert_eq!(with(Some("Bearer a"), None, "m"), with(Some("bearer a"), None, "m"));
        let scopes = [
            with(Some("Bearer a"), None, "m"),
            with(Some("Bearer b"), None, "m"),
            with(Some("Bearer a"), None, "ma"),
            with(None, None, "m"),
            with(None, Some("a"), "m"),
            with(None, Some("b"), "m"),
            with(Some("Bearer a"), Some("a"), "m"),
            with(Some("Bearer aa"), None, "m"),
        ];
        for (index, one) in scopes.iter().enumerate() {
            assert!(!scopes[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn keys_are_read_again_when_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "# ours\none\n\n two \n").unwrap();
        let keys = ApiKeys::open(file.clone()).unwrap();
        let now = Instant::now();
        for (key, accepted) in [("one", true), ("two", true), ("", false), ("# ours", false), ("on", false)] {
            assert_eq!(keys.accept(key, now), accepted, "{key}");
        }
        std::fs::write(&file, "three\n").unwrap();
        let later = SystemTime::now() + LOOK_AGAIN;
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        assert!(keys.accept("one", now) && !keys.accept("three", now));
        assert!(!keys.accept("one", now + LOOK_AGAIN * 2) && keys.accept("three", now + LOOK_AGAIN * 2));
        std::fs::remove_file(&file).unwrap();
        assert!(keys.accept("three", now + LOOK_AGAIN * 4));
    }

    #[test]
    fn a_key_stands_in_either_header() {
        for (name, value, expected) in [
            ("authorization", "Bearer k", Some("k")),
            ("authorization", "bearer  k ", Some("k")),
            ("authorization", "Basic k", None),
            ("authorization", "Bearer", None),
            ("x-api-key", "k", Some("k")),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            assert_eq!(key(&headers), expected, "{name}: {value}");
        }
    }
}
