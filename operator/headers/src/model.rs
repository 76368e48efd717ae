//! From a file's first bytes to the shape of its model.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use atlas_format::{Gguf, Parsed};
use atlas_operator_core::vram::{ModelShape, read_index_bytes, read_safetensors_header};

use crate::{
    error::HeaderError,
    prefix::{Access, Prefix},
    source::{FileKind, Location, shown},
};

/// The first request: it holds the whole header of a model with a small vocabulary, and the metadata of any.
pub const FIRST_BYTES: u64 = 256 << 10;
/// Largest `config.json` or index that is read.
const MAX_JSON: u64 = 8 << 20;

/// Reads the shape of the model whose first bytes these are.
pub async fn read_shape(
    access: Access<'_>,
    location: &Location,
    prefix: &mut Prefix<'_>,
) -> Result<ModelShape, HeaderError> {
    match location.kind {
        FileKind::Gguf => read_gguf(location, prefix).await,
        // It is read by the places that it may be at.
        FileKind::Folder => Err(HeaderError::Url { url: shown(&location.url) }),
        FileKind::Safetensors => {
            let bytes = read_safetensors(location, prefix).await?;
            read_config(access, location, bytes).await
        }
        FileKind::SafetensorsIndex => {
            prefix.read_to_end().await?;
            let total = read_index_bytes(&prefix.bytes)
                .map_err(|source| HeaderError::Safetensors { url: shown(&location.url), source })?;
            read_config(access, location, [("safetensors".to_owned(), total)].into()).await
        }
    }
}

async fn read_gguf(location: &Location, prefix: &mut Prefix<'_>) -> Result<ModelShape, HeaderError> {
    let url = || shown(&location.url);
    loop {
        let bytes = std::mem::take(&mut prefix.bytes);
        // A vocabulary of 128,000 words takes tens of milliseconds.
        let parsed = tokio::task::spawn_blocking(move || (parse_gguf(&bytes), bytes)).await;
        let (parsed, bytes) = parsed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        prefix.bytes = bytes;
        match parsed {
            Ok(Ok(shape)) => return Ok(shape),
            Ok(Err(needed)) => {
                let doubled = (prefix.bytes.len() as u64).saturating_mul(2);
                prefix.grow_towards(needed, doubled).await?;
            }
            Err(Wrong::Gguf(source)) => return Err(HeaderError::Gguf { url: url(), source }),
            Err(Wrong::Shape(source)) => return Err(HeaderError::Shape { url: url(), source }),
        }
    }
}

/// What is wrong with a file, before it has an address.
enum Wrong {
    Gguf(atlas_format::GgufError),
    Shape(atlas_operator_core::vram::ShapeError),
}

/// The shape, or how many bytes are needed at least.
fn parse_gguf(bytes: &[u8]) -> Result<Result<ModelShape, u64>, Wrong> {
    match Gguf::parse(bytes).map_err(Wrong::Gguf)? {
        Parsed::Complete(header) => ModelShape::from_gguf(&header).map(Ok).map_err(Wrong::Shape),
        Parsed::NeedMore { bytes } => Ok(Err(bytes)),
    }
}

async fn read_safetensors(
    location: &Location,
    prefix: &mut Prefix<'_>,
) -> Result<BTreeMap<String, u64>, HeaderError> {
    loop {
        let read = read_safetensors_header(&prefix.bytes)
            .map_err(|source| HeaderError::Safetensors { url: shown(&location.url), source })?;
        match read {
            Ok(bytes) => return Ok(bytes),
            Err(needed) => prefix.grow(needed).await?,
        }
    }
}

async fn read_config(
    access: Access<'_>,
    location: &Location,
    bytes: BTreeMap<String, u64>,
) -> Result<ModelShape, HeaderError> {
    let config = location.beside("config.json");
    let access = Access { limit: MAX_JSON, ..access };
    let Some(mut text) = Prefix::open(access, &config, 1 << 16, None).await? else {
        return Err(HeaderError::Changed { url: shown(&config.url) });
    };
    text.read_to_end().await?;
    let json = serde_json::from_slice(&text.bytes)
        .map_err(|source| HeaderError::Json { url: shown(&config.url), source })?;
    ModelShape::from_config(&json, bytes)
        .map_err(|source| HeaderError::Shape { url: shown(&location.url), source })
}

/// Reads the shape of a GGUF file of this machine, for tools that have it at hand.
///
/// # Errors
///
/// The file cannot be read, is no GGUF file, or cannot be planned with.
pub fn read_file(path: &Path) -> Result<ModelShape, HeaderError> {
    let url = path.display().to_string();
    let failed = |error: std::io::Error| HeaderError::Unreachable {
        url: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    loop {
        let more = wanted.saturating_sub(bytes.len() as u64);
        let read = file.by_ref().take(more).read_to_end(&mut bytes).map_err(failed)?;
        match parse_gguf(&bytes) {
            Ok(Ok(shape)) => return Ok(shape),
            Ok(Err(_)) if (read as u64) < more => {
                return Err(HeaderError::Truncated { url, bytes: bytes.len() as u64 });
            }
            Ok(Err(needed)) => wanted = needed.max(wanted.saturating_mul(2)),
            Err(Wrong::Gguf(source)) => return Err(HeaderError::Gguf { url, source }),
            Err(Wrong::Shape(source)) => return Err(HeaderError::Shape { url, source }),
        }
    }
}
