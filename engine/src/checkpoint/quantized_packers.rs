//! Writers of small quantized models for tests: matrices packed as AutoAWQ, AutoGPTQ and bitsandbytes pack theirs, and the
//! same values in f32.
//!
//! The packing is written from the layouts that `quantized` names, over values that are drawn, and shares no code with
//! what reads it.

use serde_json::{Map, Value, json};
use std::path::Path;

const HIDDEN: usize = 256;
const FEED: usize = 384;
const KV: usize = 128;
/// Tokens of a model.
pub const VOCABULARY: usize = 40;
/// Elements a scale of NF4, and scales a scale of scales.
const BLOCK: usize = 64;
const NESTED: usize = 256;

/// Draws that are the same every time.
pub struct Draws(u64);

impl Draws {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        self.bits() as f32 / (1 << 30) as f32 - 1.0
    }
}

/// A safetensors file in the making.
#[derive(Default)]
pub struct Writer {
    entries: Map<String, Value>,
    data: Vec<u8>,
}

impl Writer {
    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: impl IntoIterator<Item = u8>) {
        let begin = self.data.len();
        self.data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, self.data.len()]});
        self.entries.insert(name.to_owned(), entry);
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.add(name, "F32", shape, values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn words(&mut self, name: &str, shape: &[usize], words: &[u32]) {
        self.add(name, "I32", shape, words.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn finish(self, folder: &Path, quantization: &Value) {
        let config = json!({"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FEED,
            "num_hidden_layers": 2, "num_attention_heads": HIDDEN / 64, "num_key_value_heads": KV / 64,
            "vocab_size": VOCABULARY, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false, "quantization_config": quantization});
        let text = Value::Object(self.entries).to_string();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(self.data);
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    }
}

/// A matrix to be packed.
pub struct Matrix {
    stem: String,
    rows: usize,
    columns: usize,
    /// Inputs a scale, where a method has groups.
    group: usize,
}

/// Writes one matrix quantized, and gives its values.
pub type Pack = fn(&mut Writer, &mut Draws, &Matrix) -> Vec<f32>;

/// A model's folder, quantized, and another with the same values in f32.
pub fn folders(pack: Pack, quantization: &Value) -> [tempfile::TempDir; 2] {
    let group = quantization.get("group_size").and_then(Value::as_u64).map_or(0, |group| group as usize);
    let (mut packed, mut plain, mut draws) = (Writer::default(), Writer::default(), Draws(7));
    let mut both = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        let near = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..count).map(|_| near + 0.3 * draws.float()).collect();
        packed.floats(name, shape, &values);
        plain.floats(name, shape, &values);
    };
    both("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    both("lm_head.weight", &[VOCABULARY, HIDDEN]);
    both("model.norm.weight", &[HIDDEN]);
    for layer in 0..2 {
        both(&format!("model.layers.{layer}.input_layernorm.weight"), &[HIDDEN]);
        both(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
    }
    for layer in 0..2 {
        for (part, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KV, HIDDEN),
            ("self_attn.v_proj", KV, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FEED, HIDDEN),
            ("mlp.up_proj", FEED, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED),
        ] {
            let matrix = Matrix { stem: format!("model.layers.{layer}.{part}"), rows, columns, group };
            let values = pack(&mut packed, &mut draws, &matrix);
            plain.floats(&format!("{}.weight", matrix.stem), &[rows, columns], &values);
        }
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    packed.finish(folders[0].path(), quantization);
    plain.finish(folders[1].path(), &Value::Null);
    folders
}

/// Steps of scales and what they are divided by, so that f16 holds them: few bits for groups of 128, whose zero points
/// are kept, and all 11 for the others.
fn draw_steps(draws: &mut Draws, count: usize, group: usize) -> (Vec<u32>, u32) {
    match group.is_multiple_of(128) {
        true => ((0..count).map(|_| 1 + draws.bits() % 31).collect(), 10),
        false => ((0..count).map(|_| 1024 + draws.bits() % 1024).collect(), 16),
    }
}

/// `step / 2^shift` as f16.
fn half(step: u32, shift: u32) -> [u8; 2] {
    let exponent = 31 - step.leading_zeros();
    let fraction = (step << (10 - exponent)) & 0x3ff;
    (((exponent + 15 - shift) << 10 | fraction) as u16).to_le_bytes()
}

/// A whole number as near as f16's 11 bits come to it, ties to even.
fn to_eleven_bits(number: u32) -> u32 {
    let shift = (32 - number.leading_zeros()).saturating_sub(11);
    let half = (1 << shift) >> 1;
    (number + half - u32::from(half > 0 && number >> shift & 1 == 0)) >> shift << shift
}

/// What the codes mean. In blocks of 32, scale times zero point is an f16, which is near to the product.
fn values(
    matrix: &Matrix,
    code: impl Fn(usize, usize) -> u32,
    zeros: &[u32],
    (steps, shift): (&[u32], u32),
) -> Vec<f32> {
    let Matrix { rows, columns, group, .. } = *matrix;
    let value = |row: usize, column: usize| {
        let at = column / group * rows + row;
        let (step, product) = (steps[at], zeros[at] * steps[at]);
        let offset = if group.is_multiple_of(128) { product } else { to_eleven_bits(product) };
        assert!(offset.abs_diff(product) * 128 <= step, "{offset} for {product}");
        (code(row, column) as f32 * step as f32 - offset as f32) / (1 << shift) as f32
    };
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    places.map(|(row, column)| value(row, column)).collect()
}

/// AutoAWQ's `WQLinear_GEMM.from_linear`: `intweight` is `[in, out]`, and eight outputs of a row make a word.
pub fn pack_awq(out: &mut Writer, draws: &mut Draws, matrix: &Matrix) -> Vec<f32> {
    const ORDER_MAP: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let Matrix { stem, rows, columns, group } = matrix;
    let (rows, columns, groups) = (*rows, *columns, columns / group);
    let intweight: Vec<u32> = (0..columns * rows).map(|_| draws.bits() % 16).collect();
    let zeros: Vec<u32> = (0..groups * rows).map(|_| draws.bits() % 16).collect();
    let (steps, shift) = draw_steps(draws, groups * rows, *group);
    let pack = |table: &[u32]| -> Vec<u32> {
        let words =
            table.chunks(8).map(|eight| (0..8).fold(0, |word, i| word | eight[ORDER_MAP[i]] << (i * 4)));
        words.collect()
    };
    out.words(&format!("{stem}.qweight"), &[columns, rows / 8], &pack(&intweight));
    out.words(&format!("{stem}.qzeros"), &[groups, rows / 8], &pack(&zeros));
    let scales = steps.iter().flat_map(|step| half(*step, shift));
    out.add(&format!("{stem}.scales"), "F16", &[groups, rows], scales);
    values(matrix, |row, column| intweight[column * rows + row], &zeros, (&steps, shift))
}

/// bitsandbytes' `quantize_4bit` with `compress_statistics`, as `QuantState.as_dict(packed=True)` names the parts.
pub fn pack_nf4(out: &mut Writer, draws: &mut Draws, matrix: &Matrix) -> Vec<f32> {
    nf4_parts(out, draws, matrix, true)
}

/// The same with scales in f32.
pub fn pack_nf4_flat(out: &mut Writer, draws: &mut Draws, matrix: &Matrix) -> Vec<f32> {
    nf4_parts(out, draws, matrix, false)
}

fn nf4_parts(out: &mut Writer, draws: &mut Draws, matrix: &Matrix, nested: bool) -> Vec<f32> {
    const CODE: [f32; 16] = [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.3949175,
        -0.28444138,
        -0.18477343,
        -0.091050036,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0,
    ];
    let name = format!("{}.weight", matrix.stem);
    let shape = [matrix.rows, matrix.columns];
    let count = shape[0] * shape[1];
    let (blocks, offset) = (count / BLOCK, 0.04_f32);
    let codes: Vec<usize> = (0..count).map(|_| draws.bits() as usize % 16).collect();
    let bytes: Vec<u8> = codes.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    out.add(&name, "U8", &[count / 2, 1], bytes);
    out.floats(&format!("{name}.quant_map"), &[16], &CODE);
    let mut state = json!({"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": shape});
    let scales: Vec<f32> = if nested {
        let map: Vec<f32> = (0..256).map(|code| (code as f32 - 128.0) / 128.0).collect();
        let outer: Vec<f32> = (0..blocks.div_ceil(NESTED)).map(|_| 0.03 + 0.005 * draws.float()).collect();
        let inner: Vec<u8> = (0..blocks).map(|_| draws.bits() as u8).collect();
        out.add(&format!("{name}.absmax"), "U8", &[blocks], inner.clone());
        out.floats(&format!("{name}.nested_absmax"), &[outer.len()], &outer);
        out.floats(&format!("{name}.nested_quant_map"), &[256], &map);
        let more = json!({"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": offset});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        inner
            .iter()
            .enumerate()
            .map(|(at, code)| map[usize::from(*code)] * outer[at / NESTED] + offset)
            .collect()
    } else {
        let scales: Vec<f32> = (0..blocks).map(|_| 0.05 + 0.02 * draws.float()).collect();
        out.floats(&format!("{name}.absmax"), &[blocks], &scales);
        scales
    };
    let text = state.to_string();
    out.add(&format!("{name}.quant_state.bitsandbytes__nf4"), "U8", &[text.len()], text.into_bytes());
    codes.iter().enumerate().map(|(at, code)| CODE[*code] * scales[at / BLOCK]).collect()
}

/// AutoGPTQ's `QuantLinear.pack`: eight inputs of an output make a word, in order, and zero points are stored less one.
pub fn pack_gptq(out: &mut Writer, draws: &mut Draws, matrix: &Matrix) -> Vec<f32> {
    gptq_parts(out, draws, matrix, None)
}

/// The second version of the format, with the zero point of symmetric quantization, and a bias of zeros as AutoGPTQ
/// wrote them.
pub fn pack_gptq_symmetric(out: &mut Writer, draws: &mut Draws, matrix: &Matrix) -> Vec<f32> {
    let Matrix { stem, rows, .. } = matrix;
    if stem.ends_with("_proj") && !stem.contains("self_attn.") {
        out.add(&format!("{stem}.bias"), "F16", &[*rows], vec![0; 2 * rows]);
    }
    gptq_parts(out, draws, matrix, Some(8))
}

fn gptq_parts(out: &mut Writer, draws: &mut Draws, matrix: &Matrix, zero: Option<u32>) -> Vec<f32> {
    let Matrix { stem, rows, columns, group } = matrix;
    let (rows, columns, groups) = (*rows, *columns, columns / group);
    let codes: Vec<u32> = (0..columns * rows).map(|_| draws.bits() % 16).collect();
    // A zero point of 16 is stored as 15.
    let zeros: Vec<u32> = (0..groups * rows).map(|_| zero.unwrap_or(1 + draws.bits() % 16)).collect();
    let (steps, shift) = draw_steps(draws, groups * rows, *group);
    let mut words = vec![0_u32; columns / 8 * rows];
    for column in 0..columns {
        for row in 0..rows {
            words[column / 8 * rows + row] |= codes[column * rows + row] << (column % 8 * 4);
        }
    }
    out.words(&format!("{stem}.qweight"), &[columns / 8, rows], &words);
    let less = u32::from(zero.is_none());
    let packed = zeros.chunks(8).map(|eight| (0..8).fold(0, |word, i| word | (eight[i] - less) << (i * 4)));
    out.words(&format!("{stem}.qzeros"), &[groups, rows / 8], &packed.collect::<Vec<_>>());
    let scales = steps.iter().flat_map(|step| half(*step, shift));
    out.add(&format!("{stem}.scales"), "F16", &[groups, rows], scales);
    let order: Vec<u32> = (0..columns).map(|column| (column / group) as u32).collect();
    out.words(&format!("{stem}.g_idx"), &[columns], &order);
    values(matrix, |row, column| codes[column * rows + row], &zeros, (&steps, shift))
}
