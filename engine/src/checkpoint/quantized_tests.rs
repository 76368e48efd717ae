//! Small models packed here as AutoAWQ, AutoGPTQ and bitsandbytes pack theirs, against the same values in f32: on the processor
//! and, where this build has it, on the stand-in card.
//!
//! The packing is written from the layouts that `quantized` names, over values that are drawn, and shares no code with
//! what reads it.

use super::super::Checkpoint;
use super::*;
use crate::model::{Model, ModelShape};
use atlas_engine_core::backend::{Backend, KvType};
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::MaxShape;
use atlas_engine_core::{SequenceId, StepPlan};
use atlas_kernels::CpuBackend;
use serde_json::{Map, json};
use std::path::Path;

const HIDDEN: usize = 256;
const FEED: usize = 384;
const KV: usize = 128;
const VOCABULARY: usize = 40;
/// Inputs a scale of AWQ, elements a scale of NF4, and scales a scale of scales.
const GROUP: usize = 128;
const BLOCK: usize = 64;
const NESTED: usize = 256;

/// Draws that are the same every time.
struct Draws(u64);

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
struct Writer {
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

/// Writes one matrix quantized, and gives its values.
type Pack = fn(&mut Writer, &mut Draws, &str, usize, usize) -> Vec<f32>;

/// A model's folder, quantized, and another with the same values in f32.
fn folders(pack: Pack, quantization: &Value) -> [tempfile::TempDir; 2] {
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
            let stem = format!("model.layers.{layer}.{part}");
            let values = pack(&mut packed, &mut draws, &stem, rows, columns);
            plain.floats(&format!("{stem}.weight"), &[rows, columns], &values);
        }
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    packed.finish(folders[0].path(), quantization);
    plain.finish(folders[1].path(), &Value::Null);
    folders
}

/// AutoAWQ's `WQLinear_GEMM.from_linear`: `intweight` is `[in, out]`, and eight outputs of a row make a word.
fn pack_awq(out: &mut Writer, draws: &mut Draws, stem: &str, rows: usize, columns: usize) -> Vec<f32> {
    const ORDER_MAP: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let groups = columns / GROUP;
    let intweight: Vec<u32> = (0..columns * rows).map(|_| draws.bits() % 16).collect();
    let zeros: Vec<u32> = (0..groups * rows).map(|_| draws.bits() % 16).collect();
    // Scales that f16 holds: small multiples of 2^-10.
    let steps: Vec<u32> = (0..groups * rows).map(|_| 1 + draws.bits() % 31).collect();
    let pack = |table: &[u32]| -> Vec<u32> {
        let words =
            table.chunks(8).map(|eight| (0..8).fold(0, |word, i| word | eight[ORDER_MAP[i]] << (i * 4)));
        words.collect()
    };
    out.words(&format!("{stem}.qweight"), &[columns, rows / 8], &pack(&intweight));
    out.words(&format!("{stem}.qzeros"), &[groups, rows / 8], &pack(&zeros));
    out.add(&format!("{stem}.scales"), "F16", &[groups, rows], steps.iter().flat_map(|step| half(*step)));
    let value = |row: usize, column: usize| {
        let at = column / GROUP * rows + row;
        (intweight[column * rows + row] as f32 - zeros[at] as f32) * steps[at] as f32 / 1024.0
    };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(r, c)| value(r, c))
        .collect()
}

/// bitsandbytes' `quantize_4bit` with `compress_statistics`, as `QuantState.as_dict(packed=True)` names the parts.
fn pack_nf4(out: &mut Writer, draws: &mut Draws, stem: &str, rows: usize, columns: usize) -> Vec<f32> {
    nf4_parts(out, draws, stem, [rows, columns], true)
}

fn pack_nf4_flat(out: &mut Writer, draws: &mut Draws, stem: &str, rows: usize, columns: usize) -> Vec<f32> {
    nf4_parts(out, draws, stem, [rows, columns], false)
}

