//! The reader: one client, one guard, one cache, and limits for all that it does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atlas_crds::ModelSource;
use atlas_operator_core::vram::{ModelShape, OtherFile};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{
    ask::{Ask, Pass},
    cache::{Cache, Entry, Key},
    error::HeaderError,
    guard::Guard,
    model::{FIRST_BYTES, read_shape},
    prefix::{Access, Prefix},
    source::{Location, shown},
};

/// Redirects that are followed; a hub needs one or two.
const MAX_REDIRECTS: usize = 5;
/// Largest list of a repository's files that is read.
const MAX_LIST: u64 = 4 << 20;

/// Bounds of what one read may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a header; large vocabularies take some eight million.
    pub bytes: u64,
    /// Time for a connection.
    pub connect: Duration,
    /// Time for everything.
    pub total: Duration,
    /// How long an answer counts without a look at the server.
    pub fresh_for: Duration,
    /// Reads at once; each may hold as many bytes as above.
    pub at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 << 20,
            connect: Duration::from_secs(5),
            total: Duration::from_secs(60),
            fresh_for: Duration::from_secs(3600),
            at_once: 2,
        }
    }
}

/// Settings of a reader.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the hub that `hf://` means.
    pub hub: String,
    /// Token for the hub, for private and gated repositories.
    pub token: Option<String>,
    /// Where it may connect to.
    pub guard: Guard,
    /// Bounds.
    pub limits: Limits,
}

/// A header that was read.
#[derive(Debug, Clone)]
pub struct Header {
    /// The model.
    pub shape: Arc<ModelShape>,
    /// Where it was read, without secrets.
    pub url: String,
    /// The version that it was read from, where the server tells.
    pub etag: Option<String>,
    /// Bytes that this read took from the network; 0 where the cache knew.
    pub bytes_read: u64,
}

/// Reads headers.
#[derive(Debug)]
pub struct HeaderReader {
    client: Client,
    /// For buckets: a signature holds for one host, and a session's token is nobody else's.
    straight: Client,
    options: Options,
    cache: Mutex<Cache>,
    permits: Semaphore,
}

