//! When a container that ended may start again, as a kubelet decides it.
//!
//! Pure: the clock is an argument. The first restart comes at once; each later one waits, 10 s doubling to 5 min,
//! and a container that ran twice the longest wait starts over.

use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(300);

/// The memory of one container's restarts.
#[derive(Debug)]
pub struct RestartBackoff {
    base: Duration,
    last: Option<(Instant, Duration)>,
}

impl RestartBackoff {
    /// Starts with `base` (10 s in a kubelet) as the first wait.
    pub fn new(base: Duration) -> Self {
        Self { base, last: None }
    }

    /// Notes that the container ended at `now` and says how long to wait before its next start.
    pub fn next_wait(&mut self, now: Instant) -> Duration {
        match self.last {
            Some((at, wait)) if now.saturating_duration_since(at) <= LONGEST * 2 => {
                // The next start happens after the wait, and time counts from there.
                self.last = Some((now + wait, (wait * 2).min(LONGEST)));
                wait
            }
            _ => {
                self.last = Some((now, self.base.min(LONGEST)));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let start = Instant::now();
        let mut backoff = RestartBackoff::new(Duration::from_secs(10));
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = backoff.next_wait(now);
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_forgets_earlier_crashes() {
        let start = Instant::now();
        let mut backoff = RestartBackoff::new(Duration::from_secs(10));
        backoff.next_wait(start);
        assert_eq!(backoff.next_wait(start + Duration::from_secs(599)), Duration::from_secs(10));
        assert_eq!(backoff.next_wait(start + Duration::from_secs(1300)), Duration::ZERO);
    }
}
