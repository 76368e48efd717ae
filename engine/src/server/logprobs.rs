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
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// A token's text on its own; what is no character becomes a replacement character.
pub fn shown(tokenizer: &TextTokenizer, token: TokenId) -> String {
    String::from_utf8_lossy(&tokenizer.shown_bytes(token)).into_owned()
}

/// The completion API's `logprobs`; `offset` is the length of the text before, in characters, and moves on. The first
/// token of all has nothing before it and no log-probability.
pub fn completion(
    tokenizer: &TextTokenizer,
    tokens: &[(TokenId, Option<&TokenLogprobs>)],
    offset: &mut usize,
) -> Value {
    let (mut texts, mut offsets, mut chosen, mut tops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (token, logprobs) in tokens {
        let text = shown(tokenizer, *token);
        offsets.push(*offset);
        *offset += text.chars().count();
        texts.push(text);
        chosen.push(logprobs.map_or(Value::Null, |logprobs| number(logprobs.chosen)));
        tops.push(logprobs.map_or(Value::Null, |logprobs| top(tokenizer, logprobs)));
    }
    json!({"tokens": texts, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets})
}

fn top(tokenizer: &TextTokenizer, logprobs: &TokenLogprobs) -> Value {
    let mut top = Map::new();
    for (token, logprob) in &logprobs.top {
        // Two tokens may show alike; the likelier one stays.
        top.entry(shown(tokenizer, *token)).or_insert_with(|| number(*logprob));
    }
    Value::Object(top)
}
