//! What a text completion's answers begin with where the prompt is to be shown too.

use super::logprobs::characters;
use crate::text::TextTokenizer;
use atlas_engine_core::TokenId;
use atlas_engine_core::sampler::TokenLogprobs;

/// What a prompt's answers begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Echo {
    /// The prompt: a text as it was sent.
    pub text: String,
    tokens: Vec<TokenId>,
    /// Whether the tokenizer put a token in front, which is not shown.
    follows: bool,
    /// Characters that the tokenizer put in front, which the tokens show and the text does not.
    lead: usize,
}

impl Echo {
    /// The prompt without what the tokenizer put in front of a text: a token, and SentencePiece a space. Ids are told
    /// as they came: who sends them counts on as many log-probabilities.
    pub fn of(tokenizer: &TextTokenizer, prompt: &[TokenId], text: Option<String>) -> Self {
        let (bos, _) = tokenizer.special_ids();
        let bos = bos.filter(|_| text.is_some() && tokenizer.adds_bos());
        let (tokens, follows) = match (prompt, bos) {
            ([first, rest @ ..], Some(bos)) if *first == bos => (rest, true),
            (all, _) => (all, false),
        };
        let shown = tokenizer.decode(tokens);
        let front = text.as_ref().and_then(|text| shown.strip_suffix(text.as_str()));
        let lead = front.map_or(0, |front| front.chars().count());
        Self { text: text.unwrap_or(shown), tokens: tokens.to_vec(), follows, lead }
    }

    /// Its tokens with their log-probabilities, which every token of a prompt has but the first.
    pub fn with<'a>(
        &'a self,
        logprobs: &'a [TokenLogprobs],
    ) -> impl Iterator<Item = (TokenId, Option<&'a TokenLogprobs>)> {
        let first = (!self.follows).then_some(None);
        self.tokens.iter().copied().zip(first.into_iter().chain(logprobs.iter().map(Some)))
    }

    /// Where its first token begins in the text: before it, where something was put in front.
    pub fn start(&self) -> i64 {
        -i64::try_from(self.lead).unwrap_or(i64::MAX)
    }

    /// Where what comes after it begins in the text.
    pub fn end(&self, tokenizer: &TextTokenizer) -> i64 {
        let own: usize = self.tokens.iter().map(|token| characters(tokenizer, *token)).sum();
        self.start().saturating_add_unsigned(own as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::logprobs::completion;
    use crate::text::vocabulary_tests::tokenizer_of;
    use serde_json::{Value, json};

    /// The echo of a text with all its log-probabilities, and what the API says of them.
    fn told(tokenizer: &TextTokenizer, text: &str, as_text: bool) -> (Echo, Value) {
        let prompt = tokenizer.encode_prompt(text).unwrap();
        let echo = Echo::of(tokenizer, &prompt, as_text.then(|| text.to_owned()));
        let one = TokenLogprobs { chosen: -1.0, top: Vec::new() };
        let logprobs = vec![one; prompt.len() - 1];
        let listed: Vec<_> = echo.with(&logprobs).collect();
        let mut offset = echo.start();
        let told = completion(tokenizer, &listed, &mut offset);
        assert_eq!(offset, echo.end(tokenizer));
        (echo, told)
    }

    #[test]
    fn a_text_is_echoed_as_it_was_sent_whatever_its_tokenizer_puts_in_front() {
        for (family, first, starts) in
            [("llama-spm", " Hello", false), ("llama-bpe", "Hello", false), ("gpt-2", "Hello", true)]
        {
            let (echo, told) = told(&tokenizer_of(family), "Hello big world", true);
            assert_eq!(echo.text, "Hello big world", "{family}");
            assert_eq!(told["tokens"], json!([first, " big", " world"]), "{family}");
            assert_eq!(told["text_offset"], json!([0, 5, 9]), "{family}");
            // Behind a token that is not shown every token has its log-probability.
            assert_eq!(told["token_logprobs"][0].is_null(), starts, "{family}");
        }
    }

    #[test]
    fn ids_are_echoed_as_they_came() {
        let (echo, told) = told(&tokenizer_of("llama-spm"), "Hello big", false);
        assert_eq!(echo.text, "<s> Hello big");
        assert_eq!(told["tokens"], json!(["<s>", " Hello", " big"]));
        assert_eq!(told["text_offset"], json!([0, 3, 9]));
        assert_eq!(told["token_logprobs"], json!([null, -1.0, -1.0]));
    }

    #[test]
    fn parts_of_a_character_are_told_apart() {
        let (_, told) = told(&tokenizer_of("gpt-2"), "a 日", true);
        let tokens = told["tokens"].as_array().unwrap();
        assert_eq!(tokens[0], "a");
        assert!(
            tokens.len() > 2
                && tokens[1..].iter().all(|token| {
                    let token = token.as_str().unwrap();
                    token.starts_with("bytes:") && token.contains("\\x")
                }),
            "{tokens:?}"
        );
        let tops: Vec<&Value> = told["top_logprobs"].as_array().unwrap().iter().skip(1).collect();
        assert!(tops.iter().zip(&tokens[1..]).all(|(top, token)| top[token.as_str().unwrap()] == -1.0));
    }
}