impl HeaderReader {
    /// Sets up the client.
    ///
    /// # Errors
    ///
    /// The client cannot be built.
    pub fn new(options: Options) -> Result<Self, HeaderError> {
        // One provider for the process; a second call finds the first one's in place.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let guard = options.guard.clone();
        let build = |redirects: redirect::Policy| {
            Client::builder()
                .connect_timeout(options.limits.connect)
                .redirect(redirects)
                .dns_resolver(Arc::new(options.guard.clone()))
                // A proxy would be what the guard checks, and the file's host would go unchecked.
                .no_proxy()
                .user_agent(concat!("atlas-operator/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(HeaderError::Client)
        };
        let client = build(redirect::Policy::custom(move |attempt| follow(&guard, attempt)))?;
        let straight = build(redirect::Policy::none())?;
        let permits = Semaphore::new(options.limits.at_once);
        Ok(Self { client, straight, options, cache: Mutex::default(), permits })
    }

    /// Reads a source's header, or finds that it was read before.
    ///
    /// # Errors
    ///
    /// The source is not behind HTTP, may not or cannot be reached, or is no model that can be planned for.
    pub async fn read(&self, ask: &Ask) -> Result<Header, HeaderError> {
        let location = Location::of(&ask.source, &self.options.hub, &ask.place)?;
        let pass = self.pass_of(ask);
        let limit = self.options.limits.total;
        let late = || HeaderError::Late { url: shown(&location.url), limit };
        let read = async {
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            tokio::time::timeout(limit, self.read_at(&location, &pass)).await.unwrap_or_else(|_| Err(late()))
        };
        // Waiting for other reads is no fault of this one's server, but it must end too.
        tokio::time::timeout(limit * 10, read).await.unwrap_or_else(|_| Err(late()))
    }

    async fn read_at(&self, location: &Location, pass: &Pass) -> Result<Header, HeaderError> {
        let key = Key::new(location.url.as_str(), pass);
        let known = self.cache().get(&key);
        let header = |shape: Arc<ModelShape>, etag: Option<String>, bytes_read| Header {
            shape,
            url: shown(&location.url),
            etag,
            bytes_read,
        };
        if let Some(known) = &known
            && known.is_fresh(self.options.limits.fresh_for)
        {
            return Ok(header(Arc::clone(&known.shape), known.etag.clone(), 0));
        }
        let access = self.access(location, pass, self.options.limits.bytes);
        let etag = known.as_ref().and_then(|known| known.etag.as_deref());
        let candidates = location.candidates();
        let (place, opened) = open_first(access, &candidates, etag).await?;
        let mut prefix = match (opened, &known) {
            (Some(prefix), _) => prefix,
            (None, Some(known)) => {
                self.cache().confirm(&key);
                return Ok(header(Arc::clone(&known.shape), known.etag.clone(), 0));
            }
            (None, None) => return Err(HeaderError::Changed { url: shown(&location.url) }),
        };
        let shape = Arc::new(read_shape(access, place, &mut prefix).await?);
        let (etag, bytes_read) = (prefix.etag.clone(), prefix.bytes.len() as u64);
        self.cache().put(key, Entry::new(Arc::clone(&shape), etag.clone(), location.immutable));
        Ok(header(shape, etag, bytes_read))
    }

    /// Lists the other GGUF files beside one on the hub, with their sizes; nothing for other sources.
    ///
    /// # Errors
    ///
    /// The hub does not answer with a list.
    pub async fn list_other_files(&self, ask: &Ask) -> Result<Vec<OtherFile>, HeaderError> {
        let ModelSource::HuggingFace { repository, file, revision } = &ask.source else {
            return Ok(Vec::new());
        };
        let pass = self.pass_of(ask);
        let folder = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("/{folder}"));
        let hub = self.options.hub.trim_end_matches('/');
        let text = format!("{hub}/api/models/{repository}/tree/{revision}{folder}");
        let url = Url::parse(&text).map_err(|_| HeaderError::Url { url: text })?;
        let kind = crate::source::FileKind::Gguf;
        let location = Location { url, on_hub: true, immutable: false, kind, object: None };
        let limit = self.options.limits.total;
        let read = async {
            let access = self.access(&location, &pass, MAX_LIST);
            match Prefix::open(access, &location, 1 << 18, None).await? {
                None => Ok(Vec::new()),
                Some(mut prefix) => {
                    prefix.read_to_end().await?;
                    parse_list(&prefix.bytes, file)
                        .map_err(|source| HeaderError::Json { url: shown(&location.url), source })
                }
            }
        };
        tokio::time::timeout(limit, read)
            .await
            .unwrap_or_else(|_| Err(HeaderError::Late { url: shown(&location.url), limit }))
    }

    /// What goes along: the model's own, else the reader's token where the source is the hub's.
    fn pass_of(&self, ask: &Ask) -> Pass {
        match (&ask.pass, &ask.source, &self.options.token) {
            (Pass::None, ModelSource::HuggingFace { .. }, Some(token)) => Pass::Token(token.clone()),
            (pass, ..) => pass.clone(),
        }
    }

    fn access<'a>(&'a self, location: &Location, pass: &'a Pass, limit: u64) -> Access<'a> {
        let client = if location.object.is_some() { &self.straight } else { &self.client };
        Access { client, guard: &self.options.guard, pass, limit }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the first of these places that is there; at least one is given.
async fn open_first<'a>(
    access: Access<'a>,
    candidates: &'a [Location],
    etag: Option<&str>,
) -> Result<(&'a Location, Option<Prefix<'a>>), HeaderError> {
    let (last, before) = candidates.split_last().expect("a source has a place");
    for place in before {
        match Prefix::open(access, place, FIRST_BYTES, etag).await {
            // Object stores answer 403 for what is not there to those who may not list.
            Err(HeaderError::Refused { status, .. })
                if matches!(status, 404 | 410) || (status == 403 && !place.on_hub) => {}
            opened => return Ok((place, opened?)),
        }
    }
    Ok((last, Prefix::open(access, last, FIRST_BYTES, etag).await?))
}

/// Follows a redirect to where the guard allows it. Names are checked when they are resolved.
fn follow(guard: &Guard, attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if from_https && attempt.url().scheme() != "https" {
        return attempt.error("a redirect from https to http is not followed");
    }
    match guard.check_literal(attempt.url().host_str().unwrap_or_default()) {
        Ok(()) => attempt.follow(),
        Err(forbidden) => attempt.error(forbidden),
    }
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(default)]
    size: u64,
}

/// The GGUF files of a list other than this one, and no parts of split ones.
fn parse_list(text: &[u8], own: &str) -> Result<Vec<OtherFile>, serde_json::Error> {
    let all: Vec<Listed> = serde_json::from_slice(text)?;
    let files = all.into_iter().filter(|file| {
        file.path != own && file.path.ends_with(".gguf") && !file.path.contains("-of-") && file.size > 0
    });
    Ok(files.map(|file| OtherFile { name: file.path, bytes: file.size }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_lists_whole_gguf_files_alone() {
        let text = br#"[{"type":"file","path":"README.md","size":9},{"type":"directory","path":"x.gguf"},
            {"type":"file","path":"a.Q4_K_M.gguf","size":40},{"type":"file","path":"a.Q2_K.gguf","size":20},
            {"type":"file","path":"a.Q8_0-00001-of-00002.gguf","size":80}]"#;
        let names: Vec<_> = parse_list(text, "a.Q4_K_M.gguf").unwrap();
        assert_eq!(names, [OtherFile { name: "a.Q2_K.gguf".into(), bytes: 20 }]);
        assert!(parse_list(b"{}", "a").is_err());
    }
}
