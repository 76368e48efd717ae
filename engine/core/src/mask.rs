//! What a grammar lets a sequence say next.

use crate::sequence::TokenId;

/// One bit a token of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    words: Vec<u32>,
    length: usize,
}

impl BitMask {
    /// A mask of this many tokens, none of them allowed.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self { words: vec![0; length.div_ceil(32)], length }
    }

    /// Tokens of the vocabulary.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no token is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Forbids all tokens.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Allows a token; one beyond the vocabulary is ignored.
    pub fn allow(&mut self, token: TokenId) {
        if (token as usize) < self.length {
            self.words[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Whether a token is allowed.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        (token as usize) < self.length && self.words[token as usize / 32] >> (token % 32) & 1 == 1
    }

    /// The bits, 32 a word, lowest first.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The bits, 32 a word, lowest first, for grammars that write them whole. Bits beyond the vocabulary must stay 0.
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    /// Makes forbidden tokens impossible: their logits become negative infinity.
    pub fn apply(&self, logits: &mut [f32]) {
        for (word, logits) in self.words.iter().zip(logits.chunks_mut(32)) {
            if *word != u32::MAX {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Why a grammar cannot tell any more what may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// It takes more time than others can be made to wait.
    #[error("finding what may come next takes too long")]
    TooSlow,
    /// It grew beyond what its library takes, or a token came that it does not allow, such as one that an answer was
    /// resumed with.
    #[error("there are too many ways to go on, or none")]
    Stuck,
}

/// The state of one choice's grammar. The worker asks it before every draw and tells it every token that was drawn.
///
/// Tokens that a resumed choice begins with must have been accepted before the mask is handed over. Rejected drafts
/// are never accepted, so there is no way back.
pub trait TokenMask: Send {
    /// Writes the tokens that may come next; `mask` is cleared before. A mask without any token ends the answer.
    ///
    /// # Errors
    /// It cannot tell, now and ever after.
    fn allowed(&mut self, mask: &mut BitMask) -> Result<(), MaskError>;

    /// Goes on by a token that was allowed.
    fn accept(&mut self, token: TokenId);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_tokens_keep_their_logits() {
        let mut mask = BitMask::new(70);
        assert!(mask.is_empty());
        for token in [0, 33, 69, 70, 1000] {
            mask.allow(token);
        }
        assert!(mask.allows(33) && !mask.allows(34) && !mask.allows(70));
        let mut logits = vec![1.0; 70];
        mask.apply(&mut logits);
        let kept: Vec<usize> = (0..70).filter(|token| logits[*token] == 1.0).collect();
        assert_eq!(kept, [0, 33, 69]);
        mask.clear();
        assert!(mask.is_empty());
    }
}
