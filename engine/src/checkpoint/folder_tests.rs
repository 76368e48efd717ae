//! The real model as a folder of safetensors against its GGUF file, and folders that nobody should serve.

use super::*;
use crate::model::{Model, ModelShape};
use atlas_engine_core::backend::KvType;
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape};
use atlas_engine_core::{SequenceId, StepPlan, TokenId};
use atlas_kernels::CpuBackend;
use candle_core::DType;
use serde_json::json;
use write::Form;

#[path = "../../tests/support/folder.rs"]
mod write;

const TEXT: &str =
    "The capital of France is Paris, and the capital of Japan is Tokyo. The largest city of Brazil";

fn gguf() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    let path = cache.or_else(home).unwrap_or_default().join("models/smollm2-135m-instruct-q4_1.gguf");
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

fn folder(form: &Form) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write::write(&gguf(), folder.path(), form);
    folder
}

/// The model in f32 throughout.
fn exact(checkpoint: &Checkpoint) -> Model {
    let max = MaxShape { rows: 64, sequences: 1, logit_rows: 1, hidden_rows: 1, blocks_per_sequence: 4 };
    let shape = ModelShape { kv_type: KvType::F32, blocks: 4, max };
    let backend = Box::new(CpuBackend::exact(2).unwrap());
    Model::load(&checkpoint.config, &checkpoint.tensors, backend, &shape).unwrap()
}

fn logits(model: &mut Model, start: usize, tokens: &[TokenId]) -> Vec<f32> {
    let blocks = (start + tokens.len()).div_ceil(BLOCK_TOKENS) as u32;
    let chunk = Chunk {
        sequence: SequenceId(1),
        start,
        tokens: tokens.to_vec(),
        drafted: 0,
        logit_rows: 1,
        prompt_rows: 0,
        hidden_rows: 0,
        blocks: (0..blocks).collect(),
    };
    model.run(&StepPlan { copies: Vec::new(), chunks: vec![chunk] }).unwrap().to_vec()
}

fn best(logits: &[f32]) -> TokenId {
    logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap().0 as TokenId
}

/// Dequantized weights in f32 are the GGUF's own values, so what is left is the order of sums within a head, whose
/// elements stand in another order.
#[test]
fn the_real_model_says_as_a_folder_what_it_says_as_a_gguf() {
    let form = Form { rounded: DType::F32, stored: DType::F32, layers: 30, files: 3 };
    let folder = folder(&form);
    let (gguf, split) = (Checkpoint::open(&gguf()).unwrap(), Checkpoint::open(folder.path()).unwrap());
    let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
    let pairing = split.config.pairing;
    assert_eq!(split.config, crate::model::ModelConfig { name, pairing, ..gguf.config.clone() });
    assert_eq!(split.chat_template, gguf.chat_template);
    let [expected, found] = [&gguf, &split].map(|checkpoint| checkpoint.tokenizer().unwrap());
    assert_eq!(found.special_ids(), expected.special_ids());
    assert_eq!(found.end_tokens(), expected.end_tokens());
    for text in [TEXT, "fn main() {\n    let x = 1234;\n}", "<|im_start|>user\nnaïve 👍<|im_end|>"] {
        assert_eq!(found.encode_prompt(text).unwrap(), expected.encode_prompt(text).unwrap());
    }
    let mut tokens = found.encode_prompt(TEXT).unwrap();
    let [mut expected, mut found] = [&gguf, &split].map(exact);
    let mut start = 0;
    for step in 0..24 {
        let [expected, found] =
            [&mut expected, &mut found].map(|model| logits(model, start, &tokens[start..]));
        let apart = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-3, "step {step}: logits are {apart} apart");
        assert_eq!(best(&found), best(&expected), "step {step}");
        start = tokens.len();
        tokens.push(best(&expected));
    }
}

/// Values that a narrow type holds are the same numbers in it and in f32, norms included.
#[test]
fn weights_in_sixteen_bits_are_their_values() {
    for narrow in [DType::F16, DType::BF16] {
        let wide = Form { rounded: narrow, stored: DType::F32, layers: 2, files: 1 };
        let folders = [wide, Form { stored: narrow, ..wide }].map(|form| folder(&form));
        let checkpoints = folders.each_ref().map(|folder| Checkpoint::open(folder.path()).unwrap());
        let tokens = checkpoints[0].tokenizer().unwrap().encode_prompt(TEXT).unwrap();
        assert!(checkpoints[1].tensors.byte_count() * 2 < checkpoints[0].tensors.byte_count() + (1 << 14));
        let [wide, narrow] =
            checkpoints.each_ref().map(|checkpoint| logits(&mut exact(checkpoint), 0, &tokens));
        assert_eq!(wide, narrow);
    }
}

