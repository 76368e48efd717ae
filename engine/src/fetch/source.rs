//! Model sources, as written on the command line.

use super::FetchError;
use atlas_format::safetensors::is_weights;
use atlas_s3::{Object, Place as Buckets};
use reqwest::Url;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Where the model is.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// On this machine.
    File(PathBuf),
    /// One file behind HTTP.
    Remote(Remote),
    /// A folder of safetensors behind HTTP.
    Folder(Folder),
}

/// A file behind HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where to get it.
    pub url: String,
    /// Whose it is.
    pub origin: Origin,
}

/// Whose a remote file is, which decides what goes along with requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Anybody's.
    Web,
    /// The Hugging Face hub's.
    Hub,
    /// A bucket's.
    Bucket(Object),
}

/// A folder of safetensors behind HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct Folder {
    /// The source as given, without what may be a secret.
    pub uri: String,
    /// Where it is.
    pub place: Place,
}

/// Where a folder is.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// In a repository of the hub.
    Hub {
        /// Address of the hub.
        hub: String,
        /// `OWNER/REPO`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Empty, or the folder within the repository with its `/`.
        inside: String,
    },
    /// Behind any server: an address in the folder.
    Server(Url),
    /// In a bucket: an object in the folder.
    Bucket(Object),
}

const HUB: &str = "https://huggingface.co";
const HUB_FORM: &str = "hf://OWNER/REPO or hf://OWNER/REPO/FILE, optionally with @REVISION";

impl Source {
    /// Parses `--model`.
    ///
    /// # Errors
    /// The scheme is unknown, or something behind it is missing.
    pub fn parse(uri: &str, buckets: &Buckets) -> Result<Self, FetchError> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Self::parse_with(uri, endpoint.as_deref().unwrap_or(HUB), buckets)
    }

    pub(super) fn parse_with(uri: &str, hub: &str, buckets: &Buckets) -> Result<Self, FetchError> {
        let incomplete = |expected| FetchError::Incomplete { uri: uri.to_owned(), expected };
        let Some((scheme, rest)) = uri.split_once("://") else {
            return if uri.is_empty() {
                Err(incomplete("a path or a URI"))
            } else {
                Ok(Self::File(uri.into()))
            };
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::File(rest.into())),
            "file" => Err(incomplete("file:///PATH")),
            "http" | "https" => {
                let url = Url::parse(uri).map_err(|_| incomplete("http(s)://HOST/PATH"))?;
                Ok(match folder_of(url.path()) {
                    Some(_) => Self::Folder(Folder { uri: shown(uri), place: Place::Server(url) }),
                    None => Self::Remote(Remote { url: uri.to_owned(), origin: Origin::Web }),
                })
            }
            "hf" => Self::parse_hub(uri, rest, hub.trim_end_matches('/')),
            "s3" => {
                let (bucket, key) = rest.split_once('/').ok_or_else(|| incomplete("s3://BUCKET/KEY"))?;
                if key.is_empty() {
                    return Err(incomplete("s3://BUCKET/KEY"));
                }
                let object = Object::locate(bucket, key, buckets).map_err(FetchError::Place)?;
                Ok(match folder_of(key) {
                    Some(_) => Self::Folder(Folder { uri: uri.to_owned(), place: Place::Bucket(object) }),
                    None => Self::Remote(Remote { url: object.url(), origin: Origin::Bucket(object) }),
                })
            }
            _ => Err(FetchError::Scheme { uri: uri.to_owned() }),
        }
    }

    fn parse_hub(uri: &str, rest: &str, hub: &str) -> Result<Self, FetchError> {
        let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
        let mut parts = path.splitn(3, '/');
        // What is missing is empty, and refused below, but for the file.
        let [owner, name, file] = [(); 3].map(|()| parts.next().unwrap_or_default());
        if [owner, name, revision].iter().any(|part| part.is_empty()) {
            return Err(FetchError::Incomplete { uri: uri.to_owned(), expected: HUB_FORM });
        }
        Ok(match folder_of(file) {
            Some(inside) => Self::Folder(Folder {
                uri: uri.to_owned(),
                place: Place::Hub {
                    hub: hub.to_owned(),
                    repository: format!("{owner}/{name}"),
                    revision: revision.to_owned(),
                    inside: inside.to_owned(),
                },
            }),
            None => Self::Remote(Remote {
                url: format!("{hub}/{owner}/{name}/resolve/{revision}/{file}"),
                origin: Origin::Hub,
            }),
        })
    }
}

