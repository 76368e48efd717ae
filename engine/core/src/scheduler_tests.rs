//! The scheduler against a model that is a function of what it can read through the block tables.

use super::*;
use crate::program::BLOCK_TOKENS;
use crate::request::{Draft, Limits};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

const END: TokenId = 7;
const VOCABULARY: usize = 1000;

fn settings(max_batch: usize, token_budget: usize, blocks: u32) -> SchedulerSettings {
    SchedulerSettings { max_batch, token_budget, blocks, end_tokens: vec![END], speculate: false }
}

fn request(prompt: Vec<TokenId>, max_tokens: usize, choices: usize) -> Arc<ValidRequest> {
    request_telling(prompt, max_tokens, choices, None)
}

fn request_telling(
    prompt: Vec<TokenId>,
    max_tokens: usize,
    choices: usize,
    prompt_logprobs: Option<usize>,
) -> Arc<ValidRequest> {
    let sampling = crate::SamplingParams { temperature: 1.0, ..crate::SamplingParams::greedy() };
    let max_tokens = Some(max_tokens);
    let draft = Draft { max_tokens, choices, sampling, prompt_logprobs, ..Draft::greedy(prompt) };
    let limits = Limits { context_tokens: 10_000, vocabulary: VOCABULARY };
    Arc::new(ValidRequest::new(draft, &limits).unwrap())
}

fn numbers(count: usize, first: TokenId) -> Vec<TokenId> {
    (0..count as TokenId).map(|index| (first + index) % VOCABULARY as TokenId).collect()
}

fn sampled(token: TokenId) -> Sampled {
    Sampled { token, logprobs: None }
}

/// A token that depends on every token before it and on the choice's seed, and repeats itself often.
fn next(tokens: &[TokenId], seed: u64) -> TokenId {
    let tail = &tokens[tokens.len().saturating_sub(3)..];
    let sum = tokens.iter().fold(seed, |sum, token| sum.wrapping_mul(31).wrapping_add(u64::from(*token)));
    match sum % 5 {
        0 => (sum / 5 % 40) as TokenId,
        _ => (tail.iter().sum::<TokenId>() * 3 + 11) % 40,
    }
}

/// A device whose cache remembers which token was written where.
struct Memory {
    written: HashMap<(u32, usize), TokenId>,
}

