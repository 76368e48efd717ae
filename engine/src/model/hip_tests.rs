//! The real model on the stand-in card against the reference in f32: the same steps, and greedy tokens equal but for
//! near ties.
//!
//! The card's products take activations as int8 blocks, and that is the whole difference: a reference that rounds its
//! activations likewise, and computes in f32 else, is as far from f32 as the card is, at every depth. The two are not
//! nearer to each other than that after some layers, since a last bit that differs makes another byte of a block, a
//! whole step of it, which the next layers round again.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::checkpoint::Checkpoint;
use atlas_engine_core::plan::Chunk;
use atlas_engine_core::program::BLOCK_TOKENS;
use atlas_engine_core::{SequenceId, TokenId};
use atlas_kernels::CpuBackend;
use atlas_kernels::hip::{BUILT, HipBackend, Options};
use std::path::{Path, PathBuf};

#[path = "../../kernels/tests/support/mod.rs"]
pub(crate) mod support;

const PROMPT_TOKENS: usize = 40;
const ANSWER_TOKENS: usize = 16;
/// Of a model over two devices.
const SPLIT_TOKENS: usize = 4;
/// Nats between the reference's best token and the card's, where they differ.
const NEAR_TIE: f32 = 0.3;
/// Kullback-Leibler divergence of the card's next token from the reference's, in nats, of each step.
const TOLERANCE: f64 = 0.02;
/// The same over all steps.
const MEAN_TOLERANCE: f64 = 0.005;
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

fn load(checkpoint: &Checkpoint, devices: Devices, kv_type: KvType) -> Model {
    let max = MaxShape { rows: 64, sequences: 1, logit_rows: 1, hidden_rows: 1, blocks_per_sequence: 4 };
    let shape = ModelShape { kv_type, blocks: 4, max };
    Model::load_parts(&checkpoint.config, &checkpoint.tensors, devices, &shape, &mut |_| ()).unwrap()
}

