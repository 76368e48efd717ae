//! Notices a step that does not come back: a device that hangs answers no call, and the worker cannot be interrupted.
//!
//! Only time that the watchdog itself was running counts, so a process that was stopped or starved as a whole is not
//! taken for one that hangs.

use crate::error::Fatal;
use crate::status::Status;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks.
const POLL: Duration = Duration::from_millis(100);
/// The shortest time that a step is given.
const LEAST: Duration = Duration::from_secs(3);
/// How many times the slowest step seen a step is given.
const FACTOR: u32 = 10;

/// What it has seen of the step that runs.
#[derive(Debug, Default)]
pub struct Watchdog {
    step: Option<u64>,
    waited: Duration,
}

impl Watchdog {
    /// Looks once, `since` after it looked last: `step` is the one that runs, `slowest` the time of the slowest that
    /// came back. The answer is how long the step has run, where that is too long.
    pub fn look(&mut self, step: Option<u64>, slowest: Duration, since: Duration) -> Option<Duration> {
        if self.step != step || step.is_none() {
            *self = Self { step, waited: Duration::ZERO };
            return None;
        }
        self.waited += since.min(2 * POLL);
        (self.waited > LEAST.max(FACTOR * slowest)).then_some(self.waited)
    }
}

/// Watches the worker's steps on a thread of its own until one hangs, and then calls `hung` once.
///
/// # Errors
/// The thread cannot be started.
pub fn spawn(status: Arc<Status>, hung: impl FnOnce(Fatal) + Send + 'static) -> Result<(), Fatal> {
    let watch = move || {
        let (mut watchdog, mut last) = (Watchdog::default(), Instant::now());
        loop {
            std::thread::sleep(POLL);
            let since = last.elapsed();
            last = Instant::now();
            let (step, slowest) = status.progress.step();
            if let Some(waited) = watchdog.look(step, slowest, since) {
                let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                return hung(Fatal::Hang { waited: millis(waited), slowest: millis(slowest) });
            }
        }
    };
    let spawned = std::thread::Builder::new().name("watchdog".into()).spawn(watch);
    spawned.map(|_| ()).map_err(|source| Fatal::System { what: "starting the watchdog", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks at a step that never ends it takes; `None` where a thousand are not enough.
    fn looks(slowest: Duration, since: Duration, step: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut watchdog = Watchdog::default();
        (0..1000).find(|look| watchdog.look(step(*look), slowest, since).is_some())
    }

    #[test]
    fn a_step_gets_three_seconds_or_ten_times_the_slowest() {
        for (slowest, expected) in [(0, 31), (200, 31), (500, 51), (5000, 501)] {
            assert_eq!(looks(Duration::from_millis(slowest), POLL, |_| Some(7)), Some(expected), "{slowest}");
        }
    }

    #[test]
    fn steps_that_end_and_idle_times_never_hang() {
        assert_eq!(looks(Duration::ZERO, POLL, |look| Some(look / 20)), None);
        assert_eq!(looks(Duration::ZERO, POLL, |_| None), None);
    }

    #[test]
    fn a_process_that_was_stopped_is_not_taken_for_hanging() {
        assert_eq!(looks(Duration::ZERO, Duration::from_secs(60), |look| Some(look / 10)), None);
    }
}
