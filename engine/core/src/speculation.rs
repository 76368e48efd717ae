//! Prompt-lookup speculation: what followed the same few tokens before is guessed to follow them again.
//!
//! A draft is computed together with the token that is due; the sampler then takes drafted tokens for as long as they
//! are what it would have drawn anyway, so the text is the same with and without. Whether drafting pays is decided
//! from two measurements: how often this sequence's drafts were right, and what one more row costs a step.

use crate::sequence::TokenId;

/// Tokens of a draft, at most: with the one that is due, eight rows, for which a card reads its weights once.
pub const MAX_DRAFT: usize = 7;
/// The longest run of tokens that is looked for, and the shortest that counts as a repetition.
const RUN: std::ops::RangeInclusive<usize> = 2..=4;

/// What a step costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    /// One more row's share of a step with a single row: 1 where nothing is gained by computing rows together.
    pub row_share: f32,
}

impl Default for StepCost {
    /// Before anything is measured drafts are taken to be nearly free.
    fn default() -> Self {
        Self { row_share: 0.1 }
    }
}

/// How drafting goes for one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acceptance {
    /// Estimated probability that a drafted token is right, given that those before it are.
    rate: f32,
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { rate: Self::HOPE }
    }
}

impl Acceptance {
    /// What is believed of text that repeats itself before anything is known, and what silence leads back to.
    const HOPE: f32 = 0.7;
    /// Weight of the newest draft.
    const NEWEST: f32 = 0.25;
    /// What a step without a draft gives back, so that a sequence tries again after some tens of tokens.
    const RECOVERY: f32 = 0.005;

    /// How many tokens to draft: as long as the chance that one is taken exceeds what its row costs.
    #[must_use]
    pub fn draft_length(&self, cost: StepCost) -> usize {
        let mut chance = 1.0;
        (0..MAX_DRAFT)
            .take_while(|_| {
                chance *= self.rate;
                chance > cost.row_share
            })
            .count()
    }

    /// Learns from a step: of `drafted` tokens the first `accepted` were right.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.rate = (self.rate + Self::RECOVERY).min(Self::HOPE.max(self.rate));
            return;
        }
        // Tokens behind the first wrong one say nothing.
        let judged = (accepted + 1).min(drafted);
        self.rate += Self::NEWEST * (accepted as f32 / judged as f32 - self.rate);
    }
}

/// What followed the latest earlier occurrence of the last tokens, at most `length` of it; the longest run counts.
#[must_use]
pub fn propose(tokens: &[TokenId], length: usize) -> &[TokenId] {
    for run in RUN.rev() {
        let Some(start) = tokens.len().checked_sub(run).filter(|_| length > 0) else { continue };
        let wanted = &tokens[start..];
        let earlier = (0..start).rev().find(|at| tokens[*at..].starts_with(wanted));
        if let Some(at) = earlier {
            let from = at + run;
            return &tokens[from..(from + length).min(tokens.len())];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_latest_repetition_is_proposed() {
        for (tokens, length, expected) in [
            (&[1, 2, 3, 9, 8, 1, 2, 3][..], 3, &[9, 8, 1][..]),
            (&[1, 2, 3, 9, 8, 1, 2, 3], 1, &[9]),
            // A longer run wins over a later one, and of equal ones the later.
            (&[4, 1, 2, 3, 5, 9, 2, 3, 6, 4, 1, 2, 3], 2, &[5, 9]),
            (&[2, 3, 5, 2, 3, 6, 2, 3], 2, &[6, 2]),
            (&[7, 7, 7, 7], 4, &[7]),
            (&[1, 2, 3, 4], 4, &[]),
            (&[1, 1], 4, &[]),
            (&[], 4, &[]),
            (&[1, 2, 1, 2], 0, &[]),
        ] {
            assert_eq!(propose(tokens, length), expected, "{tokens:?}");
        }
    }

    #[test]
    fn drafting_stops_while_it_costs_more_than_it_brings_and_is_tried_again() {
        let cost = StepCost { row_share: 0.3 };
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.draft_length(cost), 3);
        for _ in 0..20 {
            acceptance.learn(4, 4);
        }
        assert_eq!(acceptance.draft_length(cost), MAX_DRAFT);
        for _ in 0..20 {
            acceptance.learn(4, 0);
        }
        assert_eq!(acceptance.draft_length(cost), 0);
        let silent = (0..1000).take_while(|_| {
            acceptance.learn(0, 0);
            acceptance.draft_length(cost) == 0
        });
        assert!((10..200).contains(&silent.count()));
        assert_eq!(acceptance.draft_length(StepCost { row_share: 1.0 }), 0);
    }
}
