//! Picks the next token from logits.
//!
//! The draw is a function of seed and position, never of what else is in the batch or of a generator's history, so a
//! sequence that is resumed or recomputed elsewhere draws the same.
//! Order of the steps: bias and penalties, greedy where the temperature is 0, temperature, top-k, min-p, top-p, draw.
//! Min-p and top-p see the probabilities after the temperature.

use crate::request::SamplingParams;
use crate::sequence::TokenId;
use std::cmp::Ordering;
use std::collections::HashMap;

/// What the penalties look at.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Token ids of the prompt.
    pub prompt: &'a [TokenId],
    /// Token ids of the answer so far.
    pub generated: &'a [TokenId],
}

/// Picks a token; `logits` has one value a vocabulary entry and is changed in place.
///
/// The position of the new token is the length of the history, so equal histories draw alike.
#[must_use]
pub fn sample(logits: &mut [f32], params: &SamplingParams, history: &History<'_>) -> TokenId {
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    apply_penalties(logits, params, history);
    if params.temperature <= 0.0 {
        return argmax(logits);
    }
    let mut candidates = candidates(logits, params.top_k);
    let maximum = candidates.first().map_or(0.0, |(_, logit)| *logit);
    for (_, value) in &mut candidates {
        *value = ((*value - maximum) / params.temperature).exp();
    }
    if params.min_p > 0.0 {
        // The first candidate's value is 1: the others are already shares of it.
        let kept = candidates.iter().take_while(|(_, value)| *value >= params.min_p).count();
        candidates.truncate(kept.max(1));
    }
    if params.top_p < 1.0 {
        let total: f32 = candidates.iter().map(|(_, value)| value).sum();
        let mut sum = 0.0;
        let below = candidates.iter().take_while(|(_, value)| {
            let wanted = sum < params.top_p * total;
            sum += value;
            wanted
        });
        let kept = below.count();
        candidates.truncate(kept.max(1));
    }
    draw(&candidates, uniform(params.seed, (history.prompt.len() + history.generated.len()) as u64))
}

fn apply_penalties(logits: &mut [f32], params: &SamplingParams, history: &History<'_>) {
    if params.repetition_penalty != 1.0 {
        let mut seen: Vec<TokenId> = history.prompt.iter().chain(history.generated).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                // As in the CTRL paper: always away from being chosen, on either side of zero.
                *logit = if *logit > 0.0 {
                    *logit / params.repetition_penalty
                } else {
                    *logit * params.repetition_penalty
                };
            }
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        let mut counts: HashMap<TokenId, f32> = HashMap::new();
        for token in history.generated {
            *counts.entry(*token).or_default() += 1.0;
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= params.presence_penalty + params.frequency_penalty * count;
            }
        }
    }
}

/// The index of the largest logit, the first one among equals; NaN never wins.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0 as TokenId
}

/// The `top_k` largest logits (all for 0), largest first; equal ones in the order of their ids, NaN last.
fn candidates(logits: &[f32], top_k: usize) -> Vec<(TokenId, f32)> {
    let mut all: Vec<(TokenId, f32)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| (token as TokenId, if logit.is_nan() { f32::NEG_INFINITY } else { *logit }))
        .collect();
    let larger = |left: &(TokenId, f32), right: &(TokenId, f32)| -> Ordering {
        right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
    };
    if top_k > 0 && top_k < all.len() {
        all.select_nth_unstable_by(top_k - 1, larger);
        all.truncate(top_k);
    }
    all.sort_unstable_by(larger);
    all
}

/// The candidate at `point` (0 to 1) of the weights' sum.
fn draw(candidates: &[(TokenId, f32)], point: f64) -> TokenId {
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut rest = point * total;
    for (token, weight) in candidates {
        rest -= f64::from(*weight);
        if rest < 0.0 {
            return *token;
        }
    }
    // Rounding may leave a crumb; it belongs to the most likely one.
    candidates.first().map_or(0, |(token, _)| *token)
}

