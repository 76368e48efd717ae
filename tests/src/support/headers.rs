//! The header of a model that is made to be hard to fit, for suites that plan memory.

use atlas_format::HeaderWriter;

/// 3,600 MiB of weights and, with keys of its own for each head, 512 KiB of KV cache a token.
///
/// So 24 GB hold four sequences of 4,096 tokens, and 8 GB not even one.
pub fn wide_header() -> Vec<u8> {
    header_of_width(51200)
}

/// The same with a tenth of the weights, which 8 GB hold with two sequences.
pub fn narrow_header() -> Vec<u8> {
    header_of_width(5120)
}

/// The same of any width; its data are 73,728 bytes for each.
pub fn header_of_width(width: u64) -> Vec<u8> {
    let mut header = HeaderWriter::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 32)
        .number("llama.context_length", 16384)
        .number("llama.embedding_length", 4096)
        .number("llama.feed_forward_length", 11008)
        .number("llama.attention.head_count", 32);
    for layer in 0..32 {
        header = header.tensor(&format!("blk.{layer}.ffn_up.weight"), &[4096, width], 12);
    }
    header.finish()
}
