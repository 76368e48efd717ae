//! How many further attempts the requests of a model may make, so that retries cannot multiply an overload.
//!
//! The first retry of a request is free: when an engine is lost, everything that it held moves at once. Every further
//! one draws on the budget, which grows with requests and with time.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Retries that one request earns.
const PER_REQUEST: f64 = 0.25;
/// Retries that a second earns, so that a quiet model can retry too.
const PER_SECOND: f64 = 10.0;
/// No more is saved than this.
const MOST: f64 = 200.0;

/// The budget of one model.
#[derive(Debug)]
pub struct RetryBudget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    retries: f64,
    at: Instant,
}

impl RetryBudget {
    /// A full one.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { state: Mutex::new(State { retries: MOST, at: now }) }
    }

    /// A request came in.
    pub fn earn(&self, now: Instant) {
        self.update(now, |state| state.retries = (state.retries + PER_REQUEST).min(MOST));
    }

    /// Takes one retry, if there is one.
    pub fn spend(&self, now: Instant) -> bool {
        self.update(now, |state| {
            let may = state.retries >= 1.0;
            state.retries -= if may { 1.0 } else { 0.0 };
            may
        })
    }

    /// Whole retries that are left.
    #[must_use]
    pub fn left(&self, now: Instant) -> u64 {
        self.update(now, |state| state.retries as u64)
    }

    fn update<T>(&self, now: Instant, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.saturating_duration_since(state.at).as_secs_f64();
        state.retries = (state.retries + seconds * PER_SECOND).min(MOST);
        state.at = state.at.max(now);
        act(&mut state)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_storm_of_retries_ends_and_time_and_requests_earn_new_ones() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        let spent = (0..1_000).filter(|_| budget.spend(start)).count();
        assert_eq!((spent, budget.left(start)), (200, 0));
        (0..10).for_each(|_| budget.earn(start));
        assert_eq!(budget.left(start), 2);
        assert_eq!(budget.left(start + Duration::from_secs(1)), 12);
        assert_eq!(budget.left(start + Duration::from_secs(1_000)), 200);
    }
}