/// The folder, with its `/`, of a path that names a folder of safetensors: by itself, or by a file of weights in it.
fn folder_of(path: &str) -> Option<&str> {
    let (inside, name) = path.rfind('/').map_or(("", path), |slash| path.split_at(slash + 1));
    (name.is_empty() || is_weights(name)).then_some(inside)
}

impl Remote {
    /// The address without what may be a secret.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }
}

fn shown(url: &str) -> String {
    without_query(url).to_owned()
}

fn without_query(url: &str) -> &str {
    url.split_once(['?', '#']).map_or(url, |(path, _)| path)
}

impl Folder {
    /// A file of the folder, as of a commit where one is known.
    pub fn file(&self, name: &str, commit: Option<&str>) -> Remote {
        match &self.place {
            Place::Hub { hub, repository, revision, inside } => Remote {
                url: format!("{hub}/{repository}/resolve/{}/{inside}{name}", commit.unwrap_or(revision)),
                origin: Origin::Hub,
            },
            Place::Server(url) => {
                let mut url = url.clone();
                let folder = folder_of(url.path()).unwrap_or("/").to_owned();
                url.set_path(&format!("{folder}{name}"));
                Remote { url: url.into(), origin: Origin::Web }
            }
            Place::Bucket(object) => {
                let object = object.beside(name);
                Remote { url: object.url(), origin: Origin::Bucket(object) }
            }
        }
    }

    /// Where the hub describes the revision, and the folder within the repository.
    pub fn listing(&self) -> Option<(Remote, String)> {
        let Place::Hub { hub, repository, revision, inside } = &self.place else { return None };
        // A branch may have a slash in its name.
        let revision = revision.replace('/', "%2F");
        let url = format!("{hub}/api/models/{repository}/revision/{revision}?blobs=true");
        Some((Remote { url, origin: Origin::Hub }, inside.clone()))
    }
}

/// Name in the cache: the hash of the URI, and of the server of buckets that it is for, so that two sources never meet,
/// and the model's name for people.
pub fn cache_name(uri: &str, buckets: &Buckets) -> String {
    let mut hash = Sha256::new_with_prefix(uri.as_bytes());
    if let Some(endpoint) = buckets.endpoint.as_ref().filter(|_| uri.starts_with("s3://")) {
        hash.update(format!(" {endpoint}"));
    }
    let hash = hex::encode(hash.finalize());
    let name: String = model_name(uri)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .take(120)
        .collect();
    format!("{}-{name}", &hash[..16])
}

/// What names a model in its source, without query and revision: the file, or the folder where it is one.
fn model_name(uri: &str) -> &str {
    let uri = match uri.strip_prefix("hf://") {
        Some(path) => path.rsplit_once('@').map_or(path, |(path, _)| path),
        None if uri.contains("://") => without_query(uri),
        None => uri,
    };
    let path = uri.trim_end_matches('/');
    // Folders name their models: the files in them all have the same names.
    match path.rsplit_once('/') {
        Some((parent, name)) if is_weights(name) => {
            let parent = parent.trim_end_matches('/');
            let folder = parent.rsplit_once('/').map_or(parent, |(_, folder)| folder);
            if folder.is_empty() { name } else { folder }
        }
        Some((_, name)) => name,
        None => path,
    }
}

