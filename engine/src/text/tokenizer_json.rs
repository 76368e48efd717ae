//! A tokenizer from the files that Hugging Face's libraries write: `tokenizer.json` and what stands beside it.

use super::sentence_piece::byte_token;
use super::tokenizer::{
    BYTE, CONTROL, END_TEXTS, FILL_IN_THE_MIDDLE, TextTokenizer, TokenizerError, USER_DEFINED,
    byte_level_bytes, sentence_piece_bytes,
};
use serde_json::Value;
use tokenizers::Tokenizer;

/// The contents of a folder's files, `null` where one is missing.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: &'a Value,
    /// Files that name special tokens by id: `config.json`, `generation_config.json`.
    pub configs: &'a [Value],
    /// Rows of the embedding; it may have more than the tokenizer has tokens.
    pub vocabulary: usize,
}

impl TextTokenizer {
    /// Takes a tokenizer as it is, and finds out what its tokens show as.
    ///
    /// # Errors
    /// The file is no tokenizer, one of a kind that is not known, or larger than the embedding.
    pub fn from_json(sources: &Sources<'_>) -> Result<Self, TokenizerError> {
        let mut tokenizer = Tokenizer::from_bytes(sources.tokenizer).map_err(TokenizerError::library)?;
        tokenizer.with_truncation(None).map_err(TokenizerError::library)?;
        tokenizer.with_padding(None);
        let json: Value = serde_json::from_slice(sources.tokenizer)
            .map_err(|error| TokenizerError::library(Box::new(error)))?;
        let spelling = Spelling::of(&json)?;
        let rows = sources.vocabulary;
        let mut texts = vec![None; rows];
        for (text, id) in tokenizer.get_vocab(true) {
            let Some(place) = texts.get_mut(id as usize) else {
                return Err(TokenizerError::BeyondRows { token: text, id, rows });
            };
            *place = Some(text);
        }
        let mut kinds = vec![NORMAL; rows];
        for (kind, text) in kinds.iter_mut().zip(&texts) {
            if spelling == Spelling::Pieces && text.as_deref().and_then(byte_token).is_some() {
                *kind = BYTE;
            }
        }
        for (id, added) in tokenizer.get_added_tokens_decoder() {
            if let Some(kind) = kinds.get_mut(id as usize) {
                *kind = if added.special { CONTROL } else { USER_DEFINED };
            }
        }
        let bytes = texts.iter().zip(&kinds).map(|(text, kind)| match (text, spelling) {
            (None, _) => Box::default(),
            (Some(text), Spelling::Bytes) => byte_level_bytes(text, *kind).into_boxed_slice(),
            (Some(text), Spelling::Pieces) => sentence_piece_bytes(text, *kind).into_boxed_slice(),
        });
        let bytes = bytes.collect();
        let control: Vec<bool> = kinds.iter().map(|kind| *kind == CONTROL).collect();
        let special = |name: &str| {
            let text = sources.tokenizer_config.get(format!("{name}_token"));
            let text = text.and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
            let by_text = text.and_then(|text| tokenizer.token_to_id(text));
            by_text.or_else(|| ids(sources.configs, &format!("{name}_token_id")).first().copied())
        };
        let in_rows = |id: &u32| (*id as usize) < rows;
        let (bos, eos) = (special("bos").filter(in_rows), special("eos").filter(in_rows));
        let mut end_tokens = ids(sources.configs, "eos_token_id");
        end_tokens.extend(eos);
        let named = texts.iter().enumerate().filter(|(id, text)| {
            control[*id] && text.as_deref().is_some_and(|text| END_TEXTS.contains(&text))
        });
        end_tokens.extend(named.map(|(id, _)| id as u32));
        end_tokens.retain(in_rows);
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let find = |text: &&str| tokenizer.token_to_id(text);
        let fill_in_the_middle = FILL_IN_THE_MIDDLE
            .iter()
            .find_map(|[prefix, suffix, middle]| Some([find(prefix)?, find(suffix)?, find(middle)?]));
        let add_bos = match sources.tokenizer_config.get("add_bos_token").and_then(Value::as_bool) {
            Some(add) => add,
            None => {
                let with_specials = tokenizer.encode("a", true).map_err(TokenizerError::library)?;
                bos.is_some() && with_specials.get_ids().first().copied() == bos
            }
        };
        let label = format!("tokenizer.json, {}", spelling.name());
        Ok(Self { tokenizer, bytes, control, fill_in_the_middle, bos, eos, add_bos, end_tokens, label })
    }
}

/// A token that is plain text.
const NORMAL: u32 = 1;

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's alphabet, a character a byte.
    Bytes,
    /// SentencePiece's: text with `▁` for spaces, and tokens for single bytes.
    Pieces,
}

impl Spelling {
    /// Told from the steps that a tokenizer names.
    fn of(json: &Value) -> Result<Self, TokenizerError> {
        let names = |kind: &str| {
            ["decoder", "pre_tokenizer"]
                .iter()
                .any(|step| json.get(step).is_some_and(|step| mentions(step, kind)))
        };
        let replaces = json.get("normalizer").is_some_and(|step| mentions(step, "▁"));
        let fallback = json.pointer("/model/byte_fallback").and_then(Value::as_bool) == Some(true);
        if names("ByteLevel") {
            Ok(Self::Bytes)
        } else if names("Metaspace") || names("ByteFallback") || (replaces && fallback) {
            Ok(Self::Pieces)
        } else {
            let model = json.pointer("/model/type").and_then(Value::as_str).unwrap_or("none");
            Err(TokenizerError::UnknownModel { model: model.to_owned() })
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "byte level",
            Self::Pieces => "SentencePiece",
        }
    }
}

/// Whether a step or one inside it has this text as a value. Serde bounds the depth.
fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(values) => values.iter().any(|value| mentions(value, text)),
        Value::Object(fields) => fields.values().any(|value| mentions(value, text)),
        _ => false,
    }
}

/// The ids under a key of several files: a number, or a list of them.
fn ids(configs: &[Value], key: &str) -> Vec<u32> {
    let of = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let each = |config: &Value| match config.get(key) {
        Some(Value::Array(values)) => values.iter().filter_map(of).collect(),
        Some(value) => of(value).into_iter().collect::<Vec<_>>(),
        None => Vec::new(),
    };
    configs.iter().flat_map(each).collect()
}

#[cfg(test)]
#[path = "tokenizer_json_tests.rs"]
mod tests;
