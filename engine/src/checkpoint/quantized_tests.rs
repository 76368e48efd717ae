//! Small quantized models against the same values in f32: on the processor and, where this build has it, on the stand-in
//! card. What packs them is in `packers`.

#[path = "quantized_packers.rs"]
mod packers;

use super::super::Checkpoint;
use super::*;
use crate::model::{Model, ModelShape};
use atlas_engine_core::backend::{Backend, KvType};
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::MaxShape;
use atlas_engine_core::{SequenceId, StepPlan};
use atlas_kernels::CpuBackend;
use packers::{Pack, VOCABULARY, folders, pack_awq, pack_gptq, pack_gptq_symmetric, pack_nf4, pack_nf4_flat};
use serde_json::json;
#[cfg(feature = "hip")]
use std::path::Path;

fn gptq_config(group: usize) -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": false, "sym": false,
        "static_groups": false, "true_sequential": true})
}

fn gptq_v2_config(group: usize) -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": false, "sym": true,
        "checkpoint_format": "gptq_v2"})
}

fn awq_config(group: usize) -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm"})
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

/// A way to write matrices.
struct Case {
    /// What they become.
    kind: &'static str,
    pack: Pack,
    /// What `config.json` says of them.
    config: Value,
    /// How far the logits may be from those of the same values in f32, of their length.
    tolerance: f64,
}

fn cases() -> Vec<Case> {
    let case = |kind, pack: Pack, config, tolerance| Case { kind, pack, config, tolerance };
    vec![
        case("AWQ4", pack_awq, awq_config(128), 1e-5),
        case("AWQ4", pack_gptq, gptq_config(128), 1e-5),
        case("AWQ4", pack_gptq_symmetric, gptq_v2_config(128), 1e-5),
        case("Q4_1", pack_awq, awq_config(64), 1e-5),
        case("Q4_1", pack_awq, awq_config(32), 1e-5),
        case("Q4_1", pack_gptq, gptq_config(64), 1e-5),
        case("Q4_1", pack_gptq, gptq_config(32), 1e-5),
        case("Q4_1", pack_gptq_symmetric, gptq_v2_config(32), 1e-5),
        case("NF4", pack_nf4, nf4_config(), 1e-5),
        case("NF4", pack_nf4_flat, nf4_config(), 1e-5),
    ]
}

#[test]
fn packed_weights_compute_what_their_values_do() {
    for Case { kind, pack, config, tolerance } in cases() {
        let folders = folders(pack, &config);
        let [packed, plain] = folders.each_ref().map(|folder| Checkpoint::open(folder.path()).unwrap());
        let kinds: Vec<String> =
            packed.tensors.iter().map(|(_, tensor)| tensor.tensor_type.to_string()).collect();
        assert_eq!(kinds.iter().filter(|found| *found == kind).count(), 14, "{kinds:?}");
        let exact = || Box::new(CpuBackend::exact(2).unwrap());
        let [found, expected] = [&packed, &plain].map(|model| logits(model, exact(), KvType::F32));
        let error = relative_error(&found, &expected);
        println!("{kind} {config}: {error:.2e}");
        assert!(error < tolerance, "{kind} {config}: {error}");
        // As it serves, too.
        let served = logits(&packed, Box::new(CpuBackend::new(2).unwrap()), KvType::F16);
        let error = relative_error(&served, &expected);
        // Q4_1 is multiplied by activations that are rounded to int8, the others by these as they are.
        let rounding = match kind {
            "Q4_1" => {
                let rounded = logits(&packed, Box::new(CpuBackend::rounded(2).unwrap()), KvType::F16);
                1.5 * relative_error(&rounded, &expected) + 0.005
            }
            _ => 0.01,
        };
        assert!(rounding < 0.2 && error < rounding, "{kind}: {error}, rounding alone {rounding}");
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
    for Case { kind, pack, config, .. } in cases() {
        let folders = folders(pack, &config);
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
    let change = |mut json: Value, key: &str, value: Value| {
        json.as_object_mut().unwrap().insert(key.into(), value);
        Method::read(&json!({"quantization_config": json})).unwrap_err().to_string()
    };
    for (message, expected) in [
        (change(awq_config(128), "bits", json!(8)), "AWQ with 4 bits"),
        (change(awq_config(128), "version", json!("GEMV")), "gemm layout"),
        (change(awq_config(128), "group_size", json!(16)), "groups of 32"),
        (change(awq_config(128), "zero_point", json!(false)), "zero points"),
        (change(awq_config(128), "quant_method", json!("hqq")), "use a GGUF file"),
        (change(gptq_config(128), "bits", json!(8)), "GPTQ with 4 bits"),
        (change(gptq_config(128), "desc_act", json!(true)), "quantization_config.desc_act\" to true"),
        (change(gptq_config(128), "group_size", json!(48)), "groups of 32"),
        (change(gptq_config(128), "checkpoint_format", json!("marlin")), "gptq and gptq_v2 are built"),
        (change(nf4_config(), "bnb_4bit_quant_type", json!("fp4")), "NF4 is built"),
        (change(nf4_config(), "load_in_4bit", json!(false)), "NF4 is built"),
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
    let folders = folders(pack_awq, &awq_config(128));
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
    let folders = folders(pack_gptq, &gptq_config(64));
    let path = folders[0].path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = atlas_format::Safetensors::parse_file(&bytes).unwrap();
    let order = header.tensors().iter().find(|tensor| tensor.name.ends_with("down_proj.g_idx")).unwrap();
    bytes[order.bytes.start as usize] = 2;
    std::fs::write(&path, bytes).unwrap();
    let message = Checkpoint::open(folders[0].path()).err().unwrap().to_string();
    assert!(message.contains("down_proj") && message.contains("desc_act"), "{message}");
}
