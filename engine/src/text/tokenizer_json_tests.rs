//! Real vocabularies, written as `tokenizer.json` by the library and read again: the same ids, bytes and marks.

use super::*;
use crate::text::vocabulary_tests::tokenizer_of;
use serde_json::json;

fn vocabulary(family: &str) -> (TextTokenizer, usize) {
    let tokenizer = tokenizer_of(family);
    let rows = tokenizer.vocabulary();
    (tokenizer, rows)
}

#[test]
fn a_written_tokenizer_reads_as_it_was() {
    for family in ["llama-spm", "llama-bpe", "qwen2", "deepseek-coder"] {
        let (expected, rows) = vocabulary(family);
        let text = expected.tokenizer.to_string(false).unwrap();
        let (bos, eos) = expected.special_texts();
        let config =
            json!({"bos_token": {"content": bos}, "eos_token": eos, "add_bos_token": expected.adds_bos()});
        let configs = [json!({"eos_token_id": expected.special_ids().1}), Value::Null];
        let sources = Sources {
            tokenizer: text.as_bytes(),
            tokenizer_config: &config,
            configs: &configs,
            vocabulary: rows + 3,
        };
        let found = TextTokenizer::from_json(&sources).unwrap();
        assert_eq!(found.special_ids(), expected.special_ids(), "{family}");
        assert_eq!(found.end_tokens(), expected.end_tokens(), "{family}");
        assert_eq!(found.adds_bos(), expected.adds_bos(), "{family}");
        assert_eq!(found.fill_in_the_middle(), expected.fill_in_the_middle(), "{family}");
        assert_eq!((found.vocabulary(), found.token_bytes(rows as u32 + 1)), (rows + 3, &b""[..]));
        for id in 0..rows as u32 {
            assert_eq!(found.token_bytes(id), expected.token_bytes(id), "{family}, {id}");
            assert_eq!(found.is_control(id), expected.is_control(id), "{family}, {id}");
        }
        for text in ["Hello, world!", " fn main() {\n\tlet x = 1234;\n}", "naïve 你好 👍 ▁x", "<s>a</s>"]
        {
            assert_eq!(found.encode_prompt(text).unwrap(), expected.encode_prompt(text).unwrap(), "{family}");
        }
        let small = Sources { vocabulary: rows - 1, ..sources };
        let error = TextTokenizer::from_json(&small).err().unwrap().to_string();
        assert!(error.contains(&format!("the embedding has {} rows", rows - 1)), "{error}");
    }
}

#[test]
fn a_beginning_is_added_where_the_tokenizer_does_so_itself() {
    let mut tokenizer: Value =
        serde_json::from_str(&vocabulary("llama-spm").0.tokenizer.to_string(false).unwrap()).unwrap();
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let text = tokenizer.to_string();
    let config = json!({"bos_token": "<s>"});
    let configs = [json!({"eos_token_id": [2, 7]})];
    let sources = Sources {
        tokenizer: text.as_bytes(),
        tokenizer_config: &config,
        configs: &configs,
        vocabulary: 32000,
    };
    let found = TextTokenizer::from_json(&sources).unwrap();
    assert!(found.adds_bos());
    assert_eq!(found.end_tokens(), [2, 7]);
    assert_eq!(found.encode_prompt("Hi").unwrap()[0], 1);
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    let unknown =
        json!({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        "added_tokens": [], "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null})
        .to_string();
    for (text, expected) in
        [("{}", "library failed"), ("[", "library failed"), (unknown.as_str(), "WordLevel")]
    {
        let sources = Sources {
            tokenizer: text.as_bytes(),
            tokenizer_config: &Value::Null,
            configs: &[],
            vocabulary: 8,
        };
        let error = TextTokenizer::from_json(&sources).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
