//! Text in and out of token ids: tokenizer, chat template, detokenizer, stop strings.
//!
//! Everything comes from the GGUF's metadata; nothing here knows of requests or of the model's weights.

pub mod chat_template;
pub mod detokenizer;
mod pre_tokenizer;
mod sentence_piece;
pub mod stop;
pub mod tokenizer;

pub use chat_template::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use stop::StopFilter;
pub use tokenizer::{TextTokenizer, TokenizerError};

#[cfg(test)]
mod vocabulary_tests;
