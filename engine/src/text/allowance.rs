//! How long a grammar may keep the worker, which serves everybody else too.
//!
//! One computation that takes too long is called off by a thread of its own. Those that are long without being too long
//! use up an allowance that grows with the answer. Only time in which that thread was running counts against a
//! computation, so a process that was stopped as a whole calls nothing off.

use llguidance::CancellationHandle;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the thread looks.
const POLL: Duration = Duration::from_millis(50);
/// Looks that a computation may outlast.
const LOOKS: u32 = 6;
/// The longest that one computation counts for.
const MOST: Duration = Duration::from_millis(POLL.as_millis() as u64 * LOOKS as u64);
/// What every request has to begin with.
const FIRST: Duration = Duration::from_secs(1);
/// What each token adds: with a batch of four these are a step's time.
const A_TOKEN: Duration = Duration::from_millis(50);

/// Computations that run now, and how many looks each has outlasted.
#[derive(Default)]
struct Running {
    next: u64,
    handles: Vec<(u64, u32, CancellationHandle)>,
}

/// Calls off what takes too long.
#[derive(Clone, Default)]
pub struct Timekeeper(Arc<Mutex<Running>>);

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Timekeeper {
    /// A timekeeper whose thread ends with the last copy.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn() -> std::io::Result<Self> {
        let keeper = Self::default();
        let running = Arc::downgrade(&keeper.0);
        let watch = move || {
            while let Some(running) = Weak::upgrade(&running) {
                Self(running).look();
                std::thread::sleep(POLL);
            }
        };
        std::thread::Builder::new().name("grammar-time".into()).spawn(watch)?;
        Ok(keeper)
    }

    /// Looks once at what runs.
    fn look(&self) {
        for (_, looks, handle) in &mut lock(&self.0).handles {
            *looks += 1;
            if *looks > LOOKS {
                handle.cancel();
            }
        }
    }

    /// Runs a computation that the handle can call off.
    pub fn time<T>(&self, handle: CancellationHandle, compute: impl FnOnce() -> T) -> (T, Duration) {
        let id = {
            let mut running = lock(&self.0);
            running.next += 1;
            let id = running.next;
            running.handles.push((id, 0, handle));
            id
        };
        let began = Instant::now();
        let done = compute();
        let time = began.elapsed().min(MOST);
        lock(&self.0).handles.retain(|(other, ..)| *other != id);
        (done, time)
    }
}

/// What the grammar of a request has left; copies share it, so that many choices begin with no more than one.
#[derive(Debug, Clone)]
pub struct Allowance(Arc<Mutex<Duration>>);

impl Allowance {
    /// A request's at its beginning.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(FIRST)))
    }

    fn left(&self) -> MutexGuard<'_, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a computation used.
    pub fn take(&self, used: Duration) {
        let mut left = self.left();
        *left = left.saturating_sub(used);
    }

    /// A token came; what is saved up is never more than a request has at its beginning.
    pub fn add_token(&self) {
        let mut left = self.left();
        *left = (*left + A_TOKEN).min(FIRST);
    }

    /// Whether nothing is left.
    pub fn is_used_up(&self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlasts_its_looks_is_called_off_and_nothing_else() {
        let keeper = Timekeeper::default();
        let (slow, fast) = (CancellationHandle::default(), CancellationHandle::default());
        keeper.time(slow.clone(), || {
            (0..LOOKS).for_each(|_| keeper.look());
            assert!(!slow.is_cancelled());
            keeper.time(fast.clone(), || keeper.look());
            assert!(slow.is_cancelled() && !fast.is_cancelled());
        });
        (0..2 * LOOKS).for_each(|_| keeper.look());
        assert!(!fast.is_cancelled(), "it has ended before");
    }

    #[test]
    fn an_allowance_lasts_where_tokens_take_no_longer_than_they_add() {
        let after = |used: Duration| {
            let allowance = Allowance::new();
            (0..1000).find(|_| {
                allowance.take(used);
                let over = allowance.is_used_up();
                allowance.add_token();
                over
            })
        };
        for (millis, ends) in [(1, None), (50, None), (100, Some(18)), (300, Some(3))] {
            assert_eq!(after(Duration::from_millis(millis)), ends, "{millis}");
        }
    }
}