/// A number from 0 (inclusive) to 1 (exclusive) for a seed and a position: SplitMix64 (Steele, Lea, Flood 2014) over
/// both.
fn uniform(seed: u64, position: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let bits = mix(mix(seed.wrapping_add(golden)).wrapping_add(position.wrapping_mul(golden)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOTHING: History<'_> = History { prompt: &[], generated: &[] };

    fn warm() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
    }

    fn drawn(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
        let mut all: Vec<_> = (0..300)
            .map(|seed| sample(&mut logits.to_vec(), &SamplingParams { seed, ..params.clone() }, &NOTHING))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    #[test]
    fn greedy_takes_the_largest_and_the_first_among_equals() {
        let greedy = SamplingParams::greedy();
        assert_eq!(sample(&mut [0.5, 2.0, f32::NAN, 2.0], &greedy, &NOTHING), 1);
    }

    #[test]
    fn cuts_leave_the_right_candidates() {
        let logits = [0.0, 3.0, 2.0, 1.0, -1.0];
        assert_eq!(drawn(&logits, &warm()), vec![0, 1, 2, 3, 4]);
        assert_eq!(drawn(&logits, &SamplingParams { top_k: 2, ..warm() }), vec![1, 2]);
        // Shares of the largest: 1, 0.37, 0.14, 0.05, 0.02.
        assert_eq!(drawn(&logits, &SamplingParams { min_p: 0.1, ..warm() }), vec![1, 2, 3]);
        // Probabilities: 0.64, 0.23, 0.09, 0.03, 0.01.
        assert_eq!(drawn(&logits, &SamplingParams { top_p: 0.6, ..warm() }), vec![1]);
        assert_eq!(drawn(&logits, &SamplingParams { top_p: 0.7, ..warm() }), vec![1, 2]);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = SamplingParams::greedy();
        let history = History { prompt: &[1], generated: &[2, 2] };
        let pick = |params: &SamplingParams| sample(&mut [1.0, 1.6, 1.7, -5.0], params, &history);
        assert_eq!(pick(&greedy), 2);
        assert_eq!(pick(&SamplingParams { presence_penalty: 0.2, ..greedy.clone() }), 1);
        assert_eq!(pick(&SamplingParams { frequency_penalty: 0.06, ..greedy.clone() }), 1);
        assert_eq!(pick(&SamplingParams { repetition_penalty: 1.9, ..greedy.clone() }), 0);
        assert_eq!(pick(&SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy }), 3);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 2.0_f32.ln()];
        let ones = (0..6000).filter(|seed| {
            let params = SamplingParams { seed: *seed, ..warm() };
            sample(&mut logits.to_vec(), &params, &NOTHING) == 1
        });
        let share = ones.count() as f64 / 6000.0;
        // Four standard deviations of a share of 2/3 over 6000 draws are 0.024.
        assert!((share - 2.0 / 3.0).abs() < 0.024, "{share}");
    }

    proptest! {
        #[test]
        fn the_draw_depends_on_seed_and_position_alone(
            logits in prop::collection::vec(-20.0_f32..20.0, 1..50), seed: u64, length in 0_usize..20,
            temperature in 0.01_f32..2.0, top_p in 0.01_f32..=1.0, top_k in 0_usize..60, min_p in 0.0_f32..=1.0,
        ) {
            let params = SamplingParams { temperature, top_p, top_k, min_p, seed, ..SamplingParams::greedy() };
            let tokens = vec![0; length];
            let pick = |split: usize| {
                let history = History { prompt: &tokens[..split], generated: &tokens[split..] };
                sample(&mut logits.clone(), &params, &history)
            };
            let token = pick(0);
            prop_assert!((token as usize) < logits.len());
            prop_assert_eq!(token, pick(length));
        }

        #[test]
        fn broken_logits_still_give_a_token(
            logits in prop::collection::vec(prop::num::f32::ANY, 1..20), seed: u64,
        ) {
            let count = logits.len();
            let params = SamplingParams { seed, top_p: 0.9, ..warm() };
            prop_assert!((sample(&mut logits.clone(), &params, &NOTHING) as usize) < count);
        }
    }
}