/// A model's name without extension, for status and headers.
pub fn display_name(uri: &str) -> String {
    let name = model_name(uri);
    // Not whatever stands behind a dot: folders have names such as Qwen2.5-0.5B.
    let stem = name.strip_suffix(".gguf").or_else(|| name.strip_suffix(".safetensors"));
    stem.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let url = |uri| match Source::parse_with(uri, "https://mirror.test/", &Buckets::default()) {
            Ok(Source::Remote(remote)) => remote.url,
            Ok(Source::File(path)) => path.display().to_string(),
            Ok(Source::Folder(folder)) => format!("folder of {}", folder.file("f", None).url),
            Err(error) => error.to_string(),
        };
        for (uri, expected) in [
            ("/models/a.gguf", "/models/a.gguf"),
            ("file:///models/a.gguf", "/models/a.gguf"),
            ("https://h/x.gguf", "https://h/x.gguf"),
            ("hf://o/r/sub/x.gguf", "https://mirror.test/o/r/resolve/main/sub/x.gguf"),
            ("hf://o/r/x.gguf@v1", "https://mirror.test/o/r/resolve/v1/x.gguf"),
            ("hf://o/r", "folder of https://mirror.test/o/r/resolve/main/f"),
            ("hf://o/r/@v1", "folder of https://mirror.test/o/r/resolve/v1/f"),
            ("hf://o/r/sub/", "folder of https://mirror.test/o/r/resolve/main/sub/f"),
            ("hf://o/r/model.safetensors@v1", "folder of https://mirror.test/o/r/resolve/v1/f"),
            ("hf://o/r/a/model.safetensors.index.json", "folder of https://mirror.test/o/r/resolve/main/a/f"),
            ("https://h/m/?sig=1", "folder of https://h/m/f?sig=1"),
            ("https://h/m/model-00001-of-00002.safetensors", "folder of https://h/m/f"),
            ("http://h:8/model.safetensors", "folder of http://h:8/f"),
            ("s3://b/d/x.gguf", "https://b.s3.us-east-1.amazonaws.com/d/x.gguf"),
            ("s3://b/d/", "folder of https://b.s3.us-east-1.amazonaws.com/d/f"),
            ("s3://b/model.safetensors", "folder of https://b.s3.us-east-1.amazonaws.com/f"),
        ] {
            assert_eq!(url(uri), expected);
        }
        for (uri, expected) in [
            ("s3://b", "expected s3://BUCKET/KEY"),
            ("s3://b/", "expected s3://BUCKET/KEY"),
            ("s3://b/../k", "the object's address cannot be made"),
            ("ftp://h/x", "\"ftp://h/x\" is not supported"),
            ("hf://o", "expected hf://OWNER/REPO or hf://OWNER/REPO/FILE"),
            ("hf://o/r/x@", "expected hf://OWNER/REPO or hf://OWNER/REPO/FILE"),
            ("hf://o/r@", "expected hf://OWNER/REPO or"),
            ("http://", "expected http(s)://HOST/PATH"),
            ("file://x", "expected file:///PATH"),
            ("", "is incomplete"),
        ] {
            assert!(url(uri).contains(expected), "{}", url(uri));
        }
    }

    /// The names that operator and engine compare, from one table.
    #[test]
    fn models_are_named_after_their_file_or_folder() {
        for row in include_str!("../../../tests/model_names.tsv").lines() {
            let (uri, name) = row.split_once('\t').unwrap();
            assert_eq!(display_name(uri), name, "{uri}");
        }
    }

    #[test]
    fn names_in_the_cache_differ_and_never_leave_it() {
        let own = Buckets { endpoint: Some("http://h:1".into()), ..Buckets::default() };
        let cache_name = |uri: &str| super::cache_name(uri, &Buckets::default());
        assert_ne!(cache_name("s3://b/k"), super::cache_name("s3://b/k", &own));
        assert_eq!(cache_name("https://h/b"), super::cache_name("https://h/b", &own));
        assert!(cache_name("https://h/a/b.gguf?x=/../..").ends_with("-b.gguf"));
        assert!(cache_name("hf://o/r@v1").ends_with("-r"));
        assert_ne!(cache_name("https://h/a/b.gguf"), cache_name("https://h/c/b.gguf"));
        assert_ne!(cache_name("hf://o/r@v1"), cache_name("hf://o/r@v2"));
        for uri in ["https://h/..%2f\\x", "https://h/a/..", "hf://o/..", "hf://../.."] {
            assert!(!cache_name(uri)[16..].starts_with('.') && !cache_name(uri).contains(['/', '\\', '%']));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let read = Source::parse_with("https://h/m/?sig=secret", "", &Buckets::default());
        let Ok(Source::Folder(folder)) = read else { panic!() };
        assert_eq!(folder.uri, "https://h/m/");
        assert_eq!(folder.file("a", None).shown(), "https://h/m/a");
    }
}
