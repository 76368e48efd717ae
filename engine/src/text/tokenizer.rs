//! Token ids from text and back, as the model's files describe them: GGUF metadata, or `tokenizer.json`.

use super::sentence_piece;
use atlas_format::MetadataError;
use tokenizers::Tokenizer;

/// Why a tokenizer cannot be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The header lacks a key or has it of the wrong kind.
    #[error("the tokenizer's metadata is incomplete")]
    Metadata(#[from] MetadataError),
    /// The tokenizer model is not known.
    #[error("the tokenizer model is {model:?}, and this engine knows byte-level BPE and SentencePiece")]
    UnknownModel {
        /// The file's name of it.
        model: String,
    },
    /// The way of cutting text is not known; another one would give wrong ids without any error.
    #[error("the tokenizer's pre-tokenizer {pre:?} is not known to this engine")]
    UnknownPre {
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// A merge is not two tokens.
    #[error("the tokenizer's merge {index} is {merge:?}, expected two tokens with a space between")]
    Merge {
        /// Its place in the list.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// The lists of the vocabulary differ in length.
    #[error("the vocabulary has {tokens} tokens and {found} {list}")]
    Length {
        /// Tokens.
        tokens: usize,
        /// The other list.
        list: &'static str,
        /// Its length.
        found: usize,
    },
    /// An id is outside the vocabulary.
    #[error("{key} is {id}, and the vocabulary has {tokens} tokens")]
    OutOfVocabulary {
        /// The metadata key.
        key: &'static str,
        /// The id.
        id: u32,
        /// Tokens.
        tokens: usize,
    },
    /// A token has no row in the embedding.
    #[error("the token {token:?} has the id {id}, and the embedding has {rows} rows")]
    BeyondRows {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows.
        rows: usize,
    },
    /// The tokenizer library refused.
    #[error("the tokenizer library failed")]
    Library(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl TokenizerError {
    pub(super) fn library(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Library(error)
    }
}

/// ggml's token types (llama.h, `llama_token_type`).
pub(super) const CONTROL: u32 = 3;
pub(super) const USER_DEFINED: u32 = 4;
pub(super) const BYTE: u32 = 6;

/// Text of end-of-turn and end-of-message tokens, for files whose metadata name only one of the ends.
pub(super) const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|EOT|>",
    "</s>",
];

/// How model families name their marks for a text with a gap: prefix, suffix, middle.
pub(super) const FILL_IN_THE_MIDDLE: &[[&str; 3]] = &[
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
];

/// A model's tokenizer.
pub struct TextTokenizer {
    pub(super) tokenizer: Tokenizer,
    /// Bytes of each token as it shows in an answer; none for control tokens.
    pub(super) bytes: Vec<Box<[u8]>>,
    pub(super) control: Vec<bool>,
    pub(super) fill_in_the_middle: Option<[u32; 3]>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) end_tokens: Vec<u32>,
    pub(super) label: String,
}

impl TextTokenizer {
    /// Ids of a prompt. Text of special tokens becomes those tokens; the beginning-of-text token is put in front
    /// where the model wants one and the text does not start with it.
    ///
    /// # Errors
    /// The library refuses the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(TokenizerError::library)?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Bytes of a token as it shows in an answer: none for control tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Ids of a text as it stands, without a token in front.
    ///
    /// # Errors
    /// The library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(TokenizerError::library)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, control tokens included; what is no character becomes a replacement character.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.shown_bytes(*id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Bytes of a token with control tokens as their text.
    pub fn shown_bytes(&self, id: u32) -> Vec<u8> {
        match self.token_bytes(id) {
            [] => self.token_text(id).into_bytes(),
            bytes => bytes.to_vec(),
        }
    }

    /// A token as the vocabulary writes it; empty for unknown ids.
    pub fn token_text(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// Whether a token is a mark between texts and never text itself.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether prompts begin with the beginning-of-text token.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Tokens that mark prefix, suffix and middle of a text with a gap, where the model was trained on such.
    pub fn fill_in_the_middle(&self) -> Option<[u32; 3]> {
        self.fill_in_the_middle
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// Texts of the beginning- and end-of-text tokens, which chat templates write.
    pub fn special_texts(&self) -> (String, String) {
        // A model without such a token has no text for it either.
        let text = |id: Option<u32>| id.map(|id| self.token_text(id)).unwrap_or_default();
        (text(self.bos), text(self.eos))
    }

    /// Model and pre-tokenizer, for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Ids of the beginning- and end-of-text tokens.
    pub fn special_ids(&self) -> (Option<u32>, Option<u32>) {
        (self.bos, self.eos)
    }
}

/// The byte that a character of GPT-2's byte alphabet stands for (`bytes_to_unicode` in GPT-2's encoder.py).
fn alphabet_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        // The other bytes follow from U+0100 in their order: 0x00-0x20, 0x7f-0xa0, 0xad.
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Control tokens never show, but for those that mean something in an answer.
fn marker_bytes(token: &str) -> Vec<u8> {
    if super::answer::MARKERS.contains(&token) { token.as_bytes().to_vec() } else { Vec::new() }
}

pub(super) fn byte_level_bytes(token: &str, kind: u32) -> Vec<u8> {
    match kind {
        CONTROL => marker_bytes(token),
        USER_DEFINED => token.as_bytes().to_vec(),
        _ => token.chars().filter_map(alphabet_byte).collect(),
    }
}

pub(super) fn sentence_piece_bytes(token: &str, kind: u32) -> Vec<u8> {
    match (kind, sentence_piece::byte_token(token)) {
        (CONTROL, _) => marker_bytes(token),
        (BYTE, Some(byte)) => vec![byte],
        _ => token.replace('▁', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = (0..=0x143).filter_map(char::from_u32).filter_map(alphabet_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!("Ġport".chars().filter_map(alphabet_byte).collect::<Vec<_>>(), b" port");
    }

    #[test]
    fn sentence_pieces_show_as_text() {
        assert_eq!(sentence_piece_bytes("▁the", 1), b" the");
        assert_eq!(sentence_piece_bytes("<0xE2>", BYTE), [0xe2]);
        assert_eq!(sentence_piece_bytes("</s>", CONTROL), b"");
    }
}
