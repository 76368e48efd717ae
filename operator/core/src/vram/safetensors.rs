//! Bytes of weights from safetensors: the header of one file, or the index of many.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Longest header that is read; the largest published ones have a few megabytes.
const MAX_HEADER: u64 = 64 << 20;

/// Why a header or index is refused.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The length field is beyond anything a file has.
    #[error("the safetensors header claims {found} bytes, more than the {MAX_HEADER} that any file has")]
    TooLong {
        /// The claim.
        found: u64,
    },
    /// The header or index is no JSON.
    #[error("the {what} is not the JSON that safetensors has")]
    Json {
        /// `header` or `index`.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A tensor lacks its offsets, or they run backwards.
    #[error("tensor {name:?} has the data offsets {found}, expected [BEGIN, END]")]
    Offsets {
        /// The tensor.
        name: String,
        /// What stands there.
        found: String,
    },
}

/// Bytes of weights by type from the first bytes of a `.safetensors` file, or how many bytes are needed to tell.
///
/// # Errors
///
/// The bytes are wrong, however many follow.
pub fn read_safetensors_header(
    prefix: &[u8],
) -> Result<Result<BTreeMap<String, u64>, u64>, SafetensorsError> {
    let Some(length) = prefix.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Ok(Err(8));
    };
    if length > MAX_HEADER {
        return Err(SafetensorsError::TooLong { found: length });
    }
    let end = usize::try_from(length + 8).unwrap_or(usize::MAX);
    let Some(text) = prefix.get(8..end) else { return Ok(Err(length + 8)) };
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(text).map_err(|source| SafetensorsError::Json { what: "header", source })?;
    let mut bytes_by_type = BTreeMap::new();
    for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let offset =
            |index: usize| tensor.get("data_offsets").and_then(|o| o.get(index)).and_then(Value::as_u64);
        let bytes = offset(0).zip(offset(1)).and_then(|(begin, end)| end.checked_sub(begin));
        let bytes = bytes.ok_or_else(|| SafetensorsError::Offsets {
            name,
            found: tensor.get("data_offsets").map_or_else(|| "none".to_owned(), ToString::to_string),
        })?;
        let kind = tensor.get("dtype").and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let total: &mut u64 = bytes_by_type.entry(kind).or_default();
        *total = total.saturating_add(bytes);
    }
    Ok(Ok(bytes_by_type))
}

/// Bytes of weights from a `model.safetensors.index.json`.
///
/// # Errors
///
/// It is not the JSON of an index.
pub fn read_index_bytes(text: &[u8]) -> Result<u64, SafetensorsError> {
    #[derive(Deserialize)]
    struct Index {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        // Written as a float by some tools.
        total_size: serde_json::Number,
    }
    let index: Index =
        serde_json::from_slice(text).map_err(|source| SafetensorsError::Json { what: "index", source })?;
    let size = index.metadata.total_size;
    Ok(size.as_u64().or_else(|| size.as_f64().map(|float| float as u64)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn a_header_gives_bytes_by_type_or_says_how_much_it_needs() {
        let whole = file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
                "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[1],"data_offsets":[12,14]}}"#,
        );
        let expected: BTreeMap<String, u64> = [("BF16".to_owned(), 10), ("F32".to_owned(), 4)].into();
        assert_eq!(read_safetensors_header(&whole).unwrap(), Ok(expected));
        assert_eq!(read_safetensors_header(&whole[..4]).unwrap(), Err(8));
        assert_eq!(read_safetensors_header(&whole[..20]).unwrap(), Err(whole.len() as u64));
    }

    #[test]
    fn wrong_headers_are_refused_by_name() {
        let said = |bytes: &[u8]| read_safetensors_header(bytes).unwrap_err().to_string();
        assert!(said(&u64::MAX.to_le_bytes()).contains("more than the"));
        assert!(said(&file("{]")).contains("not the JSON"));
        assert!(said(&file(r#"{"w":{"dtype":"F32","data_offsets":[8,4]}}"#)).contains("\"w\""));
    }

    #[test]
    fn an_index_gives_its_total() {
        assert_eq!(
            read_index_bytes(br#"{"metadata":{"total_size":14483464192},"weight_map":{}}"#).unwrap(),
            14_483_464_192
        );
        assert_eq!(read_index_bytes(br#"{"metadata":{"total_size":1e3}}"#).unwrap(), 1000);
        assert!(read_index_bytes(b"{}").is_err());
    }
}
