//! A tokenizer from GGUF metadata.

use super::pre_tokenizer::{Family, family};
use super::sentence_piece;
use super::tokenizer::{
    CONTROL, END_TEXTS, FILL_IN_THE_MIDDLE, TextTokenizer, TokenizerError, USER_DEFINED, byte_level_bytes,
    sentence_piece_bytes,
};
use atlas_format::{Gguf, MetadataError};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, Tokenizer};

/// The vocabulary as the file has it.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u32>,
}

impl TextTokenizer {
    /// Converts a header's tokenizer.
    ///
    /// # Errors
    /// The metadata are incomplete or name something unknown.
    pub fn from_gguf(header: &Gguf) -> Result<Self, TokenizerError> {
        let model = header.require_str("tokenizer.ggml.model")?;
        let tokens_key = "tokenizer.ggml.tokens";
        let missing = || MetadataError::Missing { key: tokens_key.into() };
        let tokens = header.strings(tokens_key)?.ok_or_else(missing)?;
        let types = header.u32s("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
        check_length(tokens.len(), "token types", types.len())?;
        let vocabulary = Vocabulary { tokens, types };
        let pre = header.str("tokenizer.ggml.pre")?.unwrap_or("default");
        let (mut tokenizer, bytes, add_bos_by_default): (_, Vec<Box<[u8]>>, _) = match model {
            "gpt2" => {
                let family = family(pre)?;
                (
                    byte_level(header, &vocabulary, &family)?,
                    vocabulary.bytes(byte_level_bytes),
                    family.add_bos,
                )
            }
            "llama" => (sentence_piece(header, &vocabulary)?, vocabulary.bytes(sentence_piece_bytes), true),
            other => return Err(TokenizerError::UnknownModel { model: other.to_owned() }),
        };
        tokenizer.add_special_tokens(vocabulary.added(CONTROL)).map_err(TokenizerError::library)?;
        tokenizer.add_tokens(vocabulary.added(USER_DEFINED)).map_err(TokenizerError::library)?;
        let id = |key: &'static str| vocabulary.id(header, key);
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let mut end_tokens: Vec<u32> = eos.into_iter().collect();
        end_tokens.extend(id("tokenizer.ggml.eot_token_id")?);
        end_tokens.extend(id("tokenizer.ggml.eom_token_id")?);
        end_tokens.extend(vocabulary.ids_of(END_TEXTS));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let fill_in_the_middle = vocabulary.fill_in_the_middle(header)?;
        let control = vocabulary.types.iter().map(|kind| *kind == CONTROL).collect();
        Ok(Self {
            tokenizer,
            bytes,
            control,
            fill_in_the_middle,
            bos,
            eos,
            add_bos: header.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos_by_default),
            end_tokens,
            label: if model == "gpt2" { format!("{model}, pre {pre}") } else { model.to_owned() },
        })
    }
}

impl Vocabulary<'_> {
    fn added(&self, kind: u32) -> Vec<AddedToken> {
        let of_kind = self.tokens.iter().zip(&self.types).filter(|(_, token_type)| **token_type == kind);
        of_kind
            .map(|(token, _)| AddedToken::from((*token).to_owned(), kind == CONTROL).normalized(false))
            .collect()
    }

    fn ids_of(&self, texts: &[&str]) -> Vec<u32> {
        let tokens = self.tokens.iter().zip(&self.types).enumerate();
        let ends = tokens.filter(|(_, (token, kind))| **kind == CONTROL && texts.contains(token));
        ends.map(|(id, _)| id as u32).collect()
    }

    /// The marks for a text with a gap, from the metadata under their newer and older keys, else by name.
    fn fill_in_the_middle(&self, header: &Gguf) -> Result<Option<[u32; 3]>, TokenizerError> {
        for keys in [
            [
                "tokenizer.ggml.fim_pre_token_id",
                "tokenizer.ggml.fim_suf_token_id",
                "tokenizer.ggml.fim_mid_token_id",
            ],
            [
                "tokenizer.ggml.prefix_token_id",
                "tokenizer.ggml.suffix_token_id",
                "tokenizer.ggml.middle_token_id",
            ],
        ] {
            let [prefix, suffix, middle] = keys.map(|key| self.id(header, key));
            if let (Some(prefix), Some(suffix), Some(middle)) = (prefix?, suffix?, middle?) {
                return Ok(Some([prefix, suffix, middle]));
            }
        }
        let find = |text: &str| self.tokens.iter().position(|token| *token == text).map(|id| id as u32);
        let named = FILL_IN_THE_MIDDLE
            .iter()
            .find_map(|[prefix, suffix, middle]| Some([find(prefix)?, find(suffix)?, find(middle)?]));
        Ok(named)
    }

    fn id(&self, header: &Gguf, key: &'static str) -> Result<Option<u32>, TokenizerError> {
        let tokens = self.tokens.len();
        match header.u32(key)? {
            Some(id) if id as usize >= tokens => Err(TokenizerError::OutOfVocabulary { key, id, tokens }),
            id => Ok(id),
        }
    }

    fn bytes(&self, of_token: impl Fn(&str, u32) -> Vec<u8>) -> Vec<Box<[u8]>> {
        let pairs = self.tokens.iter().zip(&self.types);
        pairs.map(|(token, kind)| of_token(token, *kind).into_boxed_slice()).collect()
    }

    fn map(&self) -> Vocab {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id as u32)).collect()
    }
}

fn check_length(tokens: usize, list: &'static str, found: usize) -> Result<(), TokenizerError> {
    if tokens == found { Ok(()) } else { Err(TokenizerError::Length { tokens, list, found }) }
}

fn byte_level(
    header: &Gguf,
    vocabulary: &Vocabulary<'_>,
    family: &Family,
) -> Result<Tokenizer, TokenizerError> {
    let merges_key = "tokenizer.ggml.merges";
    let missing = || MetadataError::Missing { key: merges_key.into() };
    let merges = header.strings(merges_key)?.ok_or_else(missing)?;
    let pair = |(index, merge): (usize, &str)| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(TokenizerError::Merge { index, merge: merge.to_owned() }),
    };
    let merges = merges.into_iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder().vocab_and_merges(vocabulary.map(), merges).ignore_merges(family.ignore_merges);
    let mut tokenizer = Tokenizer::new(model.build().map_err(TokenizerError::library)?);
    if family.compose {
        tokenizer.with_normalizer(Some(NFC)).map_err(TokenizerError::library)?;
    }
    tokenizer.with_pre_tokenizer(Some(family.build()?));
    Ok(tokenizer)
}

fn sentence_piece(header: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let scores_key = "tokenizer.ggml.scores";
    let missing = || MetadataError::Missing { key: scores_key.into() };
    let scores = header.f32s(scores_key)?.ok_or_else(missing)?;
    check_length(vocabulary.tokens.len(), "scores", scores.len())?;
    let unknown = vocabulary.id(header, "tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unknown = vocabulary.tokens.get(unknown as usize).copied().unwrap_or("<unk>");
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.map(), sentence_piece::merges(&vocabulary.tokens, &scores))
        .unk_token(unknown.to_owned())
        .fuse_unk(true)
        .byte_fallback(true);
    let mut tokenizer = Tokenizer::new(model.build().map_err(TokenizerError::library)?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        steps.push(Prepend::new("▁".to_owned()).into());
    }
    steps.push(Replace::new(" ", "▁").map_err(TokenizerError::library)?.into());
    tokenizer.with_normalizer(Some(Sequence::new(steps))).map_err(TokenizerError::library)?;
    Ok(tokenizer)
}
