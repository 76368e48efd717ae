//! Stop strings, also where they span tokens.

/// Passes text on and holds back what may be the beginning of a stop string.
#[derive(Debug)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text to give out.
    pub text: String,
    /// The stop string that was met; the text ends before it.
    pub stopped: Option<String>,
}

impl StopFilter {
    /// A filter for these strings; empty ones are left out.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) -> Passed {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min() {
            self.held.truncate(at);
            return Passed { text: std::mem::take(&mut self.held), stopped: Some(stop.clone()) };
        }
        let kept = self.stops.iter().map(|stop| beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// What was held back, when no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn beginning(text: &str, stop: &str) -> usize {
    let mut lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.find(|length| text.ends_with(&stop[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stop_string_across_pieces_is_found_and_not_given_out() {
        let mut filter = StopFilter::new(vec!["END".into(), "\n\n".into()]);
        assert_eq!(filter.push("a E"), Passed { text: "a ".into(), stopped: None });
        assert_eq!(filter.push("N"), Passed { text: String::new(), stopped: None });
        assert_eq!(filter.push("T E"), Passed { text: "ENT ".into(), stopped: None });
        assert_eq!(filter.push("NDx"), Passed { text: String::new(), stopped: Some("END".into()) });
    }

    #[test]
    fn what_was_held_comes_out_at_the_end() {
        let mut filter = StopFilter::new(vec!["stop".into()]);
        assert_eq!((filter.push("xsto").text, filter.finish()), ("x".into(), "sto".into()));
    }

    proptest! {
        #[test]
        fn cutting_the_text_elsewhere_changes_nothing(
            text in "[abé]{0,30}", stop in "[abé]{1,4}", cuts in prop::collection::vec(0_usize..30, 0..6),
        ) {
            let expected = text.split(stop.as_str()).next().unwrap_or("").to_owned();
            let mut filter = StopFilter::new(vec![stop.clone()]);
            let (mut out, mut stopped) = (String::new(), false);
            let characters: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                if stopped { break }
                let passed = filter.push(&characters[pair[0]..pair[1]].iter().collect::<String>());
                out.push_str(&passed.text);
                stopped = passed.stopped.is_some();
            }
            if !stopped { out.push_str(&filter.finish()) }
            prop_assert_eq!(stopped, text.contains(stop.as_str()));
            prop_assert_eq!(out, expected);
        }
    }
}