impl Memory {
    fn run(&mut self, plan: &StepPlan, scheduler: &Scheduler) -> Vec<Vec<Sampled>> {
        for (from, to) in &plan.copies {
            for offset in 0..BLOCK_TOKENS {
                let value = self.written.get(&(*from, offset)).copied();
                value.map(|value| self.written.insert((*to, offset), value));
            }
        }
        let place =
            |chunk: &Chunk, position: usize| (chunk.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
        for chunk in &plan.chunks {
            for (offset, token) in chunk.tokens.iter().enumerate() {
                self.written.insert(place(chunk, chunk.start + offset), *token);
            }
        }
        let results = plan.chunks.iter().map(|chunk| {
            let seed = scheduler.sequence(chunk.sequence).unwrap().sampling().seed;
            let end = chunk.start + chunk.tokens.len();
            let mut results = Vec::new();
            for row in chunk.prompt_rows..chunk.logit_rows {
                let seen = end - chunk.logit_rows + row + 1;
                let tokens: Vec<TokenId> = (0..seen).map(|at| self.written[&place(chunk, at)]).collect();
                let token = next(&tokens, seed);
                results.push(sampled(token));
                if chunk.tokens.get(seen - chunk.start) != Some(&token) || token == END {
                    break;
                }
            }
            results
        });
        results.collect()
    }
}

/// What a choice answers when it is alone in the world.
fn alone(prompt: &[TokenId], max_tokens: usize, seed: u64) -> Vec<TokenId> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        tokens.push(next(&tokens, seed));
        if tokens.last() == Some(&END) {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// Runs until idle; what every sequence got.
fn drain(scheduler: &mut Scheduler, memory: &mut Memory) -> BTreeMap<SequenceId, Vec<TokenId>> {
    let mut answers: BTreeMap<SequenceId, Vec<TokenId>> = BTreeMap::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan();
        let results = memory.run(&plan, scheduler);
        for advance in scheduler.commit(&plan, results) {
            answers.entry(advance.sequence).or_default().push(advance.sampled.token);
        }
    }
    answers
}

fn memory() -> Memory {
    Memory { written: HashMap::new() }
}

#[test]
fn a_long_prompt_is_cut_into_chunks_and_does_not_stop_the_others() {
    let mut scheduler = Scheduler::new(settings(2, 4, 8));
    scheduler.submit(&request(vec![100], 3, 1), 0, Scope::default());
    scheduler.submit(&request(numbers(8, 200), 3, 1), 0, Scope::default());
    let plan = scheduler.plan();
    assert_eq!(plan.chunks[0].tokens, [100]);
    assert_eq!((&plan.chunks[1].tokens[..], plan.chunks[1].logit_rows), (&[200, 201, 202][..], 0));
    let advances = scheduler.commit(&plan, vec![vec![sampled(5)], vec![]]);
    assert_eq!(advances.len(), 1);
    let plan = scheduler.plan();
    assert_eq!((plan.chunks[0].start, &plan.chunks[0].tokens[..]), (1, &[5][..]));
    assert_eq!((plan.chunks[1].start, &plan.chunks[1].tokens[..]), (3, &[203, 204, 205][..]));
}

#[test]
fn an_end_token_and_the_limit_finish_a_sequence_and_free_its_blocks() {
    let mut scheduler = Scheduler::new(settings(2, 16, 4));
    scheduler.submit(&request(vec![1, 2], 9, 1), 0, Scope::default());
    scheduler.submit(&request(vec![1, 2], 1, 1), 0, Scope::default());
    let plan = scheduler.plan();
    let advances = scheduler.commit(&plan, vec![vec![sampled(END)], vec![sampled(3)]]);
    let finishes: Vec<_> = advances.iter().map(|advance| advance.finish).collect();
    assert_eq!(finishes, [Some(FinishReason::Stop), Some(FinishReason::Length)]);
    assert!(scheduler.is_idle() && scheduler.plan().chunks.is_empty());
    assert_eq!(scheduler.pool().free_count(), 4);
}

#[test]
fn a_known_prefix_is_not_computed_again_in_its_own_scope_only() {
    let mut scheduler = Scheduler::new(settings(4, 100, 20));
    let mut memory = memory();
    let prompt = numbers(40, 100);
    for (scope, hits) in [(1, 0), (1, 32), (2, 0)] {
        let before = scheduler.stats().prefix_hit_tokens;
        scheduler.submit(&request(prompt.clone(), 5, 1), 0, Scope(scope));
        let answers = drain(&mut scheduler, &mut memory);
        assert_eq!(answers.into_values().next(), Some(alone(&prompt, 5, 0)));
        assert_eq!(scheduler.stats().prefix_hit_tokens - before, hits);
    }
    // A prompt of whole blocks: the last one is computed, since its logits are wanted.
    scheduler.submit(&request(prompt[..32].to_vec(), 1, 1), 0, Scope(1));
    assert_eq!((scheduler.plan().chunks[0].start, scheduler.running_count()), (16, 1));
}

#[test]
fn choices_share_the_prompts_blocks_and_copy_what_they_write() {
    let mut scheduler = Scheduler::new(settings(3, 100, 20));
    let mut memory = memory();
    let prompt = numbers(40, 100);
    let sequences = scheduler.submit(&request(prompt.clone(), 30, 3), 0, Scope::default());
    let plan = scheduler.plan();
    assert_eq!(plan.chunks.len(), 1, "the others wait for the prompt");
    let results = memory.run(&plan, &scheduler);
    let first = scheduler.commit(&plan, results);
    let plan = scheduler.plan();
    let starts: Vec<usize> = plan.chunks.iter().map(|chunk| chunk.start).collect();
    assert_eq!((starts, plan.copies.len()), (vec![40, 39, 39], 2));
    assert_eq!(plan.chunks[0].blocks[..2], plan.chunks[1].blocks[..2]);
    let results = memory.run(&plan, &scheduler);
    let second = scheduler.commit(&plan, results);
    let mut answers = drain(&mut scheduler, &mut memory);
    for advance in second.into_iter().rev().chain(first) {
        answers.get_mut(&advance.sequence).unwrap().insert(0, advance.sampled.token);
    }
    for (choice, (id, finished)) in sequences.into_iter().enumerate() {
        assert_eq!(finished, None);
        assert_eq!(answers[&id], alone(&prompt, 30, choice as u64), "choice {choice}");
    }
}

#[test]
fn the_last_in_line_gives_way_and_is_computed_again() {
    let mut scheduler = Scheduler::new(settings(2, 100, 5));
    let mut memory = memory();
    let prompts = [numbers(30, 100), numbers(30, 300)];
    let ids: Vec<SequenceId> = prompts
        .iter()
        .map(|prompt| scheduler.submit(&request(prompt.clone(), 40, 1), 0, Scope::default())[0].0)
        .collect();
    let answers = drain(&mut scheduler, &mut memory);
    for (id, prompt) in ids.iter().zip(&prompts) {
        assert_eq!(answers[id], alone(prompt, 40, 0));
    }
    assert!(scheduler.stats().preemptions > 0);
}

#[test]
fn a_lower_priority_is_let_in_first() {
    let mut scheduler = Scheduler::new(settings(1, 100, 10));
    let usual = scheduler.submit(&request(vec![1], 1, 1), 0, Scope::default());
    let urgent = scheduler.submit(&request(vec![2], 1, 1), -3, Scope::default());
    let order: Vec<SequenceId> = (0..2)
        .map(|_| {
            let plan = scheduler.plan();
            scheduler.commit(&plan, vec![vec![sampled(3)]])[0].sequence
        })
        .collect();
    assert_eq!(order, [urgent[0].0, usual[0].0]);
}

#[test]
fn resumed_answers_go_on_or_are_over() {
    let mut scheduler = Scheduler::new(settings(4, 100, 10));
    let resumed = vec![vec![50, 51], vec![52, END], vec![53; 4]];
    let draft = Draft { max_tokens: Some(4), choices: 3, resumed, ..Draft::greedy(vec![1, 2, 3]) };
    let limits = Limits { context_tokens: 100, vocabulary: VOCABULARY };
    let request = Arc::new(ValidRequest::new(draft, &limits).unwrap());
    let sequences = scheduler.submit(&request, 0, Scope::default());
    let finished: Vec<_> = sequences.iter().map(|(_, finished)| *finished).collect();
    assert_eq!(finished, [None, Some(FinishReason::Stop), Some(FinishReason::Length)]);
    let plan = scheduler.plan();
    assert_eq!(plan.chunks.len(), 1);
    assert_eq!(plan.chunks[0].tokens, [1, 2, 3, 50, 51]);
    scheduler.commit(&plan, vec![vec![sampled(9)]]);
    let plan = scheduler.plan();
    assert_eq!(scheduler.commit(&plan, vec![vec![sampled(9)]])[0].finish, Some(FinishReason::Length));
}

#[test]
fn lent_blocks_are_nobody_elses_until_they_come_back() {
    let mut scheduler = Scheduler::new(settings(2, 100, 4));
    let prompt = numbers(20, 100);
    scheduler.submit(&request(prompt.clone(), 20, 1), 0, Scope::default());
    assert_eq!(scheduler.lend(5), None);
    let lent = scheduler.lend(3).unwrap();
    assert!(scheduler.plan().chunks.is_empty(), "two blocks are needed, and one is left");
    scheduler.take_back();
    assert_eq!((lent.len(), scheduler.pool().free_count()), (3, 4));
    let answers = drain(&mut scheduler, &mut memory());
    assert_eq!(answers.into_values().next(), Some(alone(&prompt, 20, 0)));
}

/// A request of the random runs.
#[derive(Debug, Clone)]
struct Arrival {
    /// Prompts of one family begin alike.
    family: TokenId,
    prompt: usize,
    max_tokens: usize,
    choices: usize,
    /// Whether it asks for log-probabilities of its prompt.
    told: bool,
    priority: i32,
    scope: u128,
    /// Comes before this step.
    at: usize,
    /// Is cancelled before this step, where that is not over by then.
    cancelled_at: usize,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let numbers = (0..3_u32, 1_usize..70, 1_usize..40, 1_usize..4, prop::bool::weighted(0.2));
    (numbers, -1..2_i32, 0..2_u128, 0_usize..60, 1_usize..200).prop_map(
        |((family, prompt, max_tokens, choices, told), priority, scope, at, cancelled_at)| Arrival {
            family,
            prompt,
            max_tokens,
            choices,
            told,
            priority,
            scope,
            at,
            cancelled_at,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever arrives, leaves and has to give way, in however small a pool: a step with work is never empty and
    /// never over budget, blocks add up (asserted inside, every call), everybody who stays gets exactly the answer it
    /// gets alone, and in the end every block is free.
    #[test]
    fn every_sequence_gets_the_answer_it_gets_alone(
        arrivals in prop::collection::vec(arrival(), 1..10),
        max_batch in 1_usize..6, budget in 1_usize..60, extra_blocks in 0_u32..12, speculate in any::<bool>(),
    ) {
        let largest = arrivals.iter().map(|arrival| (arrival.prompt + arrival.max_tokens).div_ceil(BLOCK_TOKENS));
        let blocks = largest.max().unwrap_or(1) as u32 + extra_blocks;
        let mut scheduler = Scheduler::new(SchedulerSettings { speculate, ..settings(max_batch, budget, blocks) });
        let mut memory = memory();
        let mut expected: BTreeMap<SequenceId, (Vec<TokenId>, usize)> = BTreeMap::new();
        let mut answers: BTreeMap<SequenceId, Vec<TokenId>> = BTreeMap::new();
        let mut finished: BTreeMap<SequenceId, FinishReason> = BTreeMap::new();
        // Rows that were told, and how many there are.
        let mut told: BTreeMap<SequenceId, (usize, usize)> = BTreeMap::new();
        for step in 0..5000 {
            for arrival in arrivals.iter().filter(|arrival| arrival.at == step) {
                let prompt = numbers(arrival.prompt, 100 + 100 * arrival.family);
                let prompt_logprobs = arrival.told.then_some(0);
                let request =
                    request_telling(prompt.clone(), arrival.max_tokens, arrival.choices, prompt_logprobs);
                let sequences = scheduler.submit(&request, arrival.priority, Scope(arrival.scope));
                for (choice, (id, _)) in sequences.into_iter().enumerate() {
                    let answer = alone(&prompt, arrival.max_tokens, choice as u64);
                    expected.insert(id, (answer, arrival.cancelled_at));
                    if arrival.told && choice == 0 {
                        told.insert(id, (0, prompt.len() - 1));
                    }
                }
            }
            for (id, (_, at)) in &expected {
                if *at == step && !finished.contains_key(id) {
                    scheduler.cancel(*id);
                }
            }
            let plan = scheduler.plan();
            prop_assert_eq!(plan.chunks.is_empty(), scheduler.is_idle());
            prop_assert!(plan.token_count() <= budget.max(max_batch));
            prop_assert!(plan.chunks.len() <= max_batch);
            prop_assert!(plan.prompt_row_count() <= PROMPT_ROWS + plan.chunks.len());
            for chunk in plan.chunks.iter().filter(|chunk| chunk.prompt_rows > 0) {
                let (done, _) = told.get_mut(&chunk.sequence).expect("only who asked is told");
                prop_assert_eq!(chunk.start + chunk.tokens.len() - chunk.logit_rows, *done);
                *done += chunk.prompt_rows;
            }
            let results = memory.run(&plan, &scheduler);
            for advance in scheduler.commit(&plan, results) {
                answers.entry(advance.sequence).or_default().push(advance.sampled.token);
                if let Some(reason) = advance.finish {
                    finished.insert(advance.sequence, reason);
                }
            }
            if step > 250 && scheduler.is_idle() {
                break;
            }
        }
        prop_assert!(scheduler.is_idle(), "everything ends");
        prop_assert_eq!(scheduler.pool().free_count(), blocks as usize);
        for (id, (answer, _)) in &expected {
            let found = answers.remove(id).unwrap_or_default();
            match finished.get(id) {
                Some(FinishReason::Length | FinishReason::Stop) => {
                    prop_assert_eq!(&found, answer);
                    prop_assert!(told.get(id).is_none_or(|(done, all)| done == all));
                }
                None => prop_assert!(answer.starts_with(&found)),
            }
        }
    }
}

#[test]
fn right_guesses_save_steps_and_change_nothing() {
    let prompt: Vec<TokenId> = (0..60).map(|index| 100 + index % 6).collect();
    // Repeats what stands six tokens earlier.
    let repeat = |tokens: &[TokenId]| tokens[tokens.len() - 6];
    let mut steps = Vec::new();
    for speculate in [false, true] {
        let mut scheduler = Scheduler::new(SchedulerSettings { speculate, ..settings(1, 100, 20) });
        scheduler.submit(&request(prompt.clone(), 48, 1), 0, Scope::default());
        let (mut answer, mut count) = (Vec::new(), 0);
        while !scheduler.is_idle() {
            let plan = scheduler.plan();
            let mut tokens = scheduler.sequence(plan.chunks[0].sequence).unwrap().tokens().to_vec();
            let chunk = &plan.chunks[0];
            let drafts = &chunk.tokens[chunk.tokens.len() - chunk.drafted..];
            let mut results = Vec::new();
            for row in chunk.prompt_rows..chunk.logit_rows {
                let token = repeat(&tokens);
                tokens.push(token);
                results.push(sampled(token));
                if drafts.get(row) != Some(&token) {
                    break;
                }
            }
            let advances = scheduler.commit(&plan, vec![results]);
            answer.extend(advances.into_iter().map(|advance| advance.sampled.token));
            count += 1;
        }
        let expected: Vec<TokenId> = (60..108).map(|index| 100 + index % 6).collect();
        assert_eq!(answer, expected);
        steps.push(count);
    }
    assert!(steps[1] * 3 < steps[0], "{steps:?}");
}