fn prompt(checkpoint: &Checkpoint) -> Vec<TokenId> {
    let mut tokens = checkpoint.tokenizer().unwrap().encode(TEXT).unwrap();
    assert!(tokens.len() >= PROMPT_TOKENS, "{}", tokens.len());
    tokens.truncate(PROMPT_TOKENS);
    tokens
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

/// Root mean square of the difference over that of the expected values.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    (difference / squares(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}

fn best(logits: &[f32]) -> usize {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.unwrap().0
}

/// The stand-in's library, and its card's files.
struct StandIn {
    library: PathBuf,
    root: tempfile::TempDir,
}

impl StandIn {
    fn new() -> Self {
        let exe = std::env::current_exe().unwrap();
        let folder = exe.ancestors().nth(3).unwrap().join("tmp");
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let library = support::standin(BUILT.0, &kernels, &folder);
        Self { library, root: support::root(110_002, support::VRAM_BYTES) }
    }

    fn open(&self) -> Box<dyn Backend> {
        let options = Options {
            root: self.root.path().to_owned(),
            library: Some(self.library.to_str().unwrap().to_owned()),
            arena_bytes: Some(256 << 20),
            ..Options::new()
        };
        Box::new(HipBackend::open(&options).unwrap())
    }
}

/// The reference in f32, and the same with activations rounded to int8 blocks, as the card's products take them.
fn references() -> [Box<dyn Backend>; 2] {
    [Box::new(CpuBackend::exact(2).unwrap()), Box::new(CpuBackend::rounded(2).unwrap())]
}

/// The divergence, which has to be small, of logits whose best token has to be the reference's, or nearly as good.
fn check(step: usize, expected: &[f32], found: &[f32]) -> f64 {
    let distance = divergence(expected, found);
    assert!(distance <= TOLERANCE, "step {step}: the distributions are {distance} nats apart");
    let (wanted, chosen) = (best(expected), best(found));
    let behind = expected[wanted] - expected[chosen];
    assert!(behind <= NEAR_TIE, "step {step}: token {chosen} for {wanted}, {behind} nats behind");
    distance
}

#[test]
fn the_real_model_says_on_the_card_what_the_reference_says() {
    let standin = StandIn::new();
    let checkpoint = Checkpoint::open(&path()).unwrap();
    let [exact, rounded] = references();
    let mut card = load(&checkpoint, vec![(standin.open(), usize::MAX)], KvType::F16);
    let [mut exact, mut rounded] =
        [exact, rounded].map(|device| load(&checkpoint, vec![(device, usize::MAX)], KvType::F32));
    let mut tokens = prompt(&checkpoint);
    let (mut start, mut totals) = (0, [0.0, 0.0]);
    for step in 0..ANSWER_TOKENS {
        let [expected, found, alike] =
            [&mut exact, &mut card, &mut rounded].map(|model| logits(model, start, &tokens[start..]));
        totals[0] += check(step, &expected, &found);
        totals[1] += divergence(&expected, &alike);
        start = tokens.len();
        tokens.push(best(&expected) as TokenId);
    }
    let [of_card, of_rounding] = totals.map(|total| total / ANSWER_TOKENS as f64);
    println!("mean divergence of the card {of_card:.5} nats, of rounded activations alone {of_rounding:.5}");
    assert!(of_card <= MEAN_TOLERANCE, "the mean divergence is {of_card}");
    assert!(of_card <= 2.0 * of_rounding, "{of_card} of the card, {of_rounding} of rounding alone");
}

/// The embedding and twenty of thirty layers on the processor as it serves, the rest and the head on the card.
#[test]
fn a_model_over_two_devices_says_what_the_reference_says() {
    let standin = StandIn::new();
    let checkpoint = Checkpoint::open(&path()).unwrap();
    let [exact, _] = references();
    let cpu: Box<dyn Backend> = Box::new(CpuBackend::new(2).unwrap());
    let mut exact = load(&checkpoint, vec![(exact, usize::MAX)], KvType::F32);
    let mut split = load(&checkpoint, vec![(cpu, 20), (standin.open(), usize::MAX)], KvType::F16);
    let mut tokens = prompt(&checkpoint);
    let mut start = 0;
    for step in 0..SPLIT_TOKENS {
        let [expected, found] = [&mut exact, &mut split].map(|model| logits(model, start, &tokens[start..]));
        check(step, &expected, &found);
        start = tokens.len();
        tokens.push(best(&expected) as TokenId);
    }
}

/// The embedding alone is more than one buffer of the upload, so its bytes come in more than one piece.
#[test]
fn loading_tells_every_byte_that_arrives_on_the_card() {
    let standin = StandIn::new();
    let checkpoint = Checkpoint::open(&path()).unwrap();
    let max = MaxShape { rows: 8, sequences: 1, logit_rows: 1, hidden_rows: 1, blocks_per_sequence: 1 };
    let shape = ModelShape { kv_type: KvType::F16, blocks: 1, max };
    for offloaded in [0, 20] {
        let cpu: Box<dyn Backend> = Box::new(CpuBackend::new(2).unwrap());
        let devices = match offloaded {
            0 => vec![(standin.open(), usize::MAX)],
            layers => vec![(cpu, layers), (standin.open(), usize::MAX)],
        };
        let (mut pieces, mut layers) = (Vec::new(), Vec::new());
        let mut tell = |loading| match loading {
            Loading::Bytes(bytes) => pieces.push(bytes),
            Loading::Layers(count) => layers.push(count),
        };
        let model =
            Model::load_parts(&checkpoint.config, &checkpoint.tensors, devices, &shape, &mut tell).unwrap();
        let on_card = model.last_memory_use().weights;
        assert_eq!(pieces.iter().sum::<u64>(), on_card);
        assert_eq!(crate::backend::card_bytes(&checkpoint.tensors, offloaded), on_card);
        assert!(pieces.iter().all(|bytes| *bytes <= 16 << 20), "{pieces:?}");
        assert!(pieces.len() > 60 && layers == (1..=30).collect::<Vec<_>>(), "{layers:?}");
    }
}

/// All layers of this model are alike, and its head is the embedding, which both devices need.
#[test]
fn the_processor_holds_its_layers_and_the_embedding() {
    let checkpoint = Checkpoint::open(&path()).unwrap();
    let [none, ten, twenty] =
        [0, 10, 20].map(|layers| crate::backend::host_bytes(&checkpoint.tensors, layers));
    let layers = twenty - ten;
    assert!(none == 0 && layers > 0 && ten > layers, "{none}, {ten}, {twenty}");
    assert!(
        twenty + layers <= checkpoint.tensors.byte_count(),
        "{twenty} of {}",
        checkpoint.tensors.byte_count()
    );
}

/// What the card computes differs from f32 by what rounding its activations costs, layer by layer, and by no more: an
/// error of a kernel would show as a difference that the rounded reference lacks.
#[test]
fn what_the_card_adds_to_the_streams_error_is_the_rounding_of_activations() {
    let standin = StandIn::new();
    let checkpoint = Checkpoint::open(&path()).unwrap();
    let tokens = prompt(&checkpoint);
    for layers in [1, 3, 10] {
        let [exact, rounded] = references();
        let streams = [exact, rounded, standin.open()].map(|device| {
            // The rest of the layers only has to be there.
            let rest: Box<dyn Backend> = Box::new(CpuBackend::new(2).unwrap());
            let mut model = load(&checkpoint, vec![(device, layers), (rest, usize::MAX)], KvType::F16);
            // Many rows at once, then one alone: WMMA, then dot4.
            [(0, PROMPT_TOKENS - 1), (PROMPT_TOKENS - 1, PROMPT_TOKENS)].map(|(start, end)| {
                logits(&mut model, start, &tokens[start..end]);
                // The last part hands nothing over, so the first one's stream is what it was swapped with.
                model.out.handoff.clone()
            })
        });
        let [exact, rounded, card] = streams;
        for step in 0..2 {
            let [of_card, of_rounding] =
                [&card, &rounded].map(|found| relative_error(&found[step], &exact[step]));
            println!("{layers} layers, step {step}: card {of_card:.5}, rounding alone {of_rounding:.5}");
            assert!(
                of_card <= 1.4 * of_rounding && of_card < 0.03,
                "{layers} layers, step {step}: the card is {of_card} from f32, rounding alone {of_rounding}"
            );
        }
    }
}
