//! The real model: whatever runs beside a request, its answer is the one it gets alone.

use super::embed::{Embedding, EmbeddingJob, Pooling};
use super::stepper::Stepper;
use crate::checkpoint::Checkpoint;
use crate::model::{Model, ModelShape};
use crate::text::TextTokenizer;
use atlas_engine_core::backend::KvType;
use atlas_engine_core::program::MaxShape;
use atlas_engine_core::{
    Draft, Limits, SamplingParams, Scheduler, SchedulerSettings, Scope, SequenceId, TokenId, ValidRequest,
};
use atlas_kernels::CpuBackend;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

const CONTEXT: usize = 256;

/// Begins alike, so that prefixes are found, and repeats itself, so that guesses are right.
const PREFIX: &str =
    "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n\nfn area(width: u32, ";
const PROMPTS: [&str; 4] = ["height: u32)", "depth: u32)", "length: u64) -> u64 {\n    width", ""];

struct Fixture {
    checkpoint: Checkpoint,
    tokenizer: TextTokenizer,
}

impl Fixture {
    fn open() -> Self {
        let cache = std::env::var_os("ATLAS_CACHE").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
        let path = cache.or_else(home).unwrap_or_default().join("models/smollm2-135m-instruct-q4_1.gguf");
        let checkpoint = Checkpoint::open(&path).expect("make setup fetches the model");
        let tokenizer = checkpoint.tokenizer().unwrap();
        Self { checkpoint, tokenizer }
    }

    fn stepper(&self, threads: usize, settings: SchedulerSettings) -> Stepper {
        let max = MaxShape {
            rows: settings.token_budget,
            sequences: settings.max_batch,
            logit_rows: settings.token_budget,
            hidden_rows: settings.token_budget,
            blocks_per_sequence: CONTEXT / 16,
        };
        let shape = ModelShape { kv_type: KvType::F16, blocks: settings.blocks, max };
        let backend = Box::new(CpuBackend::new(threads).unwrap());
        let model = Model::load(&self.checkpoint.config, &self.checkpoint.tensors, backend, &shape).unwrap();
        Stepper::new(Scheduler::new(settings), model)
    }

    /// Greedy and seeded requests of several lengths and, for one, several choices.
    fn requests(&self) -> Vec<Arc<ValidRequest>> {
        let limits = Limits { context_tokens: CONTEXT, vocabulary: self.tokenizer.vocabulary() };
        let request = |index: usize| {
            let text = format!("{PREFIX}{}", PROMPTS[index % PROMPTS.len()]);
            let greedy = SamplingParams::greedy();
            let sampling = match index % 3 {
                0 => greedy,
                1 => SamplingParams { temperature: 0.8, top_p: 0.9, seed: index as u64, ..greedy },
                _ => SamplingParams { temperature: 0.0, frequency_penalty: 0.3, ..greedy },
            };
            let draft = Draft {
                max_tokens: Some(12 + index % 5 * 4),
                sampling,
                ignore_eos: true,
                choices: if index == 5 { 3 } else { 1 },
                ..Draft::greedy(self.tokenizer.encode_prompt(&text).unwrap())
            };
            Arc::new(ValidRequest::new(draft, &limits).unwrap())
        };
        (0..16).map(request).collect()
    }
}

/// The answers of a run: request `index` arrives before step `arrives(index)`.
fn answers(
    stepper: &mut Stepper,
    requests: &[Arc<ValidRequest>],
    arrives: impl Fn(usize) -> usize,
) -> Vec<Vec<TokenId>> {
    let mut order: Vec<SequenceId> = Vec::new();
    let mut answers: BTreeMap<SequenceId, Vec<TokenId>> = BTreeMap::new();
    for step in 0.. {
        for (index, request) in requests.iter().enumerate() {
            if arrives(index) == step {
                let sequences = stepper.scheduler.submit(request, 0, Scope::default());
                order.extend(sequences.into_iter().map(|(id, _)| id));
            }
        }
        if stepper.scheduler.is_idle() && order.len() >= requests.len() {
            break;
        }
        if !stepper.scheduler.is_idle() {
            for advance in stepper.step(|| ()).unwrap().advances {
                answers.entry(advance.sequence).or_default().push(advance.sampled.token);
            }
        }
    }
    order.into_iter().map(|id| answers.remove(&id).unwrap_or_default()).collect()
}

