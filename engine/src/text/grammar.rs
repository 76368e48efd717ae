//! Schemas, regular expressions and grammars as token masks, by llguidance over the model's own vocabulary.
//!
//! A compiled grammar is cheap to copy, so a request compiles once and every choice gets its own state.

use super::TextTokenizer;
use super::allowance::{Allowance, Timekeeper};
use super::schema::huge_bound;
use atlas_engine_core::{BitMask, MaskError, TokenId, TokenMask};
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, earley::SlicedBiasComputer, regex_to_lark};
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::Arc;

/// Texts that an answer may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Language {
    /// JSON texts that a schema allows.
    Json(Value),
    /// Texts that a regular expression matches as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// Texts of a grammar in Lark's form.
    Lark(String),
}

impl Language {
    /// How long it is, written down.
    pub fn byte_count(&self) -> usize {
        match self {
            Self::Json(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        }
    }

    fn fits(&self) -> Result<(), GrammarError> {
        let bytes = self.byte_count();
        let most = match self {
            Self::Json(_) => MOST_SCHEMA_BYTES,
            Self::Regex(_) | Self::Lark(_) => MOST_BYTES,
            Self::Choice(_) => MOST_CHOICES_BYTES,
        };
        if bytes > most { Err(GrammarError::Long { bytes, most }) } else { Ok(()) }
    }
}

/// A language that cannot be held to.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// The library does not take it.
    #[error("cannot be compiled: {reason}")]
    Refused {
        /// The library's words.
        reason: String,
    },
    /// The library counts in 64 bits.
    #[error("has the bound {bound}, which is beyond 64 bits")]
    Huge {
        /// The bound.
        bound: String,
    },
    /// It is longer than anything that is compiled.
    #[error("has {bytes} bytes, and {most} can be held to")]
    Long {
        /// Its length.
        bytes: usize,
        /// The longest.
        most: usize,
    },
    /// No text is in it, such as where rules lead to each other only.
    #[error("allows no answer at all")]
    Empty,
}

impl GrammarError {
    /// Of the library's words, which may span lines and end with its own state, the line that tells the reason.
    fn refused(words: &str) -> Self {
        let mut lines = words.lines();
        let first = lines.next().unwrap_or_default();
        // Regular expressions are shown over several lines, and what is wrong stands below.
        let below = lines.find_map(|line| line.strip_prefix("error: ")).filter(|_| first.ends_with(':'));
        let reason = below.map_or_else(|| first.to_owned(), |below| format!("{first} {below}"));
        Self::Refused { reason }
    }
}

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    words: Range<TokenId>,
    ends: Arc<[TokenId]>,
    timekeeper: Timekeeper,
}

/// Bytes of a regular expression or a grammar, whose compilation takes time and memory by the square of its length.
const MOST_BYTES: usize = 64 << 10;
/// Bytes of choices.
const MOST_CHOICES_BYTES: usize = 128 << 10;
/// Bytes of a schema.
const MOST_SCHEMA_BYTES: usize = 512 << 10;
/// Stack of a compilation. A language may nest as deep as it is long, by rules that lead to each other, and the
/// library follows them by recursion; only what is used takes memory.
const STACK_BYTES: usize = 1 << 30;

/// White space between JSON's tokens: some, since models have seen it, and not without end.
const WHITE_SPACE: &str = r"[ \n\r\t]{1,16}";
/// `\d` and `\w`, as the library names them.
const ASCII_CLASSES: &str = "dw";

