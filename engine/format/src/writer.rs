//! Writes GGUF headers: what a model of given numbers would have, without its data.
//!
//! For tests of everything that reads headers, and for planning a model that exists only as numbers.
//! It checks nothing: a wrong header is what some tests need.

/// A header in the making. Tensors are placed one after another, aligned to 32 bytes.
#[derive(Debug, Clone, Default)]
pub struct HeaderWriter {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    next_offset: u64,
}

impl HeaderWriter {
    /// Adds a metadata key with a value of this GGUF type number, as raw bytes.
    #[must_use]
    pub fn raw(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        write_text(&mut self.keys, key);
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    /// Adds a 32-bit unsigned integer.
    #[must_use]
    pub fn number(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Adds an array of 32-bit unsigned integers.
    #[must_use]
    pub fn numbers(self, key: &str, values: &[u32]) -> Self {
        let mut raw = 4_u32.to_le_bytes().to_vec();
        raw.extend((values.len() as u64).to_le_bytes());
        raw.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, 9, &raw)
    }

    /// Adds a string.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        let mut raw = Vec::new();
        write_text(&mut raw, value);
        self.raw(key, 8, &raw)
    }

    /// Adds an array of strings.
    #[must_use]
    pub fn texts<'a>(self, key: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut texts = Vec::new();
        let mut count = 0_u64;
        for value in values {
            write_text(&mut texts, value);
            count += 1;
        }
        let mut raw = 8_u32.to_le_bytes().to_vec();
        raw.extend(count.to_le_bytes());
        raw.extend(texts);
        self.raw(key, 9, &raw)
    }

    /// Adds a tensor of this ggml type number after the ones before it; dimensions are given fastest first.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[u64], type_number: u32) -> Self {
        write_text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        self.tensors.extend(shape.iter().flat_map(|dimension| dimension.to_le_bytes()));
        self.tensors.extend(type_number.to_le_bytes());
        self.tensors.extend(self.next_offset.to_le_bytes());
        self.tensor_count += 1;
        let elements = shape.iter().fold(1_u64, |product, dimension| product.saturating_mul(*dimension));
        let (block, bytes) = crate::TensorType::from_number(type_number).block().unwrap_or((1, 4));
        let size = (elements / block).saturating_mul(bytes);
        self.next_offset = self.next_offset.saturating_add(size).next_multiple_of(32);
        self
    }

    /// The header's bytes, version 3, padded to where the data would begin.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }

    /// Bytes of the data that the header speaks of, padding included.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.next_offset
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gguf, Parsed};

    #[test]
    fn what_is_written_reads_back() {
        let writer = HeaderWriter::default()
            .text("general.architecture", "llama")
            .number("llama.block_count", 2)
            .numbers("llama.attention.head_count_kv", &[4, 2])
            .texts("tokenizer.ggml.tokens", ["a", "bc"])
            .tensor("token_embd.weight", &[256, 3], 12)
            .tensor("output_norm.weight", &[5], 0);
        let Ok(Parsed::Complete(header)) = Gguf::parse(&writer.finish()) else {
            panic!("the header is complete")
        };
        assert_eq!(header.require_u32("llama.block_count"), Ok(2));
        assert_eq!(header.u32s("llama.attention.head_count_kv"), Ok(Some(vec![4, 2])));
        assert_eq!(header.strings("tokenizer.ggml.tokens"), Ok(Some(vec!["a", "bc"])));
        let ranges: Vec<_> = header.tensors().iter().filter_map(crate::TensorInfo::byte_range).collect();
        assert_eq!(ranges[0].end - ranges[0].start, 3 * 144);
        assert_eq!((ranges[1].start - header.data_start, writer.data_bytes()), (448, 480));
    }
}
