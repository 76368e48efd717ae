//! JSON schemas as token masks, by llguidance over the model's own vocabulary.
//!
//! A compiled grammar is cheap to copy, so a request compiles once and every choice gets its own state.

use super::TextTokenizer;
use atlas_engine_core::{BitMask, TokenId, TokenMask};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, earley::SlicedBiasComputer};
use serde_json::{Value, json};
use std::sync::Arc;

/// A schema that cannot be held to.
#[derive(Debug, thiserror::Error)]
#[error("the schema cannot be compiled: {reason}")]
pub struct GrammarError {
    /// The library's words.
    pub reason: String,
}

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    ends: Arc<[TokenId]>,
}

/// White space between JSON's tokens: some, since models have seen it, and not without end.
const WHITE_SPACE: &str = r"[ \n\r\t]{1,16}";

impl GrammarCompiler {
    /// A compiler for a model's vocabulary.
    ///
    /// # Errors
    /// The library refuses the vocabulary.
    pub fn new(tokenizer: &TextTokenizer) -> Result<Self, GrammarError> {
        let ends: Arc<[TokenId]> = tokenizer.end_tokens().into();
        let words: Vec<Vec<u8>> = (0..tokenizer.vocabulary() as u32).map(|id| word(tokenizer, id)).collect();
        let end = ends.first().copied().unwrap_or(0);
        let info = TokRxInfo::new(words.len() as u32, end);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarError { reason: error.to_string() })?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, ends })
    }

    /// The grammar of all JSON texts that a schema allows.
    ///
    /// # Errors
    /// The schema is not valid, too large, or uses what cannot be held to.
    pub fn json(&self, schema: &Value) -> Result<Grammar, GrammarError> {
        let mut schema = match schema {
            Value::Object(fields) => fields.clone(),
            // `true` and `false` are schemas too.
            other => json!({"allOf": [other]}).as_object().cloned().unwrap_or_default(),
        };
        schema.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
        let grammar = TopLevelGrammar::from_json_schema(Value::Object(schema));
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            // Its errors may span lines and end with its own state.
            Some(error) => Err(GrammarError { reason: error.lines().next().unwrap_or_default().to_owned() }),
            None => Ok(Grammar { matcher, ends: self.ends.clone() }),
        }
    }
}

/// A token's bytes as the library wants them: control tokens are no text, which a leading 0xff marks.
fn word(tokenizer: &TextTokenizer, id: TokenId) -> Vec<u8> {
    if tokenizer.is_control(id) {
        let text = tokenizer.token_text(id);
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
    }
    tokenizer.token_bytes(id).to_vec()
}

/// A compiled grammar.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    ends: Arc<[TokenId]>,
}

impl Grammar {
    /// A choice's state behind the tokens that it has already.
    pub fn mask(&self, resumed: &[TokenId]) -> Box<dyn TokenMask> {
        let mut mask = GrammarMask(self.clone());
        resumed.iter().for_each(|token| mask.accept(*token));
        Box::new(mask)
    }
}

struct GrammarMask(Grammar);

impl TokenMask for GrammarMask {
    fn allowed(&mut self, mask: &mut BitMask) {
        let Grammar { matcher, ends } = &mut self.0;
        // A grammar that gives up (its limits, or a token that it did not allow) lets nothing come but an end.
        let Ok(allowed) = matcher.compute_mask_or_eos() else {
            ends.iter().for_each(|end| mask.allow(*end));
            return;
        };
        let vocabulary = mask.len();
        for (word, from) in mask.words_mut().iter_mut().zip(allowed.as_slice()) {
            *word = *from;
        }
        if let (Some(last), true) = (mask.words_mut().last_mut(), !vocabulary.is_multiple_of(32)) {
            *last &= (1_u32 << (vocabulary % 32)) - 1;
        }
        // The library knows one end, models may have several.
        if ends.first().is_some_and(|end| mask.allows(*end)) {
            ends.iter().for_each(|end| mask.allow(*end));
        }
    }

    fn accept(&mut self, token: TokenId) {
        if !self.0.ends.contains(&token) {
            // What it does not allow shows at the next mask.
            let _ = self.0.matcher.consume_token(token);
        }
    }
}
