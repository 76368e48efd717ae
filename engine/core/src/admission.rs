//! The waiting line: priorities first, then first in, first out.
//!
//! How long the line may be is decided where requests arrive ([`check`]), so that a refusal is immediate; sequences
//! that were preempted come back to their old place and are never refused.

use crate::program::BLOCK_TOKENS;
use crate::request::ValidRequest;
use std::collections::BTreeMap;

/// Why a request is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is at its limit.
    #[error("{waiting} requests are waiting, which is the limit")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
    },
    /// The whole cache could not hold the request alone.
    #[error(
        "prompt and answer need {needed} tokens of KV cache, and there are {available}: shorten the prompt or lower \
         max_tokens"
    )]
    NeverFits {
        /// Tokens of the request.
        needed: usize,
        /// Tokens of the whole cache.
        available: usize,
    },
}

/// What a server can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Requests that may wait.
    pub queue: usize,
    /// Blocks of the KV cache.
    pub blocks: usize,
}

/// Whether a request may join a line of `waiting`.
///
/// # Errors
/// The line is full, or the request can never be served.
pub fn check(request: &ValidRequest, waiting: usize, capacity: &Capacity) -> Result<(), Refusal> {
    check_tokens(request.positions(), waiting, capacity)
}

/// The same for work of this many tokens.
///
/// # Errors
/// As [`check`].
pub fn check_tokens(needed: usize, waiting: usize, capacity: &Capacity) -> Result<(), Refusal> {
    if needed.div_ceil(BLOCK_TOKENS) > capacity.blocks {
        return Err(Refusal::NeverFits { needed, available: capacity.blocks * BLOCK_TOKENS });
    }
    if waiting >= capacity.queue {
        return Err(Refusal::QueueFull { waiting });
    }
    Ok(())
}

/// A place in line: smaller ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Lower ones come first.
    priority: i32,
    /// Counts arrivals.
    arrival: u64,
}

impl Place {
    /// The place of the `arrival`-th request with this priority; lower priorities come first, as with vLLM.
    #[must_use]
    pub fn new(priority: i32, arrival: u64) -> Self {
        Self { priority, arrival }
    }
}

/// What waits, by place.
#[derive(Debug)]
pub struct WaitingLine<T> {
    waiting: BTreeMap<Place, T>,
}

impl<T> Default for WaitingLine<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new() }
    }
}

impl<T> WaitingLine<T> {
    /// Puts something at its place.
    pub fn insert(&mut self, place: Place, item: T) {
        let old = self.waiting.insert(place, item);
        debug_assert!(old.is_none(), "two at one place");
    }

    /// What waits, first to last.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        self.waiting.iter().map(|(place, item)| (*place, item))
    }

    /// Takes what waits at a place.
    pub fn take(&mut self, place: Place) -> Option<T> {
        self.waiting.remove(&place)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Draft, Limits};

    #[test]
    fn priorities_come_first_and_then_arrivals() {
        let mut line = WaitingLine::default();
        for (priority, arrival, name) in [(0, 1, "b"), (0, 0, "a"), (-5, 3, "urgent"), (1, 2, "late")] {
            line.insert(Place::new(priority, arrival), name);
        }
        let order: Vec<&str> = line.iter().map(|(_, name)| *name).collect();
        assert_eq!(order, ["urgent", "a", "b", "late"]);
        assert_eq!((line.take(Place::new(0, 0)), line.len()), (Some("a"), 3));
        assert_eq!(line.take(Place::new(0, 0)), None);
    }

    #[test]
    fn a_full_line_and_what_never_fits_are_refused_with_the_numbers() {
        let limits = Limits { context_tokens: 100, vocabulary: 10 };
        let draft = |max_tokens| Draft { max_tokens: Some(max_tokens), ..Draft::greedy(vec![1; 20]) };
        let request = |max_tokens| ValidRequest::new(draft(max_tokens), &limits).unwrap();
        let capacity = Capacity { queue: 2, blocks: 3 };
        for (max_tokens, waiting, expected) in [
            (28, 1, Ok(())),
            (29, 0, Err(Refusal::NeverFits { needed: 49, available: 48 })),
            (28, 2, Err(Refusal::QueueFull { waiting: 2 })),
        ] {
            assert_eq!(check(&request(max_tokens), waiting, &capacity), expected);
        }
    }
}
