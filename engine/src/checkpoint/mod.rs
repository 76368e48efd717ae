//! A model's files, opened: one GGUF file, or a folder of safetensors as Hugging Face's libraries write them.
//!
//! Both give the same three things: the model's numbers, its tensors under GGUF's names, and its text side. Nothing
//! behind this module knows which of the two it was.

mod config;
mod folder;
mod gptq;
mod names;
mod nibbles;
mod quantized;
mod repacked;
mod report;

use crate::model::{ModelConfig, ModelError, Tensors};
use crate::text::{TextTokenizer, TokenizerError};
use atlas_format::safetensors::is_weights;
use atlas_format::{Gguf, SafetensorsError};
use atlas_kernels::MappedFile;
use folder::TextFiles;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened model.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its numbers.
    pub config: ModelConfig,
    /// Its tensors.
    pub tensors: Tensors,
    /// Its own chat template.
    pub chat_template: Option<String>,
    text: Text,
}

/// What the tokenizer is made from.
#[derive(Debug)]
enum Text {
    Gguf(Box<Gguf>),
    Folder(Box<TextFiles>),
}

impl Checkpoint {
    /// Opens a GGUF file, a folder of safetensors, or such a folder by its `model.safetensors` or its index.
    ///
    /// # Errors
    /// A file cannot be read, or is not what this engine serves.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        match folder_of(path) {
            Some(folder) => folder::open(folder),
            None => open_gguf(path),
        }
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// Its description is incomplete or names something unknown.
    pub fn tokenizer(&self) -> Result<TextTokenizer, TokenizerError> {
        match &self.text {
            Text::Gguf(header) => TextTokenizer::from_gguf(header),
            Text::Folder(files) => TextTokenizer::from_json(&files.sources(self.config.vocabulary)),
        }
    }
}

/// The folder of a model in safetensors; `None` where the path is another kind of file.
pub fn folder_of(path: &Path) -> Option<&Path> {
    if path.is_dir() {
        return Some(path);
    }
    let name = path.file_name()?.to_str()?;
    is_weights(name).then(|| match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    })
}

fn open_gguf(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.to_owned(), source };
    let file = Arc::new(MappedFile::open(path).map_err(open)?);
    let header = Gguf::parse_file(&file).map_err(ModelError::from)?;
    let config = ModelConfig::from_gguf(&header)?;
    let template = header.str("tokenizer.chat_template").map_err(ModelError::from)?.map(str::to_owned);
    let tensors = Tensors::of_gguf(&header, &file);
    Ok(Checkpoint { config, tensors, chat_template: template, text: Text::Gguf(Box::new(header)) })
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A folder holds no model.
    #[error(
        "the folder {folder} has no config.json: name a folder of safetensors with its config.json, or a GGUF file"
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be opened.
    #[error("cannot open the model file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The numbers or tensors are not those of a model that is served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A folder has no weights.
    #[error(
        "{folder} has neither model.safetensors nor model.safetensors.index.json: give a GGUF file or a folder with weights in safetensors"
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of a folder is no JSON.
    #[error("{path} is not the JSON that is expected there")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A header or an index is wrong.
    #[error("{path} is damaged")]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SafetensorsError,
    },
    /// A key of `config.json` is missing or holds what no model has.
    #[error("config.json has {found} for {key:?}, expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What is expected.
        expected: &'static str,
    },
    /// The architecture is not served.
    #[error(
        "config.json has the model_type {found:?}, and folders of \"llama\", \"mistral\", \"qwen2\" and \"qwen3\" are served"
    )]
    Architecture {
        /// `model_type`.
        found: String,
    },
    /// A tensor that the architecture has no place for: leaving it out would give wrong answers without any error.
    #[error("tensor {name:?} has no place in a {model_type} model")]
    Unused {
        /// The tensor.
        name: String,
        /// The architecture.
        model_type: String,
    },
    /// Two files hold the same tensor.
    #[error("tensor {name:?} stands in more than one file")]
    Twice {
        /// The tensor.
        name: String,
    },
    /// The parts of a quantized matrix are not what they should be.
    #[error("the quantized matrix {name:?} cannot be read: {reason}")]
    Quantized {
        /// The matrix.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor's type is not served.
    #[error(
        "tensor {name:?} is stored as {dtype}, and weights in F32, F16 and BF16 are served, or quantized by AWQ, by GPTQ or as NF4"
    )]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
}
