//! Where a model's weights come from: the parsed form of `spec.tiers[].model.source`.

use std::fmt;

/// A model source, parsed from its URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// `hf://OWNER/REPO[/FILE][@REVISION]`: a file of a Hugging Face repository, or a folder of safetensors in it.
    HuggingFace {
        /// `OWNER/REPO`.
        repository: String,
        /// Path inside the repository; empty, or with a `/` at its end, where it is a folder's.
        file: String,
        /// Branch, tag or commit; `main` where the URI names none.
        revision: String,
    },
    /// `http://` or `https://`.
    Http(String),
    /// `s3://BUCKET/KEY`.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Object key.
        key: String,
    },
    /// `file:///PATH`: a path inside the engine's container, usually in the model cache.
    File(String),
}

/// Why a source URI was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceError {
    /// The scheme is none of the known ones.
    UnknownScheme {
        /// The whole URI.
        uri: String,
    },
    /// The scheme is known and something behind it is missing.
    Incomplete {
        /// The whole URI.
        uri: String,
        /// The form that was expected.
        expected: &'static str,
    },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownScheme { uri } => {
                write!(
                    f,
                    "model source {uri:?} has no known scheme: use hf://, https://, http://, s3:// or file://"
                )
            }
            Self::Incomplete { uri, expected } => {
                write!(f, "model source {uri:?} is incomplete: expected {expected}")
            }
        }
    }
}

impl std::error::Error for SourceError {}

impl std::str::FromStr for ModelSource {
    type Err = SourceError;

    fn from_str(uri: &str) -> Result<Self, SourceError> {
        let incomplete = |expected| SourceError::Incomplete { uri: uri.to_owned(), expected };
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(SourceError::UnknownScheme { uri: uri.to_owned() });
        };
        match scheme {
            "hf" => {
                let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
                let mut parts = path.splitn(3, '/');
                // What is missing is empty, and refused below, but for the file.
                let [owner, repo, file] = [(); 3].map(|()| parts.next().unwrap_or_default());
                if [owner, repo, revision].iter().any(|part| part.is_empty()) {
                    return Err(incomplete(
                        "hf://OWNER/REPO or hf://OWNER/REPO/FILE, optionally with @REVISION",
                    ));
                }
                Ok(Self::HuggingFace {
                    repository: format!("{owner}/{repo}"),
                    file: file.to_owned(),
                    revision: revision.to_owned(),
                })
            }
            "http" | "https" => match rest.split_once('/') {
                Some((host, path)) if !host.is_empty() && !path.is_empty() => Ok(Self::Http(uri.to_owned())),
                _ => Err(incomplete("https://HOST/PATH")),
            },
            "s3" => match rest.split_once('/') {
                Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                    Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
                }
                _ => Err(incomplete("s3://BUCKET/KEY")),
            },
            "file" if rest.starts_with('/') && rest.len() > 1 => Ok(Self::File(rest.to_owned())),
            "file" => Err(incomplete("file:///ABSOLUTE/PATH")),
            _ => Err(SourceError::UnknownScheme { uri: uri.to_owned() }),
        }
    }
}

impl ModelSource {
    /// The name clients see in `x-atlas-model`: the file's without extension, or that of a folder of safetensors.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let (path, holder) = match self {
            Self::HuggingFace { file, repository, .. } => (file.as_str(), repository.as_str()),
            Self::Http(url) => (url.split(['?', '#']).next().unwrap_or(url), ""),
            Self::S3 { key, .. } => (key.as_str(), ""),
            Self::File(path) => (path.as_str(), ""),
        };
        let path = path.trim_end_matches('/');
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        // The files of a folder have the same names everywhere.
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let named = match [name, last(folder), last(holder)] {
            [name, _, _] if !name.is_empty() && !weights => name,
            [_, folder, _] if !folder.is_empty() => folder,
            [name, _, ""] => name,
            [_, _, repository] => repository,
        };
        named.strip_suffix(".gguf").or_else(|| named.strip_suffix(".safetensors")).unwrap_or(named)
    }
}

fn last(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_parse_or_say_what_is_missing() {
        let name = |uri: &str| uri.parse::<ModelSource>().map(|s| s.display_name().to_owned());
        assert_eq!(name("hf://TheBloke/CodeLlama/codellama.Q4_K_M.gguf"), Ok("codellama.Q4_K_M".into()));
        assert_eq!(name("https://models.example/a/b.gguf?sig=1"), Ok("b".into()));
        assert_eq!(name("s3://bucket/dir/m.gguf"), Ok("m".into()));
        assert_eq!(name("file:///models/x.gguf"), Ok("x".into()));
        for bad in ["hf://owner", "hf://o/r/f@", "file://relative", "s3://bucket", "ftp://a/b", "model.gguf"]
        {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    /// The names that operator and engine compare, from one table.
    #[test]
    fn models_are_named_after_their_file_or_folder() {
        for row in include_str!("../../tests/model_names.tsv").lines() {
            let (uri, name) = row.split_once('\t').unwrap();
            assert_eq!(uri.parse::<ModelSource>().unwrap().display_name(), name, "{uri}");
        }
    }
}