fn nf4_parts(out: &mut Writer, draws: &mut Draws, stem: &str, shape: [usize; 2], nested: bool) -> Vec<f32> {
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
    let name = format!("{stem}.weight");
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
fn pack_gptq(out: &mut Writer, draws: &mut Draws, stem: &str, rows: usize, columns: usize) -> Vec<f32> {
    gptq_parts(out, draws, stem, [rows, columns], None)
}

/// The second version of the format, with the zero point of symmetric quantization, and a bias of zeros as AutoGPTQ
/// wrote them.
fn pack_gptq_symmetric(
    out: &mut Writer,
    draws: &mut Draws,
    stem: &str,
    rows: usize,
    columns: usize,
) -> Vec<f32> {
    if stem.ends_with("_proj") && !stem.contains("self_attn.") {
        out.add(&format!("{stem}.bias"), "F16", &[rows], vec![0; 2 * rows]);
    }
    gptq_parts(out, draws, stem, [rows, columns], Some(8))
}

fn gptq_parts(
    out: &mut Writer,
    draws: &mut Draws,
    stem: &str,
    [rows, columns]: [usize; 2],
    zero: Option<u32>,
) -> Vec<f32> {
    let groups = columns / GROUP;
    let codes: Vec<u32> = (0..columns * rows).map(|_| draws.bits() % 16).collect();
    // A zero point of 16 is stored as 15.
    let zeros: Vec<u32> = (0..groups * rows).map(|_| zero.unwrap_or(1 + draws.bits() % 16)).collect();
    let steps: Vec<u32> = (0..groups * rows).map(|_| 1 + draws.bits() % 31).collect();
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
    out.add(&format!("{stem}.scales"), "F16", &[groups, rows], steps.iter().flat_map(|step| half(*step)));
    let order: Vec<u32> = (0..columns).map(|column| (column / GROUP) as u32).collect();
    out.words(&format!("{stem}.g_idx"), &[columns], &order);
    let value = |row: usize, column: usize| {
        let at = column / GROUP * rows + row;
        (codes[column * rows + row] as f32 - zeros[at] as f32) * steps[at] as f32 / 1024.0
    };
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    places.map(|(row, column)| value(row, column)).collect()
}

/// `step / 1024` as f16.
fn half(step: u32) -> [u8; 2] {
    let exponent = 31 - step.leading_zeros();
    let fraction = (step << (10 - exponent)) & 0x3ff;
    (((exponent + 5) << 10 | fraction) as u16).to_le_bytes()
}

fn gptq_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": false,
        "static_groups": false, "true_sequential": true})
}

fn gptq_v2_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
        "checkpoint_format": "gptq_v2"})
}

fn awq_config() -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"})
}

fn nf4_config() -> Value {
    json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
        "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true})
}

/// Logits after a prompt, and after one more token.
fn logits(checkpoint: &Checkpoint, device: Box<dyn Backend>, kv_type: KvType) -> Vec<f32> {
    let max = MaxShape { rows: 32, sequences: 1, logit_rows: 1, hidden_rows: 1, blocks_per_sequence: 2 };
    let shape = ModelShape { kv_type, blocks: 2, max };
    let mut model = Model::load(&checkpoint.config, &checkpoint.tensors, device, &shape).unwrap();
    let mut step = |start: usize, tokens: &[u32]| {
        let chunk = Chunk {
            sequence: SequenceId(1),
            start,
            tokens: tokens.to_vec(),
            drafted: 0,
            logit_rows: 1,
            prompt_rows: 0,
            hidden_rows: 0,
            blocks: vec![0, 1],
        };
        model.run(&StepPlan { copies: Vec::new(), chunks: vec![chunk] }).unwrap().to_vec()
    };
    let prompt: Vec<u32> = (0..20).map(|at| at * 7 % VOCABULARY as u32).collect();
    [step(0, &prompt), step(20, &[3])].concat()
}

fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    (difference / squares(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}

/// What the matrices become, how they are written, and what `config.json` says of them.
type Case = (&'static str, Pack, fn() -> Value);

const CASES: [Case; 5] = [
    ("AWQ4", pack_awq, awq_config),
    ("AWQ4", pack_gptq, gptq_config),
    ("AWQ4", pack_gptq_symmetric, gptq_v2_config),
    ("NF4", pack_nf4, nf4_config),
    ("NF4", pack_nf4_flat, nf4_config),
];

#[test]
fn packed_weights_compute_what_their_values_do() {
    for (kind, pack, config) in CASES {
        let folders = folders(pack, &config());
        let [packed, plain] = folders.each_ref().map(|folder| Checkpoint::open(folder.path()).unwrap());
        let kinds: Vec<String> =
            packed.tensors.iter().map(|(_, tensor)| tensor.tensor_type.to_string()).collect();
        assert_eq!(kinds.iter().filter(|found| *found == kind).count(), 14, "{kinds:?}");
        let exact = || Box::new(CpuBackend::exact(2).unwrap());
        let [found, expected] = [&packed, &plain].map(|model| logits(model, exact(), KvType::F32));
        let error = relative_error(&found, &expected);
        assert!(error < 1e-5, "{kind}: {error}");
        // As it serves, too.
        let served = logits(&packed, Box::new(CpuBackend::new(2).unwrap()), KvType::F16);
        let error = relative_error(&served, &expected);
        assert!(error < 0.01, "{kind}: {error}");
    }
}

#[cfg(feature = "hip")]
#[test]
fn packed_weights_compute_the_same_on_the_card() {
    use crate::model::hip_tests::support;
    use atlas_kernels::hip::{BUILT, HipBackend, Options};
    let exe = std::env::current_exe().unwrap();
    let folder = exe.ancestors().nth(3).unwrap().join("tmp");
    let library = support::standin(BUILT.0, &Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"), &folder);
    let root = support::root(110_000, support::VRAM_BYTES);
    for (kind, pack, config) in CASES {
        let folders = folders(pack, &config());
        let packed = Checkpoint::open(folders[0].path()).unwrap();
        let [exact, rounded] = [CpuBackend::exact(2).unwrap(), CpuBackend::rounded(2).unwrap()]
            .map(|device| logits(&packed, Box::new(device), KvType::F16));
        let options = Options {
            root: root.path().to_owned(),
            library: Some(library.to_str().unwrap().to_owned()),
            arena_bytes: Some(64 << 20),
            ..Options::new()
        };
        let found = logits(&packed, Box::new(HipBackend::open(&options).unwrap()), KvType::F16);
        // Two roundings of activations to int8 are as far from f32 as one another, and no nearer to each other.
        let [of_card, of_rounding] = [&found, &rounded].map(|found| relative_error(found, &exact));
        println!("{kind}: the card is {of_card:.5} from f32, rounded activations alone {of_rounding:.5}");
        // Weights of noise make up to a tenth of it; a nibble in the wrong place would make 1.
        assert!(of_rounding < 0.2, "{kind}: {of_rounding}");
        assert!(of_card < 1.5 * of_rounding + 0.005, "{kind}: {of_card}, rounding alone {of_rounding}");
    }
}

#[test]
fn what_would_be_unpacked_wrongly_is_refused() {
    let change = |config: fn() -> Value, key: &str, value: Value| {
        let mut json = config();
        json.as_object_mut().unwrap().insert(key.into(), value);
        Method::read(&json!({"quantization_config": json})).unwrap_err().to_string()
    };
    for (message, expected) in [
        (change(awq_config, "bits", json!(8)), "AWQ with 4 bits"),
        (change(awq_config, "version", json!("GEMV")), "gemm layout"),
        (change(awq_config, "group_size", json!(64)), "groups of 128"),
        (change(awq_config, "zero_point", json!(false)), "zero points"),
        (change(awq_config, "quant_method", json!("hqq")), "use a GGUF file"),
        (change(gptq_config, "bits", json!(8)), "GPTQ with 4 bits"),
        (change(gptq_config, "desc_act", json!(true)), "quantization_config.desc_act\" to true"),
        (change(gptq_config, "group_size", json!(32)), "groups of 128"),
        (change(gptq_config, "checkpoint_format", json!("marlin")), "gptq and gptq_v2 are built"),
        (change(nf4_config, "bnb_4bit_quant_type", json!("fp4")), "NF4 is built"),
        (change(nf4_config, "load_in_4bit", json!(false)), "NF4 is built"),
    ] {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
    let read = |json: Value| Nf4State::read(json.to_string().as_bytes()).unwrap_err();
    let state = |block: u64, shape: Value| json!({"quant_type": "nf4", "blocksize": block, "shape": shape});
    assert_eq!(read(json!({"shape": [1]})), "its quant_state has no shape of a matrix");
    assert_eq!(read(json!({"shape": [64, 64], "quant_type": "fp4"})), "its quant_state is not of nf4");
    assert_eq!(read(state(32, json!([64, 64]))), "its blocks are no multiples of 64");
    assert_eq!(read(state(64, json!([64, 96]))), "its rows are no multiples of 64");
    assert!(!is_nf4(&[0.0; 16]) && !is_nf4(&[]));
    // A part that is missing, and one of another shape.
    let folders = folders(pack_awq, &awq_config());
    let path = folders[0].path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for (from, to, expected) in [
        ("k_proj.scales", "k_proj.scalez", "k_proj.scales\" is missing"),
        ("down_proj.qweight", "down_proj.qweighs", "no place in a llama model"),
        ("\"F16\"", "\"I16\"", "do not go together"),
    ] {
        let end = whole.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[end..end + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let message = Checkpoint::open(folders[0].path()).err().unwrap().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn groups_that_are_strewn_over_the_inputs_are_refused() {
    let folders = folders(pack_gptq, &gptq_config());
    let path = folders[0].path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = atlas_format::Safetensors::parse_file(&bytes).unwrap();
    let order = header.tensors().iter().find(|tensor| tensor.name.ends_with("down_proj.g_idx")).unwrap();
    bytes[order.bytes.start as usize] = 2;
    std::fs::write(&path, bytes).unwrap();
    let message = Checkpoint::open(folders[0].path()).err().unwrap().to_string();
    assert!(message.contains("down_proj") && message.contains("desc_act"), "{message}");
}
