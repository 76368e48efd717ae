//! What one choice shows of its tokens: bytes to text, stop strings, then reasoning, content and tool calls.
//!
//! A pure function of the tokens so far, so a broken stream is resumed by feeding its tokens again and showing only
//! what follows.

use super::answer::{AnswerParser, AnswerRules, Part};
use super::stop::Passed;
use super::{Detokenizer, StopFilter};
use atlas_engine_core::FinishReason;

/// How to show a choice.
#[derive(Debug, Clone, Default)]
pub struct ChoiceRules {
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Whether the string that ended the answer is shown.
    pub include_stop: bool,
    /// Tokens in whose text no stop string is looked for.
    pub min_tokens: usize,
    /// How to read the text.
    pub answer: AnswerRules,
}

/// What a token leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// New parts; empty where everything is held back.
    pub parts: Vec<Part>,
    /// Set where the answer ends here.
    pub finish: Option<FinishReason>,
}

/// One choice being shown.
#[derive(Debug)]
pub struct Choice {
    detokenizer: Detokenizer,
    stop: StopFilter,
    include_stop: bool,
    /// Tokens that are still to come before stop strings are looked for.
    patience: usize,
    answer: AnswerParser,
    stopped_by: Option<String>,
}

impl Choice {
    /// A choice without tokens.
    pub fn new(rules: ChoiceRules) -> Self {
        let ChoiceRules { stop, include_stop, min_tokens, answer } = rules;
        Self {
            detokenizer: Detokenizer::default(),
            stop: StopFilter::new(stop),
            include_stop,
            patience: min_tokens,
            answer: AnswerParser::new(answer),
            stopped_by: None,
        }
    }

    /// Takes a token's bytes; `finish` where the model ends with it.
    pub fn push(&mut self, bytes: &[u8], finish: Option<FinishReason>) -> Shown {
        // The token that ended the answer is no part of it, but a token at the limit is.
        let mut text = match finish {
            Some(FinishReason::Stop) => String::new(),
            Some(FinishReason::Length) | None => self.detokenizer.push(bytes),
        };
        if finish.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        let passed = match self.patience.checked_sub(1) {
            Some(left) => {
                self.patience = left;
                Passed { text, stopped: None }
            }
            None => self.stop.push(&text),
        };
        let mut text = passed.text;
        let finish = match passed.stopped {
            Some(stop) => {
                if self.include_stop {
                    text.push_str(&stop);
                }
                self.stopped_by = Some(stop);
                Some(FinishReason::Stop)
            }
            None => {
                if finish.is_some() {
                    text.push_str(&self.stop.finish());
                }
                finish
            }
        };
        let mut parts = self.answer.push(&text);
        if finish.is_some() {
            parts.extend(self.answer.finish());
        }
        Shown { parts, finish }
    }

    /// Whether what comes now are thoughts.
    pub fn is_thinking(&self) -> bool {
        self.answer.is_thinking()
    }

    /// Whether the answer calls a tool.
    pub fn has_calls(&self) -> bool {
        self.answer.has_calls()
    }

    /// The stop string that ended the answer.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(parts: &[Part]) -> String {
        parts.iter().map(|part| if let Part::Content(text) = part { text.as_str() } else { "" }).collect()
    }

    #[test]
    fn a_stop_string_ends_the_answer_and_shows_on_request_only() {
        for (include_stop, expected) in [(false, "a"), (true, "aEND")] {
            let mut choice =
                Choice::new(ChoiceRules { stop: vec!["END".into()], include_stop, ..ChoiceRules::default() });
            assert_eq!(text(&choice.push(b"aEN", None).parts), "a");
            let shown = choice.push(b"Dx", None);
            assert_eq!(
                (format!("a{}", text(&shown.parts)), shown.finish),
                (expected.into(), Some(FinishReason::Stop))
            );
            assert_eq!(choice.stopped_by(), Some("END"));
        }
    }

    #[test]
    fn no_stop_string_is_looked_for_in_the_first_tokens() {
        let rules = ChoiceRules { stop: vec!["END".into()], min_tokens: 2, ..ChoiceRules::default() };
        let mut choice = Choice::new(rules);
        // What begins within them does not count either.
        for piece in ["END", "EN", "D"] {
            let shown = choice.push(piece.as_bytes(), None);
            assert_eq!((text(&shown.parts).as_str(), shown.finish), (piece, None));
        }
        assert_eq!(choice.push(b"END", None).finish, Some(FinishReason::Stop));
    }

    #[test]
    fn thoughts_are_told_from_the_answer() {
        let answer = AnswerRules { reasoning: true, ..AnswerRules::default() };
        let mut choice = Choice::new(ChoiceRules { answer, ..ChoiceRules::default() });
        let tokens = ["<think>", "a", "b", "</think>", "c"];
        let thinking = tokens.map(|token| {
            choice.push(token.as_bytes(), None);
            choice.is_thinking()
        });
        assert_eq!(thinking, [true, true, true, false, false]);
    }

    #[test]
    fn what_is_held_back_comes_out_at_the_limit() {
        let mut choice = Choice::new(ChoiceRules { stop: vec!["END".into()], ..ChoiceRules::default() });
        assert_eq!(choice.push(b"E", None), Shown::default());
        let shown = choice.push("é".as_bytes().get(..1).unwrap(), Some(FinishReason::Length));
        assert_eq!((text(&shown.parts), shown.finish), ("E\u{fffd}".into(), Some(FinishReason::Length)));
    }

    proptest! {
        /// Feeding the first tokens again and showing only the rest gives the rest of the unbroken text.
        #[test]
        fn a_choice_resumes_at_every_token(
            tokens in prop::collection::vec(prop::collection::vec(prop::sample::select(b"abE\xc3\xa9".to_vec()), 0..4), 1..12),
            cut in 0_usize..12, stop in "[abEé]{1,3}",
        ) {
            let rules = ChoiceRules { stop: vec![stop], ..ChoiceRules::default() };
            let run = |skip: usize| {
                let mut choice = Choice::new(rules.clone());
                let (mut before, mut after) = (String::new(), String::new());
                for (index, token) in tokens.iter().enumerate() {
                    let finish = (index + 1 == tokens.len()).then_some(FinishReason::Length);
                    let shown = choice.push(token, finish);
                    if index < skip { &mut before } else { &mut after }.push_str(&text(&shown.parts));
                    if shown.finish.is_some() { break }
                }
                (before, after)
            };
            let (_, whole) = run(0);
            let (before, after) = run(cut);
            prop_assert_eq!(before + &after, whole);
        }
    }
}