impl GrammarCompiler {
    /// A compiler for a model's vocabulary.
    ///
    /// # Errors
    /// The library refuses the vocabulary.
    pub fn new(tokenizer: &TextTokenizer) -> Result<Self, GrammarError> {
        let timekeeper = Timekeeper::spawn().map_err(|error| GrammarError::refused(&error.to_string()))?;
        let ends: Arc<[TokenId]> = tokenizer.end_tokens().into();
        let words: Vec<Vec<u8>> = (0..tokenizer.vocabulary() as u32).map(|id| word(tokenizer, id)).collect();
        let end = ends.first().copied().unwrap_or(0);
        let info = TokRxInfo::new(words.len() as u32, end);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarError::refused(&error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, words: 0..words.len() as u32, ends, timekeeper })
    }

    /// The grammar of a language, by a thread with room for the library's recursions, which would end the process
    /// where the stack is too small. Calls `done` there.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn compile(
        self: Arc<Self>,
        language: Language,
        done: impl FnOnce(Result<Grammar, GrammarError>) + Send + 'static,
    ) -> std::io::Result<()> {
        let compile = move || {
            let fits = language.fits();
            done(fits.and_then(|()| self.compile_here(&language)));
        };
        let builder = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        builder.spawn(compile).map(|_| ())
    }

    /// It is not valid, too large, allows nothing, or uses what cannot be held to: then an error.
    fn compile_here(&self, language: &Language) -> Result<Grammar, GrammarError> {
        let grammar = match language {
            Language::Json(schema) => {
                if let Some(bound) = huge_bound(schema) {
                    return Err(GrammarError::Huge { bound: bound.to_string() });
                }
                TopLevelGrammar::from_json_schema(with_white_space(schema))
            }
            // Digits and word characters are ASCII's, as in schemas: nobody expects another script's figures.
            Language::Regex(regex) => {
                TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(regex, ASCII_CLASSES)))
            }
            // One terminal: the library follows thousands of them with more trouble than a long one.
            Language::Choice(choices) if choices.iter().all(|choice| !choice.is_empty()) => {
                let escaped: Vec<String> = choices.iter().map(|choice| escaped(choice)).collect();
                let regex = regex_to_lark(&escaped.join("|"), ASCII_CLASSES);
                TopLevelGrammar::from_lark(format!("start: /{regex}/"))
            }
            Language::Choice(choices) => {
                let quoted: Vec<String> =
                    choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
            Language::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::refused(&error));
        }
        // What leads nowhere shows at the first mask.
        let mut first = matcher.deep_clone();
        let allowed = match first.compute_mask_or_eos() {
            Ok(allowed) => allowed,
            Err(_) if first.stop_reason() == StopReason::NoExtensionBias => return Err(GrammarError::Empty),
            Err(error) => return Err(GrammarError::refused(&error.to_string())),
        };
        let mut begins = self.words.clone().filter(|id| allowed.is_allowed(*id) && !self.ends.contains(id));
        if begins.next().is_none() && !first.is_accepting().unwrap_or(false) {
            return Err(GrammarError::Empty);
        }
        let (ends, timekeeper) = (self.ends.clone(), self.timekeeper.clone());
        Ok(Grammar { matcher, ends, timekeeper, allowance: Allowance::new(), place: String::new() })
    }
}

/// A regular expression that matches a text only.
fn escaped(text: &str) -> String {
    let escape = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | ' ' | '_' => character.to_string(),
        _ => format!("\\x{{{:x}}}", u32::from(character)),
    };
    text.chars().map(escape).collect()
}

fn with_white_space(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        // `true` and `false` are schemas too.
        other => json!({"allOf": [other]}).as_object().cloned().unwrap_or_default(),
    };
    schema.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
    Value::Object(schema)
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
    timekeeper: Timekeeper,
    allowance: Allowance,
    place: String,
}

impl Grammar {
    /// The same, with the request's field that asked for it.
    pub fn at(self, place: String) -> Self {
        Self { place, ..self }
    }

    /// The request's field that asked for it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// A choice's state behind the tokens that it has already.
    pub fn mask(&self, resumed: &[TokenId]) -> Box<dyn TokenMask> {
        let Self { matcher, ends, timekeeper, allowance, place: _ } = self.clone();
        let mut mask = GrammarMask { matcher: matcher.into_cancellable(), ends, timekeeper, allowance };
        resumed.iter().for_each(|token| mask.accept(*token));
        Box::new(mask)
    }
}

struct GrammarMask {
    matcher: Matcher,
    ends: Arc<[TokenId]>,
    timekeeper: Timekeeper,
    allowance: Allowance,
}

impl GrammarMask {
    /// Does something with the matcher, as long as its time is not used up.
    fn timed<T>(&mut self, compute: impl FnOnce(&mut Matcher) -> T) -> T {
        // `Grammar::mask` makes every matcher one that can be called off.
        let handle = self.matcher.cancellation_handle().unwrap_or_default();
        let (done, used) = self.timekeeper.time(handle, || compute(&mut self.matcher));
        self.allowance.take(used);
        done
    }

    /// Why the matcher has given up.
    fn reason(&self) -> MaskError {
        if self.matcher.is_cancelled() { MaskError::TooSlow } else { MaskError::Stuck }
    }
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, mask: &mut BitMask) -> Result<(), MaskError> {
        if self.allowance.is_used_up() {
            return Err(MaskError::TooSlow);
        }
        let Ok(allowed) = self.timed(Matcher::compute_mask_or_eos) else { return Err(self.reason()) };
        let ends = &self.ends;
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
        Ok(())
    }

    fn accept(&mut self, token: TokenId) {
        self.allowance.add_token();
        if !self.ends.contains(&token) {
            // What it does not allow, and what it takes too long for, shows at the next mask.
            let _ = self.timed(|matcher| matcher.consume_token(token));
        }
    }
}
