//! A folder with `config.json`, weights in safetensors, whole or in several files behind an index, and a tokenizer.

use super::config::{self, Described};
use super::names::{HEAD, Place, place};
use super::{Checkpoint, CheckpointError, Text, repacked};
use crate::model::{ModelError, Tensor, Tensors};
use crate::text::tokenizer_json::Sources;
use atlas_format::safetensors::{INDEX, WEIGHTS};
use atlas_format::{Dtype, Safetensors, SafetensorsIndex, StoredTensor, TensorType};
use atlas_kernels::{BlockType, MappedFile, Weights};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.configs[0]
    }
}

/// Opens a folder.
///
/// # Errors
/// A file is missing or wrong, or the model is not one that this engine serves.
pub fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let json = optional_json(folder, "config.json")?;
    let json = json.ok_or_else(|| CheckpointError::NoConfig { folder: folder.to_owned() })?;
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

/// A tensor of a folder, and the file that holds it.
#[derive(Debug)]
pub struct Stored {
    info: StoredTensor,
    file: Arc<MappedFile>,
}

/// The tensors of a folder, by their names.
pub type Found = BTreeMap<String, Stored>;

impl Stored {
    /// Element type.
    pub fn dtype(&self) -> &Dtype {
        &self.info.dtype
    }

    /// Dimensions, slowest first.
    pub fn shape(&self) -> Vec<usize> {
        // A length that does not fit is no length of anything in memory.
        self.info.shape.iter().map(|length| usize::try_from(*length).unwrap_or(0)).collect()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        let Range { start, end } = self.info.bytes;
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        // The header was parsed from the whole file, so the range lies inside it.
        range.and_then(|(start, end)| self.file.get(start..end)).unwrap_or_default()
    }

    /// The values of a tensor of floats.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let (_, block) = float_type(self.dtype())?;
        let length = self.shape().iter().product();
        let mut values = vec![0.0; length];
        Weights::new(block, self.bytes(), 1, length).ok()?.row(0, &mut values);
        Some(values)
    }
}

/// The types of a tensor of floats to files and kernels.
fn float_type(dtype: &Dtype) -> Option<(TensorType, BlockType)> {
    match dtype {
        Dtype::F32 => Some((TensorType::F32, BlockType::F32)),
        Dtype::F16 => Some((TensorType::F16, BlockType::F16)),
        Dtype::Bf16 => Some((TensorType::BF16, BlockType::Bf16)),
        _ => None,
    }
}

/// Maps the folder's files, and finds every tensor once.
fn find_tensors(folder: &Path) -> Result<Found, CheckpointError> {
    let path = folder.join(INDEX);
    let index = match std::fs::read(&path) {
        Ok(text) => {
            Some(SafetensorsIndex::parse(&text).map_err(|source| CheckpointError::Header { path, source })?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => return Err(CheckpointError::Open { path, source }),
    };
    if index.is_none() && !folder.join(WEIGHTS).exists() {
        return Err(CheckpointError::NoWeights { folder: folder.to_owned() });
    }
    let one = || BTreeSet::from([WEIGHTS.to_owned()]);
    let mut found = Found::new();
    for name in index.as_ref().map_or_else(one, |index| index.files.clone()) {
        let path = folder.join(name);
        let open = |source| CheckpointError::Open { path: path.clone(), source };
        let file = Arc::new(MappedFile::open(&path).map_err(open)?);
        let damaged = |source| CheckpointError::Header { path: path.clone(), source };
        let header = Safetensors::parse_file(&file).map_err(damaged)?;
        for info in header.tensors() {
            let stored = Stored { info: info.clone(), file: file.clone() };
            if found.insert(info.name.clone(), stored).is_some() {
                return Err(CheckpointError::Twice { name: info.name.clone() });
            }
        }
    }
    let mut listed = index.iter().flat_map(|index| index.file_of.keys());
    match listed.find(|name| !found.contains_key(*name)) {
        Some(name) => Err(ModelError::MissingTensor { name: name.clone() }.into()),
        None => Ok(found),
    }
}

fn read_tensors(folder: &Path, described: &Described) -> Result<Tensors, CheckpointError> {
    let mut found = find_tensors(folder)?;
    let mut tensors = Tensors::default();
    let mut add = |name: &str, tensor: &mut dyn FnMut() -> Result<Tensor, CheckpointError>| {
        match place(name) {
            // Some tools write a tied head out.
            Place::Tensor(gguf) if gguf == HEAD && described.tied => Ok(()),
            Place::Needless => Ok(()),
            Place::Tensor(gguf) => {
                tensors.insert(gguf, tensor()?);
                Ok(())
            }
            Place::None => {
                let model_type = described.model_type.clone();
                Err(CheckpointError::Unused { name: name.to_owned(), model_type })
            }
        }
    };
    for (name, tensor) in repacked::take(&mut found, described.method)? {
        let mut tensor = Some(tensor);
        add(&name, &mut || Ok(tensor.take().expect("asked for once")))?;
    }
    for (name, stored) in &found {
        add(name, &mut || plain(stored))?;
    }
    // Without a head of its own a model would be served with its embedding.
    if !described.tied && !tensors.contains(HEAD) {
        return Err(ModelError::MissingTensor { name: "lm_head.weight".to_owned() }.into());
    }
    Ok(tensors)
}

/// A tensor as it lies in its file; a vector in f32, as norms and biases are computed with.
fn plain(stored: &Stored) -> Result<Tensor, CheckpointError> {
    let StoredTensor { name, dtype, shape, bytes } = &stored.info;
    let unknown = || CheckpointError::Dtype { name: name.clone(), dtype: dtype.to_string() };
    let (tensor_type, _) = float_type(dtype).ok_or_else(unknown)?;
    let narrow = shape.len() == 1 && tensor_type != TensorType::F32;
    match narrow.then(|| stored.floats()).flatten() {
        Some(values) => Ok(Tensor::of_values(&values)),
        None => {
            // GGUF's dimensions stand fastest first.
            let shape = shape.iter().rev().copied().collect();
            Ok(Tensor::new(tensor_type, shape, stored.file.clone(), bytes.clone()))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|source| CheckpointError::Open { path: path.to_owned(), source })
}

fn parse(path: PathBuf, text: &[u8]) -> Result<Value, CheckpointError> {
    serde_json::from_slice(text).map_err(|source| CheckpointError::Json { path, source })
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