fn settings(max_batch: usize, token_budget: usize, blocks: u32, speculate: bool) -> SchedulerSettings {
    SchedulerSettings { max_batch, token_budget, blocks, end_tokens: vec![2], speculate }
}

#[test]
fn answers_do_not_depend_on_company_prefixes_preemption_or_guesses() {
    let fixture = Fixture::open();
    let requests = fixture.requests();
    // One after the other, each without anything cached: a scope of its own would do too.
    let mut alone = Vec::new();
    for request in &requests {
        let mut stepper = fixture.stepper(1, settings(1, 64, 16, false));
        alone.extend(answers(&mut stepper, std::slice::from_ref(request), |_| 0));
    }
    assert!(alone.iter().all(|answer| answer.len() >= 12));
    // Batch, budget, blocks; with tiny pools sequences have to give way.
    for (max_batch, budget, blocks, speculate) in
        [(2, 16, 32, true), (4, 7, 7, false), (16, 48, 40, true), (16, 128, 256, false), (8, 64, 256, true)]
    {
        let mut stepper = fixture.stepper(2, settings(max_batch, budget, blocks, speculate));
        let found = answers(&mut stepper, &requests, |index| index * 5 % 7 + index / 4 * 6);
        let stats = stepper.scheduler.stats();
        let ran = format!("batch {max_batch}, budget {budget}, {blocks} blocks: {stats:?}");
        // The order of arrival is not the requests'.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|index| index * 5 % 7 + index / 4 * 6);
        let mut expected = Vec::new();
        let mut firsts: Vec<usize> = Vec::new();
        let mut first = 0;
        for request in &requests {
            firsts.push(first);
            first += request.choices();
        }
        for index in order {
            expected.extend_from_slice(&alone[firsts[index]..firsts[index] + requests[index].choices()]);
        }
        assert!(found == expected, "{ran}");
        assert!(stats.prefix_hit_tokens > 0, "{ran}");
        assert!(blocks > 8 || stats.preemptions > 0, "{ran}");
        assert!(!speculate || stats.accepted_tokens > 0, "{ran}");
        assert_eq!(stepper.scheduler.pool().free_count(), blocks as usize, "{ran}");
    }
}

#[test]
fn a_vector_does_not_depend_on_chunks_or_company() {
    let fixture = Fixture::open();
    let tokens = fixture.tokenizer.encode_prompt(PREFIX).unwrap();
    let requests = fixture.requests();
    let embed = |budget: usize, pooling: Pooling, company: bool| {
        let mut stepper = fixture.stepper(2, settings(4, 64, 40, false));
        if company {
            stepper.scheduler.submit(&requests[0], 0, Scope::default());
        }
        let (reply, mut receiver) = tokio::sync::oneshot::channel();
        let embedding = Embedding { tokens: tokens.clone(), pooling, reply };
        let mut job = EmbeddingJob::begin(embedding, &mut stepper).ok();
        while let Some(running) = job {
            if company {
                stepper.step(|| ()).unwrap();
            }
            job = running.advance(&mut stepper, budget).unwrap();
        }
        receiver.try_recv().unwrap().vector
    };
    for pooling in [Pooling::Mean, Pooling::Last] {
        let vector = embed(64, pooling, false);
        assert!(vector.iter().any(|value| value.abs() > 0.1));
        assert!(vector == embed(7, pooling, true), "{pooling:?}");
    }
    assert!(embed(64, Pooling::Mean, false) != embed(64, Pooling::Last, false));
}
