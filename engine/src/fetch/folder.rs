//! Folders of safetensors behind HTTP: the few files that a model needs, each continued, checked and kept, and the
//! folder under its own name only when it is whole.
//!
//! A repository of the hub is asked for its revision first, which tells commit, names, sizes and sums, so that all files
//! are of one commit. A plain server tells nothing of the kind: there, names follow from the index.

use super::http::{Expected, client, download, look};
use super::listing::{Listing, MAX_LISTING, OPTIONAL, REQUIRED, Wanted, limit_of};
use super::source::{Folder, Place};
use super::{FetchError, space};
use crate::startup::Download;
use atlas_format::SafetensorsIndex;
use atlas_format::safetensors::{INDEX, WEIGHTS};
use reqwest::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which version of each file is whole; read when a fetch goes on, and left in the folder for people.
const DONE: &str = ".fetched.json";
/// The hub's answer, as long as it is needed.
const LISTING: &str = ".listing.json";

/// Fetches a folder to `path`, through `path` with `.part` appended. The caller has the turn to do so.
///
/// # Errors
/// Files are missing, cannot be had, do not fit, or are others than announced.
pub async fn fetch(folder: &Folder, path: &Path, progress: &Download) -> Result<(), FetchError> {
    let mut staging = path.as_os_str().to_owned();
    staging.push(".part");
    let staging = PathBuf::from(staging);
    let failed = |source| FetchError::Cache { path: staging.clone(), source };
    std::fs::create_dir_all(&staging).map_err(failed)?;
    // Where it is missing or damaged, files are fetched again.
    let done = std::fs::read(staging.join(DONE)).ok();
    let done = done.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let mut gathering = Gathering {
        folder,
        client: client(&folder.file(INDEX, None).origin)?,
        staging: staging.clone(),
        progress,
        done,
        total: None,
    };
    gathering.run().await?;
    std::fs::rename(&staging, path).map_err(failed)
}

/// A folder on its way.
struct Gathering<'a> {
    folder: &'a Folder,
    client: Client,
    staging: PathBuf,
    progress: &'a Download,
    done: BTreeMap<String, String>,
    /// Bytes of all files, as soon as they are known.
    total: Option<u64>,
}

