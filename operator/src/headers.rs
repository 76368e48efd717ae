//! What is known of each source's header, read in the background: a reconcile only ever looks.
//!
//! A header that was read, or could not be, asks for a reconcile of every model that has that source.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atlas_crds::{ModelSource, model::ModelFile};
use atlas_headers::{HeaderError, HeaderReader};
use atlas_operator_core::vram::{ModelShape, OtherFile};
use kube::Client;
use tokio::time::Instant;

use crate::{
    credentials::{SecretError, Wanted, read_ask},
    error::{backoff, tell},
    metrics::Metrics,
    stores::Stores,
};

/// A header that cannot be read for good is looked at again after this: files are uploaded, repositories opened.
const AFTER_REFUSAL: Duration = Duration::from_secs(600);
/// A header that was read is confirmed after this; the reader asks with the ETag then.
const AFTER_READ: Duration = Duration::from_secs(3600);
/// Tries in a row where the failure may pass by itself.
const MAX_TRIES: u32 = 10;
/// Times the usual pause between tries: 4 s at first, 10 minutes at last.
const PATIENCE: u32 = 20;
/// More sources than a cluster has; beyond that, those that nobody asked for longest are forgotten.
const MAX_SOURCES: usize = 8192;

/// What is known of a source's header.
#[derive(Debug, Clone)]
pub enum HeaderState {
    /// It is being read for the first time, since this long.
    Reading(Duration),
    /// It was read.
    Read(Arc<Known>),
    /// It could not be read: why.
    Unread(Arc<str>),
}

/// A header that was read.
#[derive(Debug, PartialEq)]
pub struct Known {
    /// The model.
    pub shape: Arc<ModelShape>,
    /// Other files beside it, where the source can list them.
    pub other_files: Vec<OtherFile>,
}

/// Why a header is not known.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    /// What its source asks for is not there.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Its source does not give it.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

impl ReadError {
    fn label(&self) -> &'static str {
        match self {
            Self::Secret(_) => "secret",
            Self::Header(error) => error.label(),
        }
    }

    /// Secrets come after the models that name them as often as before.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Secret(SecretError::NotAllowed { .. }) => false,
            Self::Secret(_) => true,
            Self::Header(error) => error.is_temporary(),
        }
    }

    /// As conditions tell it, with the API server's word where that is the cause.
    fn told(&self) -> String {
        match self {
            Self::Secret(error @ SecretError::Read { source: Some(cause), .. }) => {
                format!("{error}: {cause}")
            }
            other => other.to_string(),
        }
    }
}

struct Entry {
    /// The last answer; `None` until there is one.
    answer: Option<Result<Arc<Known>, Arc<str>>>,
    /// Whether a task is reading it.
    reading: bool,
    since: Instant,
    /// When it is read again.
    due: Instant,
    used: Instant,
}

/// Every source's header.
pub struct Headers {
    reader: HeaderReader,
    /// Reads the Secrets that tiers name, where the operator may.
    secrets: Option<Client>,
    stores: Arc<Stores>,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<Wanted, Entry>>,
}

impl Headers {
    /// Nothing is read until somebody looks.
    #[must_use]
    pub fn new(
        reader: HeaderReader,
        secrets: Option<Client>,
        stores: Arc<Stores>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { reader, secrets, stores, metrics, entries: Mutex::default() })
    }

    /// What is known of a source now; reads it in the background where that is due.
    #[must_use]
    pub fn look(self: &Arc<Self>, wanted: &Wanted) -> HeaderState {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_SOURCES && !entries.contains_key(wanted) {
            // One that is being read has somebody who waits for it.
            let idle = entries.iter().filter(|(_, entry)| !entry.reading);
            let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(wanted, _)| wanted.clone());
            if let Some(oldest) = oldest {
                entries.remove(&oldest);
            }
        }
        let entry = entries.entry(wanted.clone()).or_insert_with(|| Entry {
            answer: None,
            reading: false,
            since: now,
            due: now,
            used: now,
        });
        entry.used = now;
        if !entry.reading && entry.due <= now {
            entry.reading = true;
            let (headers, wanted) = (Arc::clone(self), wanted.clone());
            tokio::spawn(async move { headers.read(wanted).await });
        }
        match &entry.answer {
            None => HeaderState::Reading(now.duration_since(entry.since)),
            Some(Ok(known)) => HeaderState::Read(Arc::clone(known)),
            Some(Err(reason)) => HeaderState::Unread(Arc::clone(reason)),
        }
    }

    /// What is known of a source, without asking for more: for questions about other models.
    #[must_use]
    pub fn known(&self, wanted: &Wanted) -> Option<Arc<Known>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(wanted)?.answer.as_ref()?.as_ref().ok().map(Arc::clone)
    }

    async fn read(self: Arc<Self>, wanted: Wanted) {
        for tries in 1.. {
            let (answer, temporary) = match self.read_now(&wanted).await {
                Ok(known) => (Ok(Arc::new(known)), false),
                Err(error) => {
                    self.metrics.header_errors.with_label_values(&[error.label()]).inc();
                    tracing::debug!(
                        tries,
                        error = %tell(&error),
                        "a header could not be read"
                    );
                    (Err(Arc::from(error.told())), error.is_temporary())
                }
            };
            let again = temporary && tries < MAX_TRIES;
            if self.keep(&wanted, answer, temporary, again) {
                self.tell(&wanted);
            }
            if !again {
                return;
            }
            tokio::time::sleep(backoff(tries) * PATIENCE).await;
        }
    }

    /// Asks for a reconcile of the models that have this source, and of those that share a card with them.
    fn tell(&self, wanted: &Wanted) {
        self.stores.note_header();
        for model in self.stores.models.state() {
            let namespace = model.metadata.namespace.as_deref().unwrap_or_default();
            let mut sources = model.spec.tiers.iter().map(|tier| &tier.model);
            let asks = |file: &ModelFile| {
                file.source == wanted.file.source && Wanted::of(namespace, file) == *wanted
            };
            if sources.any(asks) {
                self.stores.model_changed(&model);
            }
        }
    }

    async fn read_now(&self, wanted: &Wanted) -> Result<Known, ReadError> {
        // What is no source was refused before it came here.
        let uri = &wanted.file.source;
        let source: ModelSource =
            uri.parse().map_err(|_| HeaderError::Url { url: uri.chars().take(200).collect() })?;
        let ask = read_ask(wanted, source, self.secrets.as_ref()).await?;
        let header = self.reader.read(&ask).await?;
        if header.bytes_read > 0 {
            self.metrics.header_bytes.inc_by(header.bytes_read);
        }
        // Without the list, advice names a size in place of a file.
        let other_files = self.reader.list_other_files(&ask).await.unwrap_or_default();
        Ok(Known { shape: header.shape, other_files })
    }

    /// Notes an answer; whether it is news.
    fn keep(
        &self,
        wanted: &Wanted,
        answer: Result<Arc<Known>, Arc<str>>,
        temporary: bool,
        again: bool,
    ) -> bool {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get_mut(wanted) else { return false };
        entry.reading = again;
        entry.due = Instant::now() + if answer.is_ok() { AFTER_READ } else { AFTER_REFUSAL };
        let news = match (&entry.answer, &answer) {
            // What was read once stays true while its server is away.
            (Some(Ok(_)), Err(_)) if temporary => false,
            (Some(old), new) => old != new,
            (None, _) => true,
        };
        if news {
            entry.answer = Some(answer);
        }
        news
    }
}
