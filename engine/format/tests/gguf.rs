//! The GGUF parser on files written by hand, on every truncation of them and on random bytes.

#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_format::{Gguf, GgufError, Parsed, TensorType, Value};
use proptest::prelude::*;

/// Writes GGUF headers, also wrong ones.
#[derive(Default)]
struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

impl Writer {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn key(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        Self::text(&mut self.keys, key);
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    fn tensor(mut self, name: &str, shape: &[u64], tensor_type: u32, offset: u64) -> Self {
        Self::text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        self.tensors.extend(shape.iter().flat_map(|dimension| dimension.to_le_bytes()));
        self.tensors.extend(tensor_type.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn build(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(self.keys);
        out.extend(self.tensors);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Writer::text(&mut out, text);
    out
}

fn strings(texts: &[&str]) -> Vec<u8> {
    let mut out = 8_u32.to_le_bytes().to_vec();
    out.extend((texts.len() as u64).to_le_bytes());
    for text in texts {
        Writer::text(&mut out, text);
    }
    out
}

fn sample() -> Writer {
    Writer::default()
        .key("general.architecture", 8, &string("llama"))
        .key("llama.block_count", 4, &7_u32.to_le_bytes())
        .key("llama.rope.freq_base", 6, &10_000_f32.to_le_bytes())
        .key("tokenizer.ggml.add_bos_token", 7, &[1])
        .key("tokenizer.ggml.tokens", 9, &strings(&["a", "bc"]))
        .tensor("token_embd.weight", &[64, 3], 2, 0)
        .tensor("output_norm.weight", &[64], 0, 128)
}

fn complete(bytes: &[u8]) -> Gguf {
    match Gguf::parse(bytes).expect("the header is right") {
        Parsed::Complete(header) => *header,
        Parsed::NeedMore { bytes } => panic!("the header is whole, yet {bytes} bytes are wanted"),
    }
}

#[test]
fn a_header_gives_its_metadata_and_tensor_ranges() {
    let bytes = sample().build();
    let header = complete(&bytes);
    assert_eq!(header.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(header.u32("llama.block_count").unwrap(), Some(7));
    assert_eq!(header.f32("llama.rope.freq_base").unwrap(), Some(10_000.0));
    assert_eq!(header.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(header.strings("tokenizer.ggml.tokens").unwrap(), Some(vec!["a", "bc"]));
    assert_eq!(header.u32("absent").unwrap(), None);
    assert_eq!(header.data_start, (bytes.len() as u64).next_multiple_of(32));
    let embedding = &header.tensors()[0];
    assert_eq!(embedding.byte_range(), Some(header.data_start..header.data_start + 2 * 3 * 18));
    assert_eq!(embedding.element_count(), 192);
}

#[test]
fn a_getter_of_the_wrong_kind_names_key_and_kinds() {
    let header = complete(&sample().build());
    let message = header.u32("general.architecture").unwrap_err().to_string();
    assert_eq!(
        message,
        "metadata key \"general.architecture\" holds a string, expected an integer between 0 and 4294967295"
    );
}

#[test]
fn wrong_headers_are_refused_with_what_is_wrong() {
    let alignment = |value: u32| Writer::default().key("general.alignment", 4, &value.to_le_bytes()).build();
    let mut big_endian = sample().build();
    big_endian[4..8].copy_from_slice(&3_u32.to_be_bytes());
    let mut deep = Vec::new();
    for _ in 0..6 {
        deep.extend(9_u32.to_le_bytes());
        deep.extend(1_u64.to_le_bytes());
    }
    let wraps = 1_u64 << 33;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"PK\x03\x04".to_vec(), "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS"),
        (big_endian, "is big-endian, version 3"),
        (alignment(0), "general.alignment is 0, expected a power of two"),
        (alignment(12), "general.alignment is 12"),
        (alignment(4), "general.alignment is 4"),
        (Writer::default().key("k", 99, &[]).build(), "unknown value type 99"),
        (Writer::default().key("k", 7, &[2]).build(), "boolean 2"),
        (Writer::default().key("k", 9, &deep).build(), "nests arrays deeper"),
        (Writer::default().key("k", 7, &[1]).key("k", 7, &[1]).build(), "metadata key \"k\" stands twice"),
        (Writer::default().key("k", 8, &u64::MAX.to_le_bytes()).build(), "the length of a string at byte"),
        (Writer::default().tensor("t", &[wraps, wraps], 0, 0).build(), "more elements than 64 bits"),
        (Writer::default().tensor("t", &[0, 4], 0, 0).build(), "has no elements"),
        (Writer::default().tensor("t", &[33], 2, 0).build(), "not whole blocks"),
        (Writer::default().tensor("t", &[1, 1, 1, 1, 1], 0, 0).build(), "dimension count"),
        (Writer::default().tensor("t", &[8], 0, 7).build(), "is not aligned"),
        (Writer::default().tensor("t", &[8], 0, u64::MAX - 31).build(), "beyond any file"),
        (
            Writer::default().tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).build(),
            "tensor \"t\" stands twice",
        ),
        (
            Writer::default().tensor("t", &[32], 0, 0).tensor("u", &[8], 0, 64).build(),
            "overlaps another tensor",
        ),
    ];
    for (bytes, expected) in cases {
        let message = Gguf::parse(&bytes).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn a_tensor_of_an_unknown_type_is_kept_and_named() {
    let header = complete(&Writer::default().tensor("t", &[8], 777, 0).tensor("u", &[32], 39, 32).build());
    assert_eq!(header.tensors()[0].tensor_type.to_string(), "type 777");
    assert_eq!(header.tensors()[0].byte_count, None);
    assert_eq!(header.tensors()[1].tensor_type, TensorType::from_number(39));
    assert_eq!(header.tensors()[1].byte_count, Some(17));
}

#[test]
fn every_truncation_asks_for_more_and_the_answer_leads_to_the_end() {
    let bytes = sample().build();
    for length in 0..bytes.len() {
        match Gguf::parse(&bytes[..length]).expect("a prefix is never wrong") {
            Parsed::NeedMore { bytes: wanted } => {
                assert!(wanted > length as u64 && wanted <= bytes.len() as u64, "{wanted} at {length}");
            }
            Parsed::Complete(_) => panic!("{length} bytes are not the whole header"),
        }
    }
}

#[test]
fn a_file_without_its_data_is_truncated() {
    let bytes = sample().build();
    assert!(matches!(Gguf::parse_file(&bytes), Err(GgufError::Truncated { .. })));
    let mut whole = bytes.clone();
    whole.resize(complete(&bytes).data_start as usize + 128 + 256, 0);
    assert_eq!(Gguf::parse_file(&whole).unwrap().tensors().len(), 2);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(bytes);
        let _ = Gguf::parse_file(&file);
    }

    #[test]
    fn a_damaged_header_never_panics(place in 0_usize..300, bytes in prop::collection::vec(any::<u8>(), 1..12)) {
        let mut file = sample().build();
        for (target, byte) in file.iter_mut().skip(place).zip(bytes) {
            *target = byte;
        }
        let _ = Gguf::parse_file(&file);
    }

    #[test]
    fn integers_of_every_width_read_alike(value in 0_u8..=127) {
        for (value_type, bytes) in [
            (0_u32, vec![value]), (1, vec![value]), (2, u16::from(value).to_le_bytes().to_vec()),
            (5, i32::from(value).to_le_bytes().to_vec()), (10, u64::from(value).to_le_bytes().to_vec()),
            (11, i64::from(value).to_le_bytes().to_vec()),
        ] {
            let header = complete(&Writer::default().key("k", value_type, &bytes).build());
            prop_assert_eq!(header.value("k").and_then(Value::as_u32), Some(u32::from(value)));
        }
    }
}