/// Writes a safetensors file of bf16 zeros.
fn zeros(path: &Path, tensors: &[(&str, &[u64], &str)]) {
    let (mut entries, mut offset) = (serde_json::Map::new(), 0);
    for (name, shape, dtype) in tensors {
        let end = offset + shape.iter().product::<u64>() * if *dtype == "I32" { 4 } else { 2 };
        entries
            .insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let text = Value::Object(entries).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + offset as usize, 0);
    std::fs::write(path, bytes).unwrap();
}

fn small_config(tied: bool) -> Value {
    json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 64, "tie_word_embeddings": tied})
}

/// What happens to a whole folder before it is opened.
type Prepare<'a> = &'a dyn Fn(&Path);

#[test]
fn a_folder_that_is_not_whole_is_refused_with_what_is_missing() {
    let embedding = ("model.embed_tokens.weight", &[8, 64][..], "BF16");
    let head = ("lm_head.weight", &[8, 64][..], "BF16");
    let refused = |prepare: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), small_config(false).to_string()).unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        zeros(&folder.path().join(WEIGHTS), &[embedding, head]);
        prepare(folder.path());
        let error =
            Checkpoint::open(folder.path()).err().map(|error| crate::error::Fatal::from(error).message());
        error.unwrap_or_default()
    };
    assert_eq!(refused(&|_| ()), "");
    let weights =
        |tensors: &'static [(&str, &[u64], &str)]| move |folder: &Path| zeros(&folder.join(WEIGHTS), tensors);
    let index = |text: &'static str| move |folder: &Path| std::fs::write(folder.join(INDEX), text).unwrap();
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let config =
        |text: &'static str| move |folder: &Path| std::fs::write(folder.join("config.json"), text).unwrap();
    let cases: [(Prepare<'_>, &str); 11] = [
        (&remove("config.json"), "has no config.json"),
        (&remove("tokenizer.json"), "tokenizer.json"),
        (&remove(WEIGHTS), "neither model.safetensors nor"),
        (&config("{"), "config.json is not the JSON"),
        (
            &weights(&[("model.embed_tokens.weight", &[8, 64], "BF16")]),
            "tensor \"lm_head.weight\" is missing",
        ),
        (
            &weights(&[("model.layers.0.self_attn.o_proj.bias", &[64], "BF16")]),
            "has no place in a llama model",
        ),
        (&weights(&[("lm_head.weight", &[8, 64], "I32")]), "stored as I32"),
        (&index("{}"), "missing field `weight_map`"),
        (&index(r#"{"weight_map":{"w":"../w.safetensors"}}"#), "expected the name of a file beside it"),
        (&index(r#"{"weight_map":{"w":"w.safetensors"}}"#), "w.safetensors"),
        (&index(r#"{"weight_map":{"w":"model.safetensors"}}"#), "tensor \"w\" is missing"),
    ];
    for (prepare, expected) in cases {
        let message = refused(prepare);
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
    let twice = refused(&|folder| {
        zeros(&folder.join("b.safetensors"), &[embedding]);
        let index = r#"{"weight_map":{"lm_head.weight":"model.safetensors","model.embed_tokens.weight":"b.safetensors"}}"#;
        std::fs::write(folder.join(INDEX), index).unwrap();
    });
    assert!(twice.contains("more than one file"), "{twice}");
    let cut = refused(&|folder| {
        let bytes = std::fs::read(folder.join(WEIGHTS)).unwrap();
        std::fs::write(folder.join(WEIGHTS), &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(cut.contains("is damaged: the file has"), "{cut}");
}

#[test]
fn a_tied_head_that_was_written_out_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), small_config(true).to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let path = folder.path().join(WEIGHTS);
    zeros(&path, &[("model.embed_tokens.weight", &[8, 64], "BF16"), ("lm_head.weight", &[8, 64], "BF16")]);
    // By the name of its weights too.
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.tensors.contains("token_embd.weight") && !checkpoint.tensors.contains(HEAD));
}