impl Gathering<'_> {
    async fn run(&mut self) -> Result<(), FetchError> {
        let weights = match &self.folder.place {
            Place::Hub { .. } => self.ask_hub().await?,
            Place::Server(_) | Place::Bucket(_) => self.ask_server().await?,
        };
        self.total = weights
            .iter()
            .map(|file| file.bytes)
            .try_fold(self.progress.before(), |sum, bytes| Some(sum.saturating_add(bytes?)));
        let needed = weights.iter().map(|file| {
            let have = self.bytes_of(file);
            file.bytes.unwrap_or(0).saturating_sub(have)
        });
        space::check(&self.staging, needed.fold(0, u64::saturating_add))?;
        tracing::info!(
            model = self.folder.uri,
            files = weights.len(),
            total_bytes = self.total,
            "fetching weights"
        );
        for file in &weights {
            self.get(file).await?;
        }
        Ok(())
    }

    /// Everything but the weights; the answer is the weights.
    async fn ask_hub(&mut self) -> Result<Vec<Wanted>, FetchError> {
        let Some((remote, inside)) = self.folder.listing() else { return Ok(Vec::new()) };
        let path = self.staging.join(LISTING);
        self.remove(LISTING)?;
        let unseen = Download::default();
        let expected = Expected { limit: Some(MAX_LISTING), ..Expected::default() };
        download(&self.client, &remote, &path, expected, unseen.file()).await?;
        let listing = Listing::parse(&self.read(LISTING)?, &remote.shown(), &inside)?;
        self.remove(LISTING)?;
        listing.check(self.folder)?;
        tracing::info!(model = self.folder.uri, commit = listing.commit, "the hub describes the model");
        let index = match listing.file(self.folder, INDEX) {
            Some(file) => {
                self.get(&file).await?;
                Some(self.index()?)
            }
            None => None,
        };
        let names = index.unwrap_or_else(|| BTreeSet::from([WEIGHTS.to_owned()]));
        let (mut weights, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match listing.file(self.folder, &name) {
                Some(file) => weights.push(file),
                None => missing.push(name),
            }
        }
        self.all_there(missing)?;
        let others = REQUIRED.iter().chain(&OPTIONAL);
        for file in others.filter_map(|name| listing.file(self.folder, name)).collect::<Vec<_>>() {
            self.get(&file).await?;
        }
        Ok(weights)
    }

    /// The same of a server that lists nothing.
    async fn ask_server(&mut self) -> Result<Vec<Wanted>, FetchError> {
        for name in REQUIRED {
            let file = self.unknown(name);
            self.get(&file).await?;
        }
        for name in OPTIONAL {
            self.get_if_there(name).await?;
        }
        let names = match self.get_if_there(INDEX).await? {
            true => self.index()?,
            false => BTreeSet::from([WEIGHTS.to_owned()]),
        };
        let (mut weights, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            let file = self.unknown(&name);
            match look(&self.client, &file.remote).await {
                Some(bytes) => weights.push(Wanted { bytes, ..file }),
                None => missing.push(name),
            }
        }
        self.all_there(missing)?;
        Ok(weights)
    }

    fn all_there(&self, names: Vec<String>) -> Result<(), FetchError> {
        if names.is_empty() {
            return Ok(());
        }
        let hint = match names.as_slice() {
            [one] if one == WEIGHTS => format!(", and {INDEX} too: check the source's spelling"),
            _ => ", which its index names: the upload is incomplete".to_owned(),
        };
        Err(FetchError::Lacks { place: self.folder.uri.clone(), names, hint })
    }

    /// A file of which only the name is known.
    fn unknown(&self, name: &str) -> Wanted {
        let remote = self.folder.file(name, None);
        Wanted { name: name.to_owned(), remote, bytes: None, sha256: None, version: None }
    }

    async fn get_if_there(&mut self, name: &str) -> Result<bool, FetchError> {
        let file = self.unknown(name);
        match self.get(&file).await {
            Ok(()) => Ok(true),
            // Object stores answer 403 for what is not there to those who may not list.
            Err(FetchError::Refused { status: 403 | 404 | 410, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fetches a file, unless it is there in this version.
    async fn get(&mut self, file: &Wanted) -> Result<(), FetchError> {
        let path = self.staging.join(&file.name);
        if !self.is_whole(file) {
            self.remove(&file.name)?;
            let progress = self.progress.file_of(self.total);
            let expected =
                Expected { sha256: file.sha256.as_deref(), limit: limit_of(&file.name), gguf: false };
            if let Some(bytes) = file.bytes {
                expected.check_size(&file.remote, bytes)?;
            }
            download(&self.client, &file.remote, &path, expected, progress).await?;
            if let Some(version) = file.version.clone().or_else(|| file.bytes.map(|bytes| bytes.to_string()))
            {
                self.done.insert(file.name.clone(), version);
                let text = serde_json::to_vec(&self.done).expect("texts are JSON");
                let done = self.staging.join(DONE);
                std::fs::write(&done, text).map_err(|source| FetchError::Cache { path: done, source })?;
            }
        }
        self.progress.finish_file(std::fs::metadata(&path).map_or(0, |metadata| metadata.len()));
        Ok(())
    }

    /// Whether a file is there in the version that is wanted. Without a version, its size is what tells, and without
    /// a size it is fetched anew.
    fn is_whole(&self, file: &Wanted) -> bool {
        let Ok(metadata) = std::fs::metadata(self.staging.join(&file.name)) else { return false };
        let version = file.version.clone().or_else(|| file.bytes.map(|bytes| bytes.to_string()));
        version.is_some()
            && self.done.get(&file.name) == version.as_ref()
            && file.bytes.is_none_or(|bytes| bytes == metadata.len())
    }

    /// Bytes of a file that are on the disk already.
    fn bytes_of(&self, file: &Wanted) -> u64 {
        let name = if self.is_whole(file) { file.name.clone() } else { format!("{}.part", file.name) };
        std::fs::metadata(self.staging.join(name)).map_or(0, |metadata| metadata.len())
    }

    fn index(&self) -> Result<BTreeSet<String>, FetchError> {
        let text = self.read(INDEX)?;
        let damaged = |source| FetchError::Index { url: self.folder.file(INDEX, None).shown(), source };
        Ok(SafetensorsIndex::parse(&text).map_err(damaged)?.files)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, FetchError> {
        let path = self.staging.join(name);
        std::fs::read(&path).map_err(|source| FetchError::Cache { path, source })
    }

    fn remove(&self, name: &str) -> Result<(), FetchError> {
        let path = self.staging.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(FetchError::Cache { path, source })
            }
            _ => Ok(()),
        }
    }
}
