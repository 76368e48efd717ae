//! Text in and out of token ids: tokenizer, chat template, detokenizer, stop strings.
//!
//! Everything comes from the model's files; nothing here knows of requests or of the model's weights.

mod allowance;
pub mod answer;
mod builtin_call;
pub mod chat_template;
pub mod choice;
pub mod detokenizer;
pub mod gbnf;
pub mod generic_tools;
pub mod grammar;
mod json_scan;
mod pre_tokenizer;
pub mod schema;
mod sentence_piece;
pub mod stop;
mod template_json;
pub mod tokenizer;
mod tokenizer_gguf;
pub mod tokenizer_json;
mod tool_call;

pub use chat_template::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use stop::StopFilter;
pub use tokenizer::{TextTokenizer, TokenizerError};

#[cfg(test)]
pub mod vocabulary_tests;
