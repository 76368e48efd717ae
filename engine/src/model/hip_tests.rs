//! The real model on the stand-in card against the CPU backend: the same steps, and greedy tokens equal but for near
//! ties. The card quantizes activations to int8 where the CPU keeps f32, which is most of the difference.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::text::TextTokenizer;
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::BLOCK_TOKENS;
use atlas_engine_core::{SequenceId, TokenId};
use atlas_kernels::CpuBackend;
use atlas_kernels::hip::{BUILT, HipBackend, Options};
use std::path::{Path, PathBuf};

#[path = "../../kernels/tests/support/mod.rs"]
mod support;

const PROMPT_TOKENS: usize = 40;
const ANSWER_TOKENS: usize = 16;
/// Nats between the CPU's best token and the card's, where they differ.
const NEAR_TIE: f32 = 0.3;
/// Kullback-Leibler divergence of the card's next token from the CPU's, in nats: int8 activations over thirty layers.
const TOLERANCE: f64 = 0.05;
const TEXT: &str = "The capital of France is Paris, and the capital of Japan is Tokyo. Every country has one \
                    capital, and most have many cities besides. Some capitals lie by the sea and some far \
                    from it. The largest city of Brazil is";

fn path() -> PathBuf {
    let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    let path = cache.or_else(home).unwrap_or_default().join("models/smollm2-135m-instruct-q4_1.gguf");
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

fn load(header: &Gguf, file: &Arc<MappedFile>, backend: Box<dyn Backend>) -> Model {
    let max = MaxShape { rows: 64, sequences: 1, logit_rows: 1, hidden_rows: 1, blocks_per_sequence: 4 };
    let shape = ModelShape { kv_type: KvType::F16, blocks: 4, max };
    Model::load(header, file, backend, &shape).unwrap()
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

fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let logs = |logits: &[f32]| -> Vec<f64> {
        let most = logits.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
        logits.iter().map(|logit| f64::from(logit - most) - sum.ln()).collect()
    };
    logs(expected).iter().zip(logs(found)).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn best(logits: &[f32]) -> usize {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.unwrap().0
}

#[test]
fn the_real_model_says_on_the_card_what_it_says_on_the_cpu() {
    let exe = std::env::current_exe().unwrap();
    let folder = exe.ancestors().nth(3).unwrap().join("tmp");
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let library = support::standin(BUILT.0, &kernels, &folder);
    let root = support::root(110_002, support::VRAM_BYTES);
    let file = Arc::new(MappedFile::open(&path()).unwrap());
    let header = Gguf::parse_file(&file).unwrap();
    let options = Options {
        root: root.path().to_owned(),
        library: Some(library.to_str().unwrap().to_owned()),
        arena_bytes: Some(256 << 20),
        ..Options::new()
    };
    let mut card = load(&header, &file, Box::new(HipBackend::open(&options).unwrap()));
    let mut cpu = load(&header, &file, Box::new(CpuBackend::new(2).unwrap()));
    let tokenizer = TextTokenizer::from_gguf(&header).unwrap();
    let mut tokens = tokenizer.encode(TEXT).unwrap();
    assert!(tokens.len() >= PROMPT_TOKENS, "{}", tokens.len());
    tokens.truncate(PROMPT_TOKENS);
    let mut start = 0;
    for step in 0..ANSWER_TOKENS {
        let (expected, found) =
            (logits(&mut cpu, start, &tokens[start..]), logits(&mut card, start, &tokens[start..]));
        let distance = divergence(&expected, &found);
        assert!(distance <= TOLERANCE, "step {step}: the distributions are {distance} nats apart");
        let (wanted, chosen) = (best(&expected), best(&found));
        let behind = expected[wanted] - expected[chosen];
        assert!(behind <= NEAR_TIE, "step {step}: token {chosen} for {wanted}, {behind} nats behind");
        start = tokens.len();
        tokens.push(wanted as TokenId);
    }
}
