//! From a model's source to the address that holds its bytes.

use atlas_crds::ModelSource;
use atlas_format::safetensors::{INDEX, WEIGHTS, is_weights};
use atlas_s3::{Object, Place};
use reqwest::Url;

use crate::error::HeaderError;

/// What kind of model file an address holds, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// GGUF; also what has no telling name.
    Gguf,
    /// One safetensors file, with `config.json` beside it.
    Safetensors,
    /// The index of several safetensors files, with `config.json` beside it.
    SafetensorsIndex,
    /// A folder of safetensors, with one of the above in it.
    Folder,
}

/// Where a source's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The address.
    pub url: Url,
    /// Whether the hub's token may go along.
    pub on_hub: bool,
    /// Whether what is there can never change: a commit of the hub.
    pub immutable: bool,
    /// What the file is.
    pub kind: FileKind,
    /// The object of a bucket that it is, whose requests are signed.
    pub object: Option<Object>,
}

impl Location {
    /// Finds a source's address.
    ///
    /// # Errors
    ///
    /// The source is not behind HTTP, or is no address.
    pub fn of(source: &ModelSource, hub: &str, place: &Place) -> Result<Self, HeaderError> {
        match source {
            ModelSource::HuggingFace { repository, file, revision } => {
                let text = format!("{}/{repository}/resolve/{revision}/{file}", hub.trim_end_matches('/'));
                let commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
                Self::from_text(&text, true, commit)
            }
            ModelSource::Http(text) => Self::from_text(text, false, false),
            ModelSource::S3 { bucket, key } => {
                let object = Object::locate(bucket, key, place).map_err(HeaderError::Place)?;
                let location = Self::from_text(&object.url(), false, false)?;
                Ok(Self { object: Some(object), ..location })
            }
            ModelSource::File(_) => Err(HeaderError::Scheme { scheme: "file", hint: ", on its node" }),
        }
    }

    fn from_text(text: &str, on_hub: bool, immutable: bool) -> Result<Self, HeaderError> {
        let bad = || HeaderError::Url { url: shown_text(text) };
        let url = Url::parse(text).map_err(|_| bad())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad());
        }
        let kind = match url.path().rsplit('/').next().unwrap_or_default() {
            INDEX => FileKind::SafetensorsIndex,
            WEIGHTS => FileKind::Safetensors,
            // Engines load a folder by its own names, whichever of its files the source names.
            name if name.is_empty() || is_weights(name) => FileKind::Folder,
            _ => FileKind::Gguf,
        };
        Ok(Self { url, on_hub, immutable, kind, object: None })
    }

    /// Where the header may be, in the order in which an engine looks.
    pub fn candidates(&self) -> Vec<Self> {
        match self.kind {
            FileKind::Folder => vec![
                Self { kind: FileKind::SafetensorsIndex, ..self.beside(INDEX) },
                Self { kind: FileKind::Safetensors, ..self.beside(WEIGHTS) },
            ],
            FileKind::Gguf | FileKind::Safetensors | FileKind::SafetensorsIndex => vec![self.clone()],
        }
    }

    /// A file beside this one.
    pub fn beside(&self, name: &str) -> Self {
        let object = self.object.as_ref().map(|object| object.beside(name));
        let mut url = self.url.clone();
        let folder = url.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        url.set_path(&format!("{folder}/{name}"));
        Self { url, object, ..self.clone() }
    }
}

/// An address without what may be a secret: user, password, query, fragment.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Addresses that cannot have these are not ours.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn shown_text(text: &str) -> String {
    text.split(['?', '#']).next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(uri: &str) -> Result<Location, HeaderError> {
        Location::of(&uri.parse().unwrap(), "https://hub.example/", &Place::default())
    }

    #[test]
    fn every_source_has_an_address_or_a_reason() {
        let check = |uri: &str, url: &str, kind: FileKind, immutable: bool| {
            let found = locate(uri).unwrap();
            assert_eq!((found.url.as_str(), found.kind, found.immutable), (url, kind, immutable));
            assert_eq!(found.on_hub, uri.starts_with("hf:"));
        };
        check(
            "hf://o/r/sub/x.gguf",
            "https://hub.example/o/r/resolve/main/sub/x.gguf",
            FileKind::Gguf,
            false,
        );
        let commit = "0123456789abcdef0123456789abcdef01234567";
        check(
            &format!("hf://o/r/model.safetensors@{commit}"),
            &format!("https://hub.example/o/r/resolve/{commit}/model.safetensors"),
            FileKind::Safetensors,
            true,
        );
        check("https://h/m/a.gguf?sig=1", "https://h/m/a.gguf?sig=1", FileKind::Gguf, false);
        check(
            "http://h/model.safetensors.index.json",
            "http://h/model.safetensors.index.json",
            FileKind::SafetensorsIndex,
            false,
        );
        check("hf://o/r@v1", "https://hub.example/o/r/resolve/v1/", FileKind::Folder, false);
        check("https://h/m/?sig=1", "https://h/m/?sig=1", FileKind::Folder, false);
        let shard = "https://h/m/model-00001-of-00002.safetensors";
        check(shard, shard, FileKind::Folder, false);
        check("s3://b/d/a.gguf", "https://b.s3.us-east-1.amazonaws.com/d/a.gguf", FileKind::Gguf, false);
        for (uri, says) in [
            ("file:///models/a.gguf", "file:// is read by the engine alone, on its node"),
            ("s3://bucket/../key", "has a part that is"),
            ("http://[::1/x", "http://[::1/x is no address"),
        ] {
            let error = locate(uri).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:secret@h/m/a.gguf?X-Amz-Signature=secret#secret").unwrap();
        assert_eq!(shown(&url), "https://h/m/a.gguf");
    }

    #[test]
    fn files_beside_keep_the_folder() {
        let found = locate("https://h/m/sub/model.safetensors?token=1").unwrap().beside("config.json");
        assert_eq!(found.url.as_str(), "https://h/m/sub/config.json?token=1");
        let found = locate("s3://b/d/model.safetensors").unwrap().beside("config.json");
        let object = found.object.map(|object| object.url());
        assert_eq!(object.as_deref(), Some("https://b.s3.us-east-1.amazonaws.com/d/config.json"));
        assert_eq!(object.as_deref(), Some(found.url.as_str()));
        let urls = |uri: &str| -> Vec<String> {
            locate(uri).unwrap().candidates().into_iter().map(|place| place.url.to_string()).collect()
        };
        let folder = "https://hub.example/o/r/resolve/main/";
        let both = [format!("{folder}model.safetensors.index.json"), format!("{folder}model.safetensors")];
        assert_eq!(urls("hf://o/r"), both);
        assert_eq!(urls("hf://o/r/model.safetensors"), both[1..]);
    }
}
