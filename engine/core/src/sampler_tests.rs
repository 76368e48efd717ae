//! What the sampler picks, over tables and random logits.

use super::*;
use proptest::prelude::*;

const NOTHING: History<'_> = History { prompt: &[], generated: &[] };
const FREE: Rules<'_> = Rules { ends: &[], allowed: None };

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

fn pick(logits: &[f32], params: &SamplingParams, history: &History<'_>, rules: &Rules<'_>) -> TokenId {
    sample(&mut logits.to_vec(), params, history, rules).token
}

fn drawn(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
    let seeded = |seed| SamplingParams { seed, ..params.clone() };
    let mut all: Vec<_> = (0..300).map(|seed| pick(logits, &seeded(seed), &NOTHING, &FREE)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn greedy_takes_the_largest_and_the_first_among_equals() {
    let greedy = SamplingParams::greedy();
    assert_eq!(pick(&[0.5, 2.0, f32::NAN, 2.0], &greedy, &NOTHING, &FREE), 1);
}

#[test]
fn cuts_leave_the_right_candidates() {
    let logits = [0.0, 3.0, 2.0, 1.0, -1.0];
    assert_eq!(drawn(&logits, &warm()), vec![0, 1, 2, 3, 4]);
    assert_eq!(drawn(&logits, &SamplingParams { top_k: 2, ..warm() }), vec![1, 2]);
    // Shares of the largest: 1, 0.37, 0.14, 0.05, 0.02.
    assert_eq!(drawn(&logits, &SamplingParams { min_p: 0.1, ..warm() }), vec![1, 2, 3]);
    // Probabilities: 0.64, 0.23, 0.09, 0.03, 0.01.
    assert_eq!(drawn(&logits, &SamplingParams { top_p: 0.0, ..warm() }), vec![1]);
    assert_eq!(drawn(&logits, &SamplingParams { top_p: 0.6, ..warm() }), vec![1]);
    assert_eq!(drawn(&logits, &SamplingParams { top_p: 0.7, ..warm() }), vec![1, 2]);
    // Surprises: 0.45, 1.45, 2.45, 3.45, 4.45, expected 1.00: the first and the second are nearly as near.
    assert_eq!(drawn(&logits, &SamplingParams { typical_p: 0.2, ..warm() }), vec![2]);
    assert_eq!(drawn(&logits, &SamplingParams { typical_p: 0.5, ..warm() }), vec![1, 2]);
}

#[test]
fn a_large_flat_vocabulary_is_cut_by_top_p_as_a_small_one() {
    // 4,000 equal tokens: half of the weight is the first 2,000 of them.
    let drawn = drawn(&[0.0; 4000], &SamplingParams { top_p: 0.5, ..warm() });
    assert!(drawn.iter().all(|token| *token < 2000) && drawn.iter().any(|token| *token > 1500), "{drawn:?}");
}

#[test]
fn penalties_and_bias_move_the_choice() {
    let greedy = SamplingParams::greedy();
    let history = History { prompt: &[1], generated: &[2, 2] };
    let pick = |params: &SamplingParams| pick(&[1.0, 1.6, 1.7, -5.0], params, &history, &FREE);
    assert_eq!(pick(&greedy), 2);
    assert_eq!(pick(&SamplingParams { presence_penalty: 0.2, ..greedy.clone() }), 1);
    assert_eq!(pick(&SamplingParams { frequency_penalty: 0.06, ..greedy.clone() }), 1);
    assert_eq!(pick(&SamplingParams { repetition_penalty: 1.9, ..greedy.clone() }), 0);
    assert_eq!(pick(&SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy }), 3);
}

#[test]
fn what_may_not_come_does_not_come() {
    let logits = [1.0, 3.0, 2.0];
    let greedy = SamplingParams::greedy();
    let patient = SamplingParams { min_tokens: 2, ..greedy.clone() };
    let (short, long) = ([7], [7, 7]);
    let history = |generated| History { prompt: &[], generated };
    let ends = Rules { ends: &[1], allowed: None };
    assert_eq!(pick(&logits, &patient, &history(&short), &ends), 2);
    assert_eq!(pick(&logits, &patient, &history(&long), &ends), 1);
    let grammar = Rules { ends: &[1], allowed: Some(&[0b001]) };
    assert_eq!(pick(&logits, &greedy, &NOTHING, &grammar), 0);
    assert_eq!(
        drawn(&logits, &SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..warm() }),
        [0, 2]
    );
    // A grammar that is complete ends the answer, whatever min_tokens says.
    let complete = Rules { ends: &[1], allowed: Some(&[0b010]) };
    assert_eq!(pick(&logits, &patient, &history(&short), &complete), 1);
    // Words beyond the mask's end allow nothing.
    assert_eq!(pick(&[5.0; 40], &greedy, &NOTHING, &Rules { ends: &[], allowed: Some(&[1 << 31]) }), 31);
}

