//! The tokens that a chunk's logits lead to.

use crate::mask::{BitMask, MaskError, TokenMask};
use crate::plan::Chunk;
use crate::sampler::{History, Rules, Sampled, TokenLogprobs, logprobs_of, sample};
use crate::sequence::{Sequence, TokenId};

/// A sequence's grammar, with room for what it allows.
pub struct Grammar {
    mask: Box<dyn TokenMask>,
    bits: BitMask,
}

impl Grammar {
    /// A grammar over a vocabulary.
    #[must_use]
    pub fn new(mask: Box<dyn TokenMask>, vocabulary: usize) -> Self {
        Self { mask, bits: BitMask::new(vocabulary) }
    }

    fn allowed(&mut self, ends: &[TokenId]) -> Result<&[u32], MaskError> {
        self.bits.clear();
        self.mask.allowed(&mut self.bits)?;
        if self.bits.is_empty() {
            // Nothing may come, so the answer ends.
            ends.iter().for_each(|token| self.bits.allow(*token));
        }
        Ok(self.bits.words())
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

/// Draws the tokens that follow a chunk: one where nothing was drafted, and one more for each drafted token that is
/// what was drawn. Each is drawn from its own row with its own history, so drafts change no token.
///
/// # Errors
/// The grammar cannot tell what may come first. Where that happens behind a draft, what was drawn before it is kept and
/// the next call tells.
///
/// # Shapes
/// `logits`: `[chunk.draw_rows(), vocabulary]`, changed in place.
pub fn choose(
    chunk: &Chunk,
    logits: &mut [f32],
    sequence: &Sequence,
    end_tokens: &[TokenId],
    mut grammar: Option<&mut Grammar>,
) -> Result<Vec<Sampled>, MaskError> {
    let (ends, prompt) = (sequence.ends(end_tokens), sequence.prompt());
    let mut generated = sequence.generated().to_vec();
    let drafts = &chunk.tokens[chunk.tokens.len() - chunk.drafted..];
    let vocabulary = logits.len() / chunk.draw_rows().max(1);
    let mut chosen = Vec::new();
    for (row, logits) in logits.chunks_exact_mut(vocabulary.max(1)).enumerate() {
        let allowed = match grammar.as_mut().map(|grammar| grammar.allowed(&ends)).transpose() {
            Ok(allowed) => allowed,
            Err(error) if chosen.is_empty() => return Err(error),
            Err(_) => break,
        };
        let history = History { prompt, generated: &generated };
        let sampled = sample(logits, sequence.sampling(), &history, &Rules { ends: &ends, allowed });
        let token = sampled.token;
        chosen.push(sampled);
        if let Some(grammar) = &mut grammar
            && !ends.contains(&token)
        {
            grammar.mask.accept(token);
        }
        if drafts.get(row) != Some(&token) || ends.contains(&token) {
            break;
        }
        generated.push(token);
    }
    Ok(chosen)
}

/// What the model thought of the prompt's tokens after a chunk's `prompt_rows`, in order of position.
///
/// # Shapes
/// `logits`: `[chunk.prompt_rows, vocabulary]`.
pub fn prompt_logprobs(chunk: &Chunk, logits: &[f32], prompt: &[TokenId], top: usize) -> Vec<TokenLogprobs> {
    let vocabulary = logits.len() / chunk.prompt_rows.max(1);
    let after = chunk.start + chunk.tokens.len() - chunk.logit_rows + 1;
    let rows = logits.chunks_exact(vocabulary.max(1)).zip(prompt.iter().skip(after));
    rows.map(|(logits, token)| logprobs_of(logits, top, *token)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;
    use crate::request::{Draft, Limits, ValidRequest};
    use crate::sequence::SequenceId;
    use std::sync::Arc;

    const VOCABULARY: usize = 6;

    fn sequence(sampling: SamplingParams) -> Sequence {
        let draft = Draft { sampling, ..Draft::greedy(vec![1, 2]) };
        let request =
            ValidRequest::new(draft, &Limits { context_tokens: 50, vocabulary: VOCABULARY }).unwrap();
        Sequence::new(SequenceId(0), Arc::new(request), 0)
    }

    fn chunk(drafts: &[TokenId]) -> Chunk {
        let tokens = [&[2], drafts].concat();
        let (drafted, logit_rows) = (drafts.len(), drafts.len() + 1);
        let (sequence, blocks) = (SequenceId(0), vec![0]);
        Chunk { sequence, start: 1, tokens, drafted, logit_rows, prompt_rows: 0, hidden_rows: 0, blocks }
    }

    /// Rows whose largest logits are at these tokens.
    fn rows(tokens: &[TokenId]) -> Vec<f32> {
        let row = |token: &TokenId| {
            let token = *token as usize;
            (0..VOCABULARY).map(move |index| if index == token { 2.0 } else { 0.0 })
        };
        tokens.iter().flat_map(row).collect()
    }

    fn tokens(sampled: &[Sampled]) -> Vec<TokenId> {
        sampled.iter().map(|sampled| sampled.token).collect()
    }

    #[test]
    fn drafts_are_kept_while_they_are_what_is_drawn() {
        for (drafts, best, expected) in [
            (&[][..], &[4][..], &[4][..]),
            (&[4, 3], &[4, 3, 1], &[4, 3, 1]),
            (&[4, 3], &[4, 1, 1], &[4, 1]),
            (&[4, 3], &[1, 3, 1], &[1]),
            (&[5, 3], &[5, 3, 1], &[5]),
        ] {
            let sequence = sequence(SamplingParams::greedy());
            let chosen = choose(&chunk(drafts), &mut rows(best), &sequence, &[5], None).unwrap();
            assert_eq!(tokens(&chosen), expected, "{drafts:?} {best:?}");
        }
    }

    #[test]
    fn a_prompts_tokens_are_told_as_likely_as_they_are() {
        let (sequence, blocks) = (SequenceId(0), vec![0]);
        // Positions 2 to 4 of a prompt of five; the rows of 2 and 3 are about what follows them, that of 4 draws.
        let (tokens, logit_rows) = (vec![3, 1, 4], 3);
        let chunk = Chunk {
            sequence,
            start: 2,
            tokens,
            drafted: 0,
            logit_rows,
            prompt_rows: 2,
            hidden_rows: 0,
            blocks,
        };
        let told = prompt_logprobs(&chunk, &rows(&[1, 2]), &[0, 2, 3, 1, 4], 1);
        let best = 2.0 - (5.0 + 2.0_f32.exp()).ln();
        assert_eq!(told.len(), 2);
        assert!((told[0].chosen - best).abs() < 1e-6 && told[0].top[0].0 == 1, "{told:?}");
        assert!((told[1].chosen - (best - 2.0)).abs() < 1e-6 && told[1].top[0].0 == 2, "{told:?}");
    }

    #[test]
    fn penalties_see_the_drafts_before_them() {
        let sampling = SamplingParams { frequency_penalty: 1.5, ..SamplingParams::greedy() };
        let mut logits = rows(&[4, 4]);
        logits[VOCABULARY + 3] = 1.0;
        let chosen = choose(&chunk(&[4]), &mut logits, &sequence(sampling), &[5], None).unwrap();
        assert_eq!(tokens(&chosen), [4, 3]);
    }

    /// Allows 3 and then 4, and then nothing, or fails.
    struct ThreeFour {
        seen: Vec<TokenId>,
        fails: bool,
    }

    impl ThreeFour {
        fn grammar(fails: bool) -> Grammar {
            Grammar::new(Box::new(Self { seen: Vec::new(), fails }), VOCABULARY)
        }
    }

    impl TokenMask for ThreeFour {
        fn allowed(&mut self, mask: &mut BitMask) -> Result<(), MaskError> {
            match [3, 4].get(self.seen.len()) {
                None if self.fails => return Err(MaskError::Stuck),
                next => next.into_iter().for_each(|token| mask.allow(*token)),
            }
            Ok(())
        }

        fn accept(&mut self, token: TokenId) {
            self.seen.push(token);
        }
    }

    #[test]
    fn a_grammar_advances_with_every_token_and_ends_the_answer() {
        let mut grammar = ThreeFour::grammar(false);
        let sequence = sequence(SamplingParams::greedy());
        let chosen = choose(&chunk(&[3, 4]), &mut rows(&[1, 1, 1]), &sequence, &[5], Some(&mut grammar));
        assert_eq!(tokens(&chosen.unwrap()), [3, 4, 5]);
    }

    #[test]
    fn a_grammar_that_fails_behind_drafts_loses_nothing_before_it_says_so() {
        let mut grammar = ThreeFour::grammar(true);
        let sequence = sequence(SamplingParams::greedy());
        let mut choose = |drafts: &[TokenId], best: &[TokenId]| {
            choose(&chunk(drafts), &mut rows(best), &sequence, &[5], Some(&mut grammar))
        };
        assert_eq!(tokens(&choose(&[3, 4], &[1, 1, 1]).unwrap()), [3, 4]);
        assert_eq!(choose(&[], &[1]).unwrap_err(), MaskError::Stuck);
    }
}
