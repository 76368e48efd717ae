//! How text is cut before byte-pair merges, by the GGUF's `tokenizer.ggml.pre`.
//!
//! A wrong cut gives wrong ids without any error, so an unknown name is refused and never guessed.
//! Sources: each family's tokenizer.json; for `default`, llama.cpp's `llama-vocab.cpp`.

use super::tokenizer::TokenizerError;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// GPT-2's own pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3: groups of up to three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2: single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek Coder, one after another; its last step is single digits.
const DEEPSEEK_CODER: &[&str] = &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];
/// llama.cpp's for files that name `default`.
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// One family's way of cutting.
pub struct Family {
    patterns: &'static [&'static str],
    single_digits: bool,
    /// Whether a word that is in the vocabulary as it stands skips the merges.
    pub ignore_merges: bool,
    /// Whether the text is brought into Unicode's composed form first.
    pub compose: bool,
    /// Whether a beginning-of-text token is added where the file does not say.
    pub add_bos: bool,
}

const PLAIN: Family =
    Family { patterns: &[GPT2], single_digits: false, ignore_merges: false, compose: false, add_bos: false };

/// The family of a `tokenizer.ggml.pre` value.
///
/// # Errors
/// The value is not in the table.
pub fn family(pre: &str) -> Result<Family, TokenizerError> {
    Ok(match pre {
        "gpt-2" | "gpt2" | "phi-2" | "jina-es" | "jina-de" | "mpt" | "olmo" | "dbrx" => PLAIN,
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            Family { single_digits: true, ..PLAIN }
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => {
            Family { patterns: &[LLAMA3], ignore_merges: true, add_bos: true, ..PLAIN }
        }
        "smaug-bpe" => Family { patterns: &[LLAMA3], ..PLAIN },
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Family { patterns: &[QWEN2], compose: true, ..PLAIN },
        "tekken" => Family { patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
        "deepseek-coder" => Family { patterns: DEEPSEEK_CODER, single_digits: true, ..PLAIN },
        "default" => Family { patterns: DEFAULT, ..PLAIN },
        unknown => return Err(TokenizerError::UnknownPre { pre: unknown.to_owned() }),
    })
}

impl Family {
    /// The steps as a pre-tokenizer, ending in the byte alphabet.
    ///
    /// # Errors
    /// A pattern does not compile, which the tests rule out.
    pub fn build(&self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        // Digits first: later patterns see single digits and leave them alone.
        if self.single_digits {
            steps.push(Digits::new(true).into());
        }
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(TokenizerError::library)?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        family(pre).unwrap().build().unwrap().pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        // The byte alphabet writes a space as Ġ and a line feed as Ċ.
        splits.into_iter().map(|(piece, ..)| piece.replace('Ġ', " ").replace('Ċ', "\n")).collect()
    }

    #[test]
    fn each_family_cuts_in_its_own_way() {
        let text = "Don't stop 1234\n\n  now";
        for (pre, expected) in [
            ("gpt-2", vec!["Don", "'t", " stop", " 1234", "\n\n ", " now"]),
            ("smollm", vec!["Don", "'t", " stop", " ", "1", "2", "3", "4", "\n\n ", " now"]),
            ("llama-bpe", vec!["Don", "'t", " stop", " ", "123", "4", "\n\n", " ", " now"]),
            ("qwen2", vec!["Don", "'t", " stop", " ", "1", "2", "3", "4", "\n\n", " ", " now"]),
            (
                "deepseek-coder",
                vec!["Don", "'", "t", " stop", " ", "1", "2", "3", "4", "\n", "\n", " ", " now"],
            ),
        ] {
            assert_eq!(pieces(pre, text), expected, "{pre}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = family("made-up").err().map(|error| error.to_string());
        assert!(error.is_some_and(|message| message.contains("\"made-up\"")));
    }

    #[test]
    fn every_pattern_compiles() {
        for pre in
            ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "deepseek-coder", "default"]
        {
            assert!(!pieces(pre, "Ünï code 12 你好, x\r\n").is_empty(), "{pre}");
        }
    }
}
