//! Picks the next token from logits.
//!
//! The draw is a function of seed and position, never of what else is in the batch or of a generator's history, so a
//! sequence that is resumed or recomputed elsewhere draws the same.
//! Order of the steps: logprobs of the model's own distribution, bias and penalties, what may not come now (grammar,
//! ends before `min_tokens`), greedy where the temperature is 0, temperature, top-k, typical, min-p, top-p, draw.
//! Typical, min-p and top-p see the probabilities after the temperature.

use crate::sampling_params::SamplingParams;
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

/// What may come at this position, whatever the model likes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules<'a> {
    /// Tokens that end the answer; they cannot come before `min_tokens`.
    pub ends: &'a [TokenId],
    /// A bit a token, 32 a word, lowest first: the tokens that a grammar allows. Everything where there is none.
    pub allowed: Option<&'a [u32]>,
}

/// Log-probabilities at one position, of the model's own distribution: before bias, penalties, grammar and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token's.
    pub chosen: f32,
    /// The most likely tokens', most likely first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// A picked token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Where the request asks for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// A token and its logit, later its weight.
type Candidate = (TokenId, f32);

/// Picks a token; `logits` has one value a vocabulary entry and is changed in place.
///
/// The position of the new token is the length of the history, so equal histories draw alike.
#[must_use]
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &History<'_>,
    rules: &Rules<'_>,
) -> Sampled {
    let distribution = params.top_logprobs.map(|count| Distribution::of(logits, count));
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    apply_penalties(logits, params, history);
    apply_rules(logits, params, history, rules);
    let token = if params.temperature <= 0.0 {
        argmax(logits)
    } else {
        let position = (history.prompt.len() + history.generated.len()) as u64;
        draw(&weighted(logits, params), uniform(params.seed, position))
    };
    Sampled { token, logprobs: distribution.map(|distribution| distribution.choose(token)) }
}

/// Log-probabilities of a token that is known already.
#[must_use]
pub fn logprobs_of(logits: &[f32], top: usize, token: TokenId) -> TokenLogprobs {
    Distribution::of(logits, top).choose(token)
}

/// The model's distribution at one position, before anything changes it.
struct Distribution {
    /// Logarithm of the sum of the logits' exponentials.
    log_sum: f32,
    /// The logits as they were: the chosen token is not known yet.
    logits: Vec<f32>,
    top: Vec<Candidate>,
}

impl Distribution {
    fn of(logits: &[f32], count: usize) -> Self {
        let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - maximum).exp()).sum();
        let log_sum = maximum + sum.ln() as f32;
        let mut top = if count == 0 { Vec::new() } else { largest(finite(logits), count) };
        for (_, logit) in &mut top {
            *logit -= log_sum;
        }
        Self { log_sum, logits: logits.to_vec(), top }
    }

    fn choose(self, token: TokenId) -> TokenLogprobs {
        let chosen = self.logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logit - self.log_sum);
        TokenLogprobs { chosen, top: self.top }
    }
}

fn apply_rules(logits: &mut [f32], params: &SamplingParams, history: &History<'_>, rules: &Rules<'_>) {
    let Rules { ends, allowed } = rules;
    if let Some(words) = allowed {
        for (token, logit) in logits.iter_mut().enumerate() {
            if words.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if history.generated.len() < params.min_tokens {
        // Where a grammar leaves nothing but an end, the end comes.
        let banned = |token: usize| ends.contains(&(token as TokenId));
        let others =
            logits.iter().enumerate().any(|(token, logit)| *logit > f32::NEG_INFINITY && !banned(token));
        for token in ends.iter().filter(|_| others) {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The tokens to draw from with their weights: after temperature and all cuts.
fn weighted(logits: &[f32], params: &SamplingParams) -> Vec<Candidate> {
    let mut candidates = match params.top_k {
        0 => finite(logits),
        count => largest(finite(logits), count),
    };
    let maximum = candidates.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
    // Infinities would make NaN of the difference; equal ones weigh the same.
    let weight =
        |logit: f32| if logit == maximum { 1.0 } else { ((logit - maximum) / params.temperature).exp() };
    for (_, value) in &mut candidates {
        *value = weight(*value);
    }
    if params.typical_p < 1.0 {
        keep_typical(&mut candidates, params.typical_p);
    }
    if params.min_p > 0.0 {
        let largest = candidates.iter().map(|(_, weight)| *weight).fold(0.0, f32::max);
        candidates.retain(|(_, weight)| *weight >= params.min_p * largest);
    }
    if params.top_p < 1.0 {
        candidates = keep_likely(candidates, params.top_p);
    }
    candidates
}

/// The most likely candidates that together have `share` of the weight, most likely first.
fn keep_likely(candidates: Vec<Candidate>, share: f32) -> Vec<Candidate> {
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    // A few hundred nearly always hold the share; sorting a whole vocabulary for them would be felt.
    let mut count = 256;
    loop {
        let everything = count >= candidates.len();
        let mut kept = largest(candidates.clone(), count);
        if let Some(length) = covering(&kept, f64::from(share) * total) {
            kept.truncate(length);
            return kept;
        }
        if everything {
            return kept;
        }
        count *= 8;
    }
}

/// How many candidates from the front reach a weight, at least one; `None` where all together do not.
fn covering(candidates: &[Candidate], wanted: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = candidates.iter().position(|(_, weight)| {
        sum += f64::from(*weight);
        sum >= wanted
    });
    reached.map(|index| index + 1)
}

/// Keeps the candidates whose surprise is nearest to the expected one, as many as have `share` of the weight (Meister
/// et al., "Locally Typical Sampling", 2022).
fn keep_typical(candidates: &mut Vec<Candidate>, share: f32) {
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let surprise = |weight: f32| -(f64::from(weight) / total).ln();
    let entropy: f64 = candidates
        .iter()
        .filter(|(_, weight)| *weight > 0.0)
        .map(|(_, weight)| f64::from(*weight) / total * surprise(*weight))
        .sum();
    let distance = |candidate: &Candidate| (surprise(candidate.1) - entropy).abs();
    candidates.sort_by(|left, right| distance(left).total_cmp(&distance(right)).then(left.0.cmp(&right.0)));
    let kept = covering(candidates, f64::from(share) * total).unwrap_or(candidates.len());
    candidates.truncate(kept);
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

/// All tokens with their logits; NaN counts as impossible.
fn finite(logits: &[f32]) -> Vec<Candidate> {
    let clean = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    logits.iter().enumerate().map(|(token, logit)| (token as TokenId, clean(*logit))).collect()
}

/// The `count` largest candidates, largest first; equal ones in the order of their ids.
fn largest(mut candidates: Vec<Candidate>, count: usize) -> Vec<Candidate> {
    let larger = |left: &Candidate, right: &Candidate| -> Ordering {
        right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
    };
    if count > 0 && count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, larger);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(larger);
    candidates
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
    let likeliest = candidates.iter().rev().max_by(|left, right| left.1.total_cmp(&right.1));
    likeliest.map_or(0, |(token, _)| *token)
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
#[path = "sampler_tests.rs"]
mod tests;
