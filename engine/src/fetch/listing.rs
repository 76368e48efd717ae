//! Which files of a repository or folder make a model, with their sizes and sums where somebody tells them.

use super::FetchError;
use super::source::{Folder, Place, Remote};
use atlas_format::safetensors::{INDEX, WEIGHTS};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What every model has besides its weights.
pub const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// What a model may have.
pub const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// Bytes of the hub's answer about a revision, with room for ten thousands of files.
pub const MAX_LISTING: u64 = 32 << 20;
/// Bytes of the largest file beside the weights: vocabularies of 256,000 tokens take 35 MB.
const MAX_TEXT: u64 = 128 << 20;
/// Bytes of what says little: numbers, settings, a template.
const MAX_SETTINGS: u64 = 16 << 20;

/// The most bytes that a file of a model may have which is read as a whole. Weights have no such bound but the disk's:
/// they are mapped.
pub fn limit_of(name: &str) -> Option<u64> {
    match name {
        INDEX | "tokenizer.json" => Some(MAX_TEXT),
        name if REQUIRED.contains(&name) || OPTIONAL.contains(&name) => Some(MAX_SETTINGS),
        _ => None,
    }
}

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name in the folder.
    pub name: String,
    /// Where it is.
    pub remote: Remote,
    /// Its size, where it is known.
    pub bytes: Option<u64>,
    /// Its sum, where it is known.
    pub sha256: Option<String>,
    /// What tells this version of it from others.
    pub version: Option<String>,
}

/// A revision of a repository as the hub describes it.
#[derive(Debug)]
pub struct Listing {
    /// The commit that the revision is.
    pub commit: String,
    files: BTreeMap<String, Sibling>,
}

/// The hub's answer to `/api/models/OWNER/REPO/revision/REVISION?blobs=true`.
#[derive(Deserialize)]
struct Repository {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// Files beyond a few megabytes are kept apart, by their sum.
#[derive(Debug, Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: Option<u64>,
}

impl Listing {
    /// Reads the hub's answer; only files directly in the folder count.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8], url: &str, inside: &str) -> Result<Self, FetchError> {
        let read = serde_json::from_slice(text);
        let Repository { sha, siblings } =
            read.map_err(|source| FetchError::Listing { url: url.to_owned(), source })?;
        let files = siblings.into_iter().filter_map(|file| {
            let name = file.rfilename.strip_prefix(inside).filter(|name| !name.contains('/'))?;
            Some((name.to_owned(), file))
        });
        Ok(Self { commit: sha, files: files.collect() })
    }

    /// A file, where it is there.
    pub fn file(&self, folder: &Folder, name: &str) -> Option<Wanted> {
        let Sibling { size, blob_id, lfs, .. } = self.files.get(name)?;
        let sha256 = lfs.as_ref().map(|lfs| lfs.sha256.trim_start_matches("sha256:").to_ascii_lowercase());
        Some(Wanted {
            name: name.to_owned(),
            remote: folder.file(name, Some(&self.commit)),
            bytes: lfs.as_ref().and_then(|lfs| lfs.size).or(*size),
            version: sha256.clone().or_else(|| blob_id.clone()),
            sha256,
        })
    }

    /// Whether the revision has what a model needs; the weights behind an index are for later.
    ///
    /// # Errors
    /// Something is not there.
    pub fn check(&self, folder: &Folder) -> Result<(), FetchError> {
        let has = |name: &str| self.files.contains_key(name);
        let mut names: Vec<String> =
            REQUIRED.iter().filter(|name| !has(name)).map(|name| (*name).to_owned()).collect();
        if !has(WEIGHTS) && !has(INDEX) {
            names.push(format!("{WEIGHTS} or {INDEX}"));
        }
        let gguf: Vec<&str> =
            self.files.keys().map(String::as_str).filter(|name| name.ends_with(".gguf")).take(3).collect();
        let hint = match &folder.place {
            Place::Hub { repository, inside, .. } if !gguf.is_empty() => {
                format!(": name one of its GGUF files, such as hf://{repository}/{inside}{}", gguf.join(", "))
            }
            _ => String::new(),
        };
        match names.is_empty() {
            true => Ok(()),
            false => Err(FetchError::Lacks { place: folder.uri.clone(), names, hint }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    fn folder(uri: &str) -> Folder {
        match Source::parse_with(uri, "https://hub.test", &atlas_s3::Place::default()).unwrap() {
            Source::Folder(folder) => folder,
            other => panic!("{other:?}"),
        }
    }

    const ANSWER: &str = r#"{"id": "o/r", "sha": "c0ffee", "siblings": [
        {"rfilename": "config.json", "size": 600, "blobId": "b1"}, {"rfilename": "tokenizer.json", "size": 11000000,
         "blobId": "b2", "lfs": {"sha256": "AB", "size": 11000000, "pointerSize": 130}},
        {"rfilename": "model.safetensors", "size": 1, "blobId": "b3", "lfs": {"oid": "sha256:cd", "size": 7}},
        {"rfilename": "onnx/config.json", "size": 3}, {"rfilename": "a.gguf", "size": 3}]}"#;

    #[test]
    fn sizes_sums_and_versions_are_taken_from_the_hub_and_files_from_its_commit() {
        let folder = folder("hf://o/r@main");
        let listing = Listing::parse(ANSWER.as_bytes(), "u", "").unwrap();
        listing.check(&folder).unwrap();
        let weights = listing.file(&folder, WEIGHTS).unwrap();
        assert_eq!(weights.remote.url, "https://hub.test/o/r/resolve/c0ffee/model.safetensors");
        assert_eq!((weights.bytes, weights.sha256.as_deref()), (Some(7), Some("cd")));
        let config = listing.file(&folder, "config.json").unwrap();
        assert_eq!((config.bytes, config.sha256, config.version), (Some(600), None, Some("b1".into())));
        assert!(listing.file(&folder, "generation_config.json").is_none());
    }

    #[test]
    fn a_repository_without_a_model_says_what_it_lacks_and_has() {
        let inside = Listing::parse(ANSWER.as_bytes(), "u", "onnx/").unwrap();
        let error = inside.check(&folder("hf://o/r/onnx/")).unwrap_err().to_string();
        let lacks = "hf://o/r/onnx/ lacks tokenizer.json, model.safetensors or model.safetensors.index.json";
        assert_eq!(error, lacks);
        let gguf = r#"{"sha": "c", "siblings": [{"rfilename": "a.Q4_K_M.gguf"}]}"#;
        let error = Listing::parse(gguf.as_bytes(), "u", "").unwrap().check(&folder("hf://o/r")).unwrap_err();
        assert!(error.to_string().ends_with("such as hf://o/r/a.Q4_K_M.gguf"), "{error}");
        let error = Listing::parse(b"<html>", "https://h/x", "").unwrap_err();
        assert!(error.to_string().contains("https://h/x does not describe"), "{error}");
    }
}
