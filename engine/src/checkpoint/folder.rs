//! A folder with `config.json`, weights in safetensors, whole or in several files behind an index, and a tokenizer.

use super::config::{self, Described};
use super::names::{HEAD, Place, place};
use super::{Checkpoint, CheckpointError, Text};
use crate::model::{ModelError, Tensor, Tensors};
use crate::text::tokenizer_json::Sources;
use atlas_format::{Dtype, Safetensors, SafetensorsIndex, StoredTensor, TensorType};
use atlas_kernels::{BlockType, MappedFile, Weights};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The index of weights in several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// The file of weights in one.
const WEIGHTS: &str = "model.safetensors";

/// What the tokenizer is made from.
#[derive(Debug)]
pub struct TextFiles {
    tokenizer: Vec<u8>,
    tokenizer_config: Value,
    /// `config.json`, then `generation_config.json`.
    configs: [Value; 2],
}

impl TextFiles {
    /// The same for the tokenizer of a model with this many rows in its embedding.
    pub fn sources(&self, vocabulary: usize) -> Sources<'_> {
        let Self { tokenizer, tokenizer_config, configs } = self;
        Sources { tokenizer, tokenizer_config, configs, vocabulary }
    }
}

/// Opens a folder.
///
/// # Errors
/// A file is missing or wrong, or the model is not one that this engine serves.
pub fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let json = required_json(folder, "config.json")?;
    let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let described = config::read(&json, name)?;
    let tensors = read_tensors(folder, &described)?;
    let optional = |name| optional_json(folder, name).map(Option::unwrap_or_default);
    let text = TextFiles {
        tokenizer: read(&folder.join("tokenizer.json"))?,
        tokenizer_config: optional("tokenizer_config.json")?,
        configs: [json, optional("generation_config.json")?],
    };
    let chat_template = chat_template(folder, &text.tokenizer_config)?;
    Ok(Checkpoint { config: described.config, tensors, chat_template, text: Text::Folder(Box::new(text)) })
}

/// The template's own file, else the tokenizer's key: a text, or several by name.
fn chat_template(folder: &Path, config: &Value) -> Result<Option<String>, CheckpointError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(template) => return Ok(Some(template)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(CheckpointError::Open { path, source }),
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(match config.get("chat_template") {
        Some(Value::Array(all)) => {
            let default = all.iter().find(|one| one.get("name").and_then(Value::as_str) == Some("default"));
            default.and_then(|one| text(one.get("template")?))
        }
        other => other.and_then(text),
    })
}

fn read_tensors(folder: &Path, described: &Described) -> Result<Tensors, CheckpointError> {
    let path = folder.join(INDEX);
    let index = match std::fs::read(&path) {
        Ok(text) => {
            Some(SafetensorsIndex::parse(&text).map_err(|source| CheckpointError::Header { path, source })?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => return Err(CheckpointError::Open { path, source }),
    };
    let files =
        index.as_ref().map_or_else(|| BTreeSet::from([WEIGHTS.to_owned()]), |index| index.files.clone());
    if index.is_none() && !folder.join(WEIGHTS).exists() {
        return Err(CheckpointError::NoWeights { folder: folder.to_owned() });
    }
    let mut builder = Builder { described, tensors: Tensors::default(), names: BTreeSet::new() };
    for file in files {
        let path = folder.join(file);
        let open = |source| CheckpointError::Open { path: path.clone(), source };
        let file = Arc::new(MappedFile::open(&path).map_err(open)?);
        let damaged = |source| CheckpointError::Header { path: path.clone(), source };
        let header = Safetensors::parse_file(&file).map_err(damaged)?;
        header.tensors().iter().try_for_each(|tensor| builder.add(tensor, &file))?;
    }
    let mut listed = index.iter().flat_map(|index| index.file_of.keys());
    if let Some(name) = listed.find(|name| !builder.names.contains(*name)) {
        return Err(ModelError::MissingTensor { name: name.clone() }.into());
    }
    if let Some(factors) = &described.rope_factors {
        builder.tensors.insert("rope_freqs.weight".to_owned(), Tensor::of_values(factors));
    }
    // Without a head of its own a model would be served with its embedding.
    if !described.tied && !builder.tensors.contains(HEAD) {
        return Err(ModelError::MissingTensor { name: "lm_head.weight".to_owned() }.into());
    }
    Ok(builder.tensors)
}

struct Builder<'a> {
    described: &'a Described,
    tensors: Tensors,
    names: BTreeSet<String>,
}

impl Builder<'_> {
    fn add(&mut self, stored: &StoredTensor, file: &Arc<MappedFile>) -> Result<(), CheckpointError> {
        let name = &stored.name;
        if !self.names.insert(name.clone()) {
            return Err(CheckpointError::Twice { name: name.clone() });
        }
        let gguf = match place(name) {
            // Some tools write a tied head out.
            Place::Tensor(gguf) if gguf == HEAD && self.described.tied => return Ok(()),
            Place::Tensor(gguf) => gguf,
            Place::Needless => return Ok(()),
            Place::None => {
                let model_type = self.described.model_type.clone();
                return Err(CheckpointError::Unused { name: name.clone(), model_type });
            }
        };
        let (tensor_type, block) = match stored.dtype {
            Dtype::F32 => (TensorType::F32, BlockType::F32),
            Dtype::F16 => (TensorType::F16, BlockType::F16),
            Dtype::Bf16 => (TensorType::BF16, BlockType::Bf16),
            ref other => {
                return Err(CheckpointError::Dtype { name: name.clone(), dtype: other.to_string() });
            }
        };
        // GGUF's dimensions stand fastest first.
        let shape: Vec<u64> = stored.shape.iter().rev().copied().collect();
        let mut tensor = Tensor::new(tensor_type, shape, file.clone(), stored.bytes.clone());
        if stored.shape.len() == 1 && tensor_type != TensorType::F32 {
            tensor = widened(stored, block, file).unwrap_or(tensor);
        }
        self.tensors.insert(gguf, tensor);
        Ok(())
    }
}

/// A vector in f32, as norms and biases are computed with.
fn widened(stored: &StoredTensor, block: BlockType, file: &MappedFile) -> Option<Tensor> {
    let range = usize::try_from(stored.bytes.start).ok()?..usize::try_from(stored.bytes.end).ok()?;
    let length = usize::try_from(*stored.shape.first()?).ok()?;
    let mut values = vec![0.0; length];
    Weights::new(block, file.get(range)?, 1, length).ok()?.row(0, &mut values);
    Some(Tensor::of_values(&values))
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|source| CheckpointError::Open { path: path.to_owned(), source })
}

fn parse(path: PathBuf, text: &[u8]) -> Result<Value, CheckpointError> {
    serde_json::from_slice(text).map_err(|source| CheckpointError::Json { path, source })
}

fn required_json(folder: &Path, name: &str) -> Result<Value, CheckpointError> {
    let path = folder.join(name);
    let text = read(&path)?;
    parse(path, &text)
}

fn optional_json(folder: &Path, name: &str) -> Result<Option<Value>, CheckpointError> {
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Open { path, source }),
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
