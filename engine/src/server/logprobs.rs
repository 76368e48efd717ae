//! Log-probabilities in the forms of both OpenAI APIs.

use crate::text::TextTokenizer;
use atlas_engine_core::TokenId;
use atlas_engine_core::sampler::TokenLogprobs;
use serde_json::{Map, Value, json};

/// JSON has no infinity; this is far below anything that occurs.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> Value {
    json!(if logprob.is_finite() { logprob.max(LEAST) } else { LEAST })
}

/// The chat API's `logprobs`.
pub fn chat(tokenizer: &TextTokenizer, tokens: &[(TokenId, TokenLogprobs)]) -> Value {
    json!({"content": of_tokens(tokenizer, tokens), "refusal": null})
}

/// Each token with its log-probability and its alternatives.
pub fn of_tokens(tokenizer: &TextTokenizer, tokens: &[(TokenId, TokenLogprobs)]) -> Vec<Value> {
    let entry = |token: TokenId, logprob: f32| {
        let bytes = tokenizer.shown_bytes(token);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": number(logprob), "bytes": bytes})
    };
    let content = tokens.iter().map(|(token, logprobs)| {
        let mut shown = entry(*token, logprobs.chosen);
        let top = logprobs.top.iter().map(|(token, logprob)| entry(*token, *logprob));
        shown["top_logprobs"] = top.collect();
        shown
    });
    content.collect()
}

/// A token's text on its own, as OpenAI's completion API has it: what is no text of whole characters is told by its
/// bytes, so that tokens which are parts of characters remain apart.
fn shown(tokenizer: &TextTokenizer, token: TokenId) -> String {
    let escape = |byte: u8| match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    String::from_utf8(tokenizer.shown_bytes(token)).unwrap_or_else(|error| {
        let escaped: String = error.into_bytes().into_iter().map(escape).collect();
        format!("bytes:{escaped}")
    })
}

/// Characters that begin in a token. A character may reach over several tokens: those that go on with it begin where
/// it does, as do all places in the text that clients cut at.
pub fn characters(tokenizer: &TextTokenizer, token: TokenId) -> usize {
    tokenizer.shown_bytes(token).iter().filter(|byte| begins(**byte)).count()
}

/// Whether a byte begins a character of UTF-8.
fn begins(byte: u8) -> bool {
    byte & 0b1100_0000 != 0b1000_0000
}

/// The completion API's `logprobs`; `offset` counts the characters of the text that began before,
/// and moves on; it is negative where the tokens begin with some that the text does not have. The first token of
/// all has nothing before it and no log-probability.
pub fn completion(
    tokenizer: &TextTokenizer,
    tokens: &[(TokenId, Option<&TokenLogprobs>)],
    offset: &mut i64,
) -> Value {
    let (mut texts, mut offsets, mut chosen, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (token, logprobs) in tokens {
        let goes_on = tokenizer.shown_bytes(*token).first().is_some_and(|byte| !begins(*byte));
        offsets.push((*offset - i64::from(goes_on)).max(0));
        *offset = offset.saturating_add_unsigned(characters(tokenizer, *token) as u64);
        texts.push(shown(tokenizer, *token));
        chosen.push(logprobs.map_or(Value::Null, |logprobs| number(logprobs.chosen)));
        tops.push(logprobs.map_or(Value::Null, |logprobs| top(tokenizer, *token, logprobs)));
    }
    json!({"tokens": texts, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets})
}

/// The likeliest tokens, and the one that was taken, as OpenAI's API always has it among them.
fn top(tokenizer: &TextTokenizer, token: TokenId, logprobs: &TokenLogprobs) -> Value {
    let mut top = Map::new();
    top.insert(shown(tokenizer, token), number(logprobs.chosen));
    for (token, logprob) in &logprobs.top {
        top.entry(shown(tokenizer, *token)).or_insert_with(|| number(*logprob));
    }
    Value::Object(top)
}
