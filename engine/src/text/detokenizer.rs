//! Text out of token bytes, one token at a time.

/// Joins tokens' bytes and gives out whole characters.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character whose rest has not come yet.
    held: Vec<u8>,
}

impl Detokenizer {
    /// Adds a token's bytes; the text that is complete now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            if used + invalid.len() == self.held.len() && may_continue(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.held.drain(..used);
        text
    }

    /// What is left when no token follows: a replacement character for an unfinished one.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether more bytes can make these a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unfinished_character_is_held_back() {
        let mut detokenizer = Detokenizer::default();
        let crab = "🦀".as_bytes();
        assert_eq!(detokenizer.push(&[b'a', crab[0], crab[1]]), "a");
        assert_eq!(detokenizer.push(&crab[2..3]), "");
        assert_eq!(detokenizer.push(&[crab[3], b'b']), "🦀b");
        assert_eq!(detokenizer.push(&[crab[0]]), "");
        assert_eq!(detokenizer.push(b"x"), "\u{fffd}x");
        assert_eq!(
            (detokenizer.push(&crab[..3]), detokenizer.finish()),
            (String::new(), "\u{fffd}".to_owned())
        );
    }

    proptest! {
        #[test]
        fn tokens_join_to_what_the_bytes_say(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..20),
        ) {
            let mut detokenizer = Detokenizer::default();
            let mut text: String = pieces.iter().map(|piece| detokenizer.push(piece)).collect();
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }
    }
}
