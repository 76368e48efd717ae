//! Headers of the models in the hardware guide, written as llama.cpp quantizes them, and read back by the parser.

use atlas_format::{Gguf, HeaderWriter, Parsed};
use atlas_operator_core::vram::ModelShape;

/// ggml's numbers of the types that are used here.
pub const F32: u32 = 0;
pub const Q4_K: u32 = 12;
pub const Q5_K: u32 = 13;
pub const Q6_K: u32 = 14;

/// A Llama's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Llama {
    pub layers: u64,
    pub hidden: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub feed_forward: u64,
    pub vocabulary: u64,
    pub context: u32,
}

const fn llama(
    layers: u64,
    hidden: u64,
    heads: (u64, u64),
    feed_forward: u64,
    vocabulary: u64,
    context: u32,
) -> Llama {
    Llama { layers, hidden, heads: heads.0, kv_heads: heads.1, feed_forward, vocabulary, context }
}

/// Numbers from the models' published config.json files.
pub const LLAMA_2_7B: Llama = llama(32, 4096, (32, 32), 11008, 32000, 4096);
pub const MISTRAL_7B: Llama = llama(32, 4096, (32, 8), 14336, 32000, 32768);
pub const LLAMA_31_8B: Llama = llama(32, 4096, (32, 8), 14336, 128_256, 131_072);
pub const CODELLAMA_13B: Llama = llama(40, 5120, (40, 40), 13824, 32016, 16384);
pub const CODELLAMA_34B: Llama = llama(48, 8192, (64, 8), 22016, 32000, 16384);
pub const LLAMA_31_70B: Llama = llama(80, 8192, (64, 8), 28672, 128_256, 131_072);

impl Llama {
    /// The header as `Q4_K_M` has it.
    pub fn q4_k_m(&self) -> HeaderWriter {
        let more = |i: u64| {
            let eighth = self.layers / 8;
            i < eighth || i >= 7 * self.layers / 8 || (i - eighth) % 3 == 2
        };
        let values_of_70b = if self.layers == 80 { Q5_K } else { Q4_K };
        self.write(15, |name, layer| match name {
            "output" => Q6_K,
            "attn_v" => {
                if more(layer) {
                    Q6_K
                } else {
                    values_of_70b
                }
            }
            "ffn_down" if more(layer) => Q6_K,
            _ => Q4_K,
        })
    }

    /// The header with one type for every matrix.
    pub fn uniform(&self, type_number: u32) -> HeaderWriter {
        self.write(u32::MAX, |_, _| type_number)
    }

    fn write(&self, file_type: u32, choose: impl Fn(&str, u64) -> u32) -> HeaderWriter {
        let small = |number: u64| u32::try_from(number).unwrap();
        let kv = self.hidden / self.heads * self.kv_heads;
        let mut header = HeaderWriter::default()
            .text("general.architecture", "llama")
            .number("general.file_type", file_type)
            .number("llama.block_count", small(self.layers))
            .number("llama.context_length", self.context)
            .number("llama.embedding_length", small(self.hidden))
            .number("llama.feed_forward_length", small(self.feed_forward))
            .number("llama.attention.head_count", small(self.heads))
            .number("llama.attention.head_count_kv", small(self.kv_heads))
            .tensor("token_embd.weight", &[self.hidden, self.vocabulary], choose("token_embd", 0));
        for i in 0..self.layers {
            for (name, rows, columns) in [
                ("attn_q", self.hidden, self.hidden),
                ("attn_k", self.hidden, kv),
                ("attn_v", self.hidden, kv),
                ("attn_output", self.hidden, self.hidden),
                ("ffn_gate", self.hidden, self.feed_forward),
                ("ffn_up", self.hidden, self.feed_forward),
                ("ffn_down", self.feed_forward, self.hidden),
            ] {
                header = header.tensor(&format!("blk.{i}.{name}.weight"), &[rows, columns], choose(name, i));
            }
            for name in ["attn_norm", "ffn_norm"] {
                header = header.tensor(&format!("blk.{i}.{name}.weight"), &[self.hidden], F32);
            }
        }
        header.tensor("output_norm.weight", &[self.hidden], F32).tensor(
            "output.weight",
            &[self.hidden, self.vocabulary],
            choose("output", 0),
        )
    }
}

/// The shape behind a header.
pub fn shape(header: &HeaderWriter) -> ModelShape {
    match Gguf::parse(&header.finish()).unwrap() {
        Parsed::Complete(header) => ModelShape::from_gguf(&header).unwrap(),
        Parsed::NeedMore { bytes } => panic!("{bytes} more bytes"),
    }
}
