//! The safetensors parser on headers written by hand, on every truncation of one and on random bytes.

#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_format::{Dtype, Parsed, Safetensors, SafetensorsError, SafetensorsIndex};
use proptest::prelude::*;

fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 7);
    bytes
}

const SAMPLE: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"F32","shape":[3],"data_offsets":[8,20]},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
    "c":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[20,25]},"d":{"dtype":"I32","shape":[],"data_offsets":[25,29]}}   "#;

#[test]
fn a_header_gives_its_tensors_in_the_order_of_their_data() {
    let header = Safetensors::parse_file(&file(SAMPLE, 29)).unwrap();
    assert_eq!(header.data_start, SAMPLE.len() as u64 + 8);
    let tensors: Vec<_> = header
        .tensors()
        .iter()
        .map(|tensor| {
            let begin = tensor.bytes.start - header.data_start;
            (tensor.name.as_str(), tensor.dtype.to_string(), tensor.shape.clone(), begin)
        })
        .collect();
    let expected = [
        ("a", "BF16", vec![2, 2], 0),
        ("b", "F32", vec![3], 8),
        ("c", "F8_E4M3", vec![5], 20),
        ("d", "I32", vec![], 25),
    ];
    assert_eq!(tensors, expected.map(|(name, dtype, shape, begin)| (name, dtype.to_owned(), shape, begin)));
    assert_eq!(header.tensors()[2].dtype, Dtype::Other("F8_E4M3".into()));
}

#[test]
fn wrong_headers_are_refused_with_what_is_wrong() {
    let one = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let wraps = format!("[{}, {}]", 1_u64 << 33, 1_u64 << 33);
    for (header, expected) in [
        ("{]".to_owned(), "not the JSON"),
        ("[]".to_owned(), "not the JSON"),
        (r#"{"w":{"dtype":"F32"}}"#.to_owned(), "missing field `shape`"),
        (one("F32", "[-1]", 0, 4), "not the JSON"),
        (one("F32", "[1]", 0, 8), "tensor \"w\" of F32 has the shape [1] and 8 bytes"),
        (one("F16", &wraps, 0, 8), "do not go together"),
        (one("F32", "[1]", 4, 8), "offsets [4, 8], expected to begin at 0"),
        (one("F32", "[1]", 4, 0), "offsets [4, 0]"),
        (one("X9", "[1]", 0, u64::MAX), "offsets [0, 18446744073709551615]"),
        (
            r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#
                .to_owned(),
            "\"w\" stands twice",
        ),
        (
            r#"{"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#
                .to_owned(),
            "tensor \"w\" has the data offsets [1, 3], expected to begin at 2",
        ),
    ] {
        let message = Safetensors::parse(&file(&header, 0)).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
    let claim = Safetensors::parse(&u64::MAX.to_le_bytes()).unwrap_err().to_string();
    assert!(claim.contains("more than the 100000000"), "{claim}");
}

#[test]
fn every_truncation_asks_for_more_and_a_file_of_another_length_is_damaged() {
    let whole = file(SAMPLE, 29);
    let header = SAMPLE.len() + 8;
    for length in 0..header {
        let wanted = if length < 8 { 8 } else { header as u64 };
        assert_eq!(Safetensors::parse(&whole[..length]), Ok(Parsed::NeedMore { bytes: wanted }));
    }
    for length in [3, header - 1, header, whole.len() - 1] {
        let error = Safetensors::parse_file(&whole[..length]).unwrap_err();
        assert!(matches!(error, SafetensorsError::Length { .. }), "{error}");
    }
    assert!(matches!(Safetensors::parse_file(&file(SAMPLE, 30)), Err(SafetensorsError::Length { .. })));
}

#[test]
fn an_index_names_files_beside_it_alone() {
    let text = br#"{"metadata":{"total_size":1e3},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#;
    let index = SafetensorsIndex::parse(text).unwrap();
    assert_eq!(index.total_bytes, Some(1000));
    assert_eq!(index.files.iter().collect::<Vec<_>>(), ["m-1.safetensors", "m-2.safetensors"]);
    for (file, expected) in [
        ("../m.safetensors", "expected the name of a file beside it"),
        ("/etc/m.safetensors", "expected the name of a file beside it"),
        ("m.bin", "expected the name of a file beside it"),
        ("..safetensors", "expected the name of a file beside it"),
    ] {
        let text = format!(r#"{{"weight_map":{{"a":"{file}"}}}}"#);
        let message = SafetensorsIndex::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains(file), "{message}");
    }
    assert!(SafetensorsIndex::parse(b"{}").is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(length in 0_u64..300, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(bytes);
        let _ = Safetensors::parse_file(&file);
        let _ = SafetensorsIndex::parse(&file);
    }

    /// A parsed header's tensors lie inside the file and do not overlap, whatever was damaged.
    #[test]
    fn a_damaged_header_never_panics(place in 0_usize..400, bytes in prop::collection::vec(any::<u8>(), 1..6)) {
        let mut file = file(SAMPLE, 29);
        for (target, byte) in file.iter_mut().skip(place).zip(bytes) {
            *target = byte;
        }
        if let Ok(header) = Safetensors::parse_file(&file) {
            let mut end = header.data_start;
            for tensor in header.tensors() {
                prop_assert_eq!(tensor.bytes.start, end);
                end = tensor.bytes.end;
            }
            prop_assert!(end <= file.len() as u64);
        }
    }

    #[test]
    fn random_numbers_in_a_header_never_panic(shape in prop::collection::vec(any::<u64>(), 0..5), begin: u64, end: u64) {
        for dtype in ["F32", "BF16", "U8", "strange"] {
            let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}}}"#);
            let _ = Safetensors::parse_file(&file(&header, 64));
        }
    }
}
