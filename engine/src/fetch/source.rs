//! Model sources, as written on the command line.

use super::FetchError;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where the file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// On this machine.
    File(PathBuf),
    /// Behind HTTP.
    Remote(Remote),
}

/// A file behind HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct Remote {
    /// The source as given; the cache's name is made from it.
    pub uri: String,
    /// Where to get it.
    pub url: String,
    /// Whether the Hugging Face token may go along.
    pub hugging_face: bool,
}

const HUB: &str = "https://huggingface.co";

impl Source {
    /// Parses `--model`.
    ///
    /// # Errors
    /// The scheme is unknown, or something behind it is missing.
    pub fn parse(uri: &str) -> Result<Self, FetchError> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Self::parse_with(uri, endpoint.as_deref().unwrap_or(HUB))
    }

    fn parse_with(uri: &str, hub: &str) -> Result<Self, FetchError> {
        let incomplete = |expected| FetchError::Incomplete { uri: uri.to_owned(), expected };
        let Some((scheme, rest)) = uri.split_once("://") else {
            return if uri.is_empty() {
                Err(incomplete("a path or a URI"))
            } else {
                Ok(Self::File(uri.into()))
            };
        };
        let remote =
            |url: String, hugging_face| Self::Remote(Remote { uri: uri.to_owned(), url, hugging_face });
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::File(rest.into())),
            "file" => Err(incomplete("file:///PATH")),
            "http" | "https" if !rest.is_empty() => Ok(remote(uri.to_owned(), false)),
            "http" | "https" => Err(incomplete("http(s)://HOST/PATH")),
            "hf" => {
                let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
                let parts: Vec<&str> = path.splitn(3, '/').collect();
                let [owner, repository, file] = parts[..] else {
                    return Err(incomplete("hf://OWNER/REPO/FILE, optionally with @REVISION"));
                };
                if [owner, repository, file, revision].iter().any(|part| part.is_empty()) {
                    return Err(incomplete("hf://OWNER/REPO/FILE, optionally with @REVISION"));
                }
                let hub = hub.trim_end_matches('/');
                Ok(remote(format!("{hub}/{owner}/{repository}/resolve/{revision}/{file}"), true))
            }
            "s3" => {
                let hint = "; s3:// is not built yet: give the object's https:// address, or put the file on a volume";
                Err(FetchError::Scheme { uri: uri.to_owned(), hint })
            }
            _ => Err(FetchError::Scheme { uri: uri.to_owned(), hint: "" }),
        }
    }
}

impl Remote {
    /// Name in the cache: the URI's hash, so that two sources never meet, and the file's name for people.
    pub fn cache_name(&self) -> String {
        let hash = hex::encode(Sha256::digest(self.uri.as_bytes()));
        format!("{}-{}", &hash[..16], file_name(&self.uri))
    }
}

/// Last part of a path or URI, without query and revision, reduced to harmless characters.
fn file_name(uri: &str) -> String {
    let uri = uri.split(['?', '#']).next().unwrap_or_default();
    let uri =
        uri.strip_prefix("hf://").map_or(uri, |path| path.rsplit_once('@').map_or(path, |(path, _)| path));
    let name = uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .take(120)
        .collect()
}

/// A model file's name without extension, for status and headers.
pub fn display_name(uri: &str) -> String {
    let name = file_name(uri);
    // Folders name their models, the files in them all have the same name.
    let parent = uri
        .trim_end_matches('/')
        .rsplit_once('/')
        .map(|(parent, _)| parent)
        .filter(|parent| !parent.is_empty());
    if let (Some(parent), "model.safetensors" | "model.safetensors.index.json") = (parent, name.as_str()) {
        return file_name(parent);
    }
    Path::new(&name).file_stem().map_or(name.clone(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let url = |uri| match Source::parse_with(uri, "https://mirror.test/") {
            Ok(Source::Remote(remote)) => remote.url,
            Ok(Source::File(path)) => path.display().to_string(),
            Err(error) => error.to_string(),
        };
        for (uri, expected) in [
            ("/models/a.gguf", "/models/a.gguf"),
            ("file:///models/a.gguf", "/models/a.gguf"),
            ("https://h/x.gguf", "https://h/x.gguf"),
            ("hf://o/r/sub/x.gguf", "https://mirror.test/o/r/resolve/main/sub/x.gguf"),
            ("hf://o/r/x.gguf@v1", "https://mirror.test/o/r/resolve/v1/x.gguf"),
        ] {
            assert_eq!(url(uri), expected);
        }
        for (uri, expected) in [
            ("s3://b/k", "s3:// is not built yet"),
            ("ftp://h/x", "\"ftp://h/x\" is not supported"),
            ("hf://o/r", "expected hf://OWNER/REPO/FILE"),
            ("hf://o/r/x@", "expected hf://OWNER/REPO/FILE"),
            ("file://x", "expected file:///PATH"),
            ("", "is incomplete"),
        ] {
            assert!(url(uri).contains(expected), "{}", url(uri));
        }
    }

    #[test]
    fn names_are_for_people_and_never_leave_the_cache() {
        assert_eq!(display_name("hf://o/r/sub/code.Q4_K_M.gguf@main"), "code.Q4_K_M");
        assert_eq!(display_name("/models/mistral-7b-v0.2/model.safetensors.index.json"), "mistral-7b-v0.2");
        assert_eq!(display_name("/models/smollm2-135m-instruct-q4_1.gguf"), "smollm2-135m-instruct-q4_1");
        let remote =
            |uri: &str| Remote { uri: uri.into(), url: String::new(), hugging_face: false }.cache_name();
        assert!(remote("https://h/a/b.gguf?x=/../..").ends_with("-b.gguf"));
        assert_ne!(remote("https://h/a/b.gguf"), remote("https://h/c/b.gguf"));
        assert!(!remote("https://h/..%2f\\x").contains(['/', '\\', '%']));
    }
}
