//! Bytes of weights from safetensors: the header of one file, or the index of many.

use std::collections::BTreeMap;

use atlas_format::{Parsed, Safetensors, SafetensorsError, SafetensorsIndex};

/// Bytes of weights by type from the first bytes of a `.safetensors` file, or how many bytes are needed to tell.
///
/// # Errors
///
/// The bytes are wrong, however many follow.
pub fn read_safetensors_header(
    prefix: &[u8],
) -> Result<Result<BTreeMap<String, u64>, u64>, SafetensorsError> {
    let header = match Safetensors::parse(prefix)? {
        Parsed::Complete(header) => header,
        Parsed::NeedMore { bytes } => return Ok(Err(bytes)),
    };
    let mut bytes_by_type = BTreeMap::new();
    for tensor in header.tensors() {
        let total: &mut u64 = bytes_by_type.entry(tensor.dtype.to_string()).or_default();
        *total = total.saturating_add(tensor.bytes.end - tensor.bytes.start);
    }
    Ok(Ok(bytes_by_type))
}

/// Bytes of weights from a `model.safetensors.index.json`.
///
/// # Errors
///
/// It is not the JSON of an index, or does not tell.
pub fn read_index_bytes(text: &[u8]) -> Result<u64, SafetensorsError> {
    SafetensorsIndex::parse(text)?.total_bytes.ok_or(SafetensorsError::NoTotal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_gives_bytes_by_type_or_says_how_much_it_needs() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[1],"data_offsets":[12,14]}}"#;
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend(header.as_bytes());
        let expected: BTreeMap<String, u64> = [("BF16".to_owned(), 10), ("F32".to_owned(), 4)].into();
        assert_eq!(read_safetensors_header(&whole).unwrap(), Ok(expected));
        assert_eq!(read_safetensors_header(&whole[..4]).unwrap(), Err(8));
        assert_eq!(read_safetensors_header(&whole[..20]).unwrap(), Err(whole.len() as u64));
    }

    #[test]
    fn an_index_gives_its_total() {
        let total = |text: &[u8]| read_index_bytes(text).map_err(|error| error.to_string());
        assert_eq!(total(br#"{"metadata":{"total_size":14483464192},"weight_map":{}}"#), Ok(14_483_464_192));
        assert_eq!(total(br#"{"metadata":{"total_size":1e3},"weight_map":{}}"#), Ok(1000));
        assert_eq!(total(br#"{"weight_map":{}}"#), Err("the index has no metadata.total_size".to_owned()));
    }
}
