//! `atlas-engine inspect`: a model file for people.

use crate::checkpoint::{Checkpoint, folder_of};
use crate::config::Inspect;
use crate::error::Fatal;
use crate::model::{ModelConfig, ModelError};
use crate::text::{TextTokenizer, TokenizerError};
use atlas_engine_core::backend::KvType;
use atlas_engine_core::program::BLOCK_TOKENS;
use atlas_format::{Gguf, Value};
use atlas_kernels::MappedFile;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Texts longer than this are cut.
const SHOWN: usize = 100;

/// The report on a file.
///
/// # Errors
/// The file cannot be opened, or its header is wrong.
pub fn inspect(arguments: &Inspect) -> Result<String, Fatal> {
    let path = &arguments.file;
    if let Some(folder) = folder_of(path) {
        let checkpoint = Checkpoint::open(folder)?;
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = report_folder(&mut out, arguments, &checkpoint);
        return Ok(out);
    }
    let file = MappedFile::open(path).map_err(|source| Fatal::Open { path: path.clone(), source })?;
    let header = Gguf::parse_file(&file).map_err(ModelError::from)?;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = report(&mut out, arguments, &header, file.len() as u64);
    Ok(out)
}

fn report(out: &mut String, arguments: &Inspect, header: &Gguf, bytes: u64) -> std::fmt::Result {
    writeln!(out, "{}", arguments.file.display())?;
    writeln!(
        out,
        "GGUF version {}, {bytes} bytes, {} metadata keys, {} tensors, data from byte {} aligned to {}",
        header.version,
        header.metadata().count(),
        header.tensors().len(),
        header.data_start,
        header.alignment
    )?;
    writeln!(out, "\nMetadata")?;
    let width = header.metadata().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in header.metadata() {
        writeln!(out, "  {key:width$}  {}", shown(value))?;
    }
    let tensors = header.tensors().iter().map(|tensor| Row {
        name: &tensor.name,
        kind: tensor.tensor_type.to_string(),
        shape: &tensor.shape,
        bytes: tensor.byte_count.unwrap_or(0),
    });
    report_tensors(out, arguments, &tensors.collect::<Vec<_>>())?;
    writeln!(out, "\nServing")?;
    match ModelConfig::from_gguf(header) {
        Ok(config) => report_model(out, &config)?,
        Err(error) => writeln!(out, "  model      cannot be served: {}", Fatal::from(error).message())?,
    }
    report_tokenizer(out, TextTokenizer::from_gguf(header))
}

fn report_folder(out: &mut String, arguments: &Inspect, checkpoint: &Checkpoint) -> std::fmt::Result {
    let Checkpoint { config, tensors, chat_template, .. } = checkpoint;
    writeln!(
        out,
        "{}\nfolder of safetensors, {} tensors of {} bytes, {} chat template",
        arguments.file.display(),
        tensors.iter().count(),
        tensors.byte_count(),
        if chat_template.is_some() { "with a" } else { "without a" }
    )?;
    let rows = tensors.iter().map(|(name, tensor)| Row {
        name,
        kind: tensor.tensor_type.to_string(),
        shape: &tensor.shape,
        bytes: tensor.byte_count(),
    });
    report_tensors(out, arguments, &rows.collect::<Vec<_>>())?;
    writeln!(out, "\nServing")?;
    report_model(out, config)?;
    report_tokenizer(out, checkpoint.tokenizer())
}

/// A tensor, as it is shown.
struct Row<'a> {
    name: &'a str,
    kind: String,
    shape: &'a [u64],
    bytes: u64,
}

fn report_tensors(out: &mut String, arguments: &Inspect, rows: &[Row<'_>]) -> std::fmt::Result {
    writeln!(out, "\nTensors by type")?;
    let mut by_type: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for row in rows {
        let (count, elements, bytes) = by_type.entry(&row.kind).or_default();
        *count += 1;
        *elements = elements.saturating_add(row.shape.iter().product());
        *bytes = bytes.saturating_add(row.bytes);
    }
    writeln!(out, "  {:<10} {:>7} {:>15} {:>15}", "type", "tensors", "elements", "bytes")?;
    for (name, (count, elements, bytes)) in by_type {
        writeln!(out, "  {name:<10} {count:>7} {elements:>15} {bytes:>15}")?;
    }
    if arguments.tensors {
        writeln!(out, "\nTensors")?;
        for row in rows {
            writeln!(out, "  {:<40} {:<8} {:?}", row.name, row.kind, row.shape)?;
        }
    }
    Ok(())
}

fn report_model(out: &mut String, config: &ModelConfig) -> std::fmt::Result {
    writeln!(
        out,
        "  model      {}: {} layers, hidden {}, {} heads over {} key heads of {}, context {}\n  KV cache   {} bytes a token in f16",
        config.name,
        config.layers,
        config.hidden,
        config.heads,
        config.kv_heads,
        config.head_size,
        config.trained_context,
        config.kv_spec(KvType::F16, 1).block_bytes().unwrap_or(0) / BLOCK_TOKENS as u64
    )
}

fn report_tokenizer(out: &mut String, tokenizer: Result<TextTokenizer, TokenizerError>) -> std::fmt::Result {
    match tokenizer {
        Ok(tokenizer) => {
            let (bos, eos) = tokenizer.special_ids();
            writeln!(
                out,
                "  tokenizer  {}, {} tokens, beginning {bos:?}, end {eos:?}, answers end at {:?}",
                tokenizer.label(),
                tokenizer.vocabulary(),
                tokenizer.end_tokens()
            )
        }
        Err(error) => writeln!(out, "  tokenizer  cannot be used: {}", Fatal::from(error).message()),
    }
}

/// A value on one line.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(values) => {
            let first: Vec<String> = values.iter().take(4).map(shown).collect();
            format!(
                "[{}{}] ({} values)",
                first.join(", "),
                if values.len() > 4 { ", ..." } else { "" },
                values.len()
            )
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
