//! Llama's SentencePiece vocabularies as byte-pair merges.
//!
//! SentencePiece joins the pair whose result has the best score, again and again. Ordering every possible pair by its
//! result's score gives merges that do the same (transformers' `LlamaConverter` does it so).

use std::collections::HashMap;

/// The merges of a vocabulary with scores, best first.
pub fn merges(tokens: &[&str], scores: &[f32]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut ordered: Vec<usize> = (0..tokens.len().min(scores.len())).collect();
    ordered.sort_by(|left, right| scores[*right].total_cmp(&scores[*left]).then(left.cmp(right)));
    let mut merges = Vec::new();
    for id in ordered {
        let token = tokens[id];
        let borders = token.char_indices().skip(1).map(|(border, _)| token.split_at(border));
        let mut pairs: Vec<(usize, usize)> =
            borders.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).collect();
        pairs.sort_unstable();
        merges.extend(
            pairs.into_iter().map(|(left, right)| (tokens[left].to_owned(), tokens[right].to_owned())),
        );
    }
    merges
}

/// The byte of a `<0x0A>` token.
pub fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_scored_results_merge_first() {
        let merged = merges(&["a", "b", "c", "bc", "ab", "abc"], &[0.0, 0.0, 0.0, -1.0, -2.0, -3.0]);
        let expected = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")];
        assert_eq!(merged, expected.map(|(left, right)| (left.to_owned(), right.to_owned())));
    }

    #[test]
    fn byte_tokens_are_read() {
        assert_eq!(["<0x0A>", "<0xfF>", "<0x>", "x"].map(byte_token), [Some(10), Some(255), None, None]);
    }
}