#[test]
fn logprobs_are_the_models_own() {
    // Probabilities 1/8, 5/8, 2/8.
    let logits = [1.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
    let params =
        SamplingParams { top_logprobs: Some(2), logit_bias: vec![(0, 50.0)], ..SamplingParams::greedy() };
    let Sampled { token, logprobs } = sample(&mut logits.to_vec(), &params, &NOTHING, &FREE);
    let logprobs = logprobs.unwrap();
    let near = |value: f32, probability: f32| (value - probability.ln()).abs() < 1e-5;
    assert_eq!((token, logprobs.top.len()), (0, 2));
    assert!(near(logprobs.chosen, 0.125), "{logprobs:?}");
    let [(first, likely), (second, less)] = logprobs.top[..] else { unreachable!() };
    assert_eq!((first, second), (1, 2));
    assert!(near(likely, 0.625) && near(less, 0.25), "{logprobs:?}");
    assert_eq!(sample(&mut logits.to_vec(), &warm(), &NOTHING, &FREE).logprobs, None);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 2.0_f32.ln()];
    let ones = (0..6000)
        .filter(|seed| pick(&logits, &SamplingParams { seed: *seed, ..warm() }, &NOTHING, &FREE) == 1);
    let share = ones.count() as f64 / 6000.0;
    // Four standard deviations of a share of 2/3 over 6000 draws are 0.024.
    assert!((share - 2.0 / 3.0).abs() < 0.024, "{share}");
}

proptest! {
    #[test]
    fn the_draw_depends_on_seed_and_position_alone(
        logits in prop::collection::vec(-20.0_f32..20.0, 1..50), seed: u64, length in 0_usize..20,
        temperature in 0.01_f32..2.0, top_p in 0.01_f32..=1.0, top_k in 0_usize..60, min_p in 0.0_f32..=1.0,
        typical_p in 0.01_f32..=1.0,
    ) {
        let greedy = SamplingParams::greedy();
        let params = SamplingParams { temperature, top_p, top_k, min_p, typical_p, seed, ..greedy };
        let tokens = vec![0; length];
        let pick = |split: usize| {
            let history = History { prompt: &tokens[..split], generated: &tokens[split..] };
            pick(&logits, &params, &history, &FREE)
        };
        let token = pick(0);
        prop_assert!((token as usize) < logits.len());
        prop_assert_eq!(token, pick(length));
    }

    #[test]
    fn broken_logits_still_give_a_token(
        logits in prop::collection::vec(prop::num::f32::ANY, 1..20), seed: u64, typical_p in 0.1_f32..1.0,
    ) {
        let count = logits.len();
        let params = SamplingParams { seed, top_p: 0.9, typical_p, top_logprobs: Some(3), ..warm() };
        prop_assert!((pick(&logits, &params, &NOTHING, &FREE) as usize) < count);
    }

    /// Whatever the cuts, a token that a grammar forbids is never drawn.
    #[test]
    fn a_forbidden_token_is_never_drawn(
        logits in prop::collection::vec(-20.0_f32..20.0, 2..64), mask in any::<u64>(), seed: u64,
        top_p in 0.01_f32..=1.0, top_k in 0_usize..60, typical_p in 0.01_f32..=1.0,
    ) {
        let words = [mask as u32, (mask >> 32) as u32];
        prop_assume!((0..logits.len()).any(|token| mask >> token & 1 == 1));
        let params = SamplingParams { seed, top_p, top_k, typical_p, ..warm() };
        let token = pick(&logits, &params, &NOTHING, &Rules { ends: &[], allowed: Some(&words) });
        prop_assert_eq!(mask >> token & 1, 1);
    }
}
