//! Threads that share out the items of a step.
//!
//! A worker that finds nothing to do spins for some microseconds, because the next product follows soon, and sleeps
//! after that: an idle pool uses no processor. The caller takes items too and never waits for a sleeper, only for
//! items that have begun.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// A fixed number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One step at a time.
    turn: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes workers.
    published: Condvar,
    /// Wakes the caller.
    finished: Condvar,
    /// Jobs published so far, for spinning without the lock; changes under the lock only.
    jobs: AtomicUsize,
    /// Workers inside the current job; changes under the lock only.
    active: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    sleepers: usize,
    stopping: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// What the threads of a job share; lives on the caller's stack.
struct Items<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    next: AtomicUsize,
    count: usize,
}

impl Items<'_> {
    fn take_all(&self) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= self.count {
                return;
            }
            (self.work)(item);
        }
    }
}

#[derive(Clone, Copy)]
struct Job(*const Items<'static>);

// SAFETY: the pointer is to a value whose parts are all Sync, and `run` keeps the value alive while any worker is
// inside the job.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of this many threads, the caller's included.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            published: Condvar::new(),
            finished: Condvar::new(),
            jobs: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::default() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("compute-{index}"));
            pool.workers.push(thread.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each of `0..count`, in any order and on any thread, and returns when all are done.
    ///
    /// # Panics
    /// Where `work` does.
    pub fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let items = Items { work, next: AtomicUsize::new(0), count };
        if self.workers.is_empty() || count <= 1 {
            return items.take_all();
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.publish(Job(std::ptr::from_ref(&items).cast()));
        // The job must be taken back before `items` goes, also when the caller's own share panics.
        let own = catch_unwind(AssertUnwindSafe(|| items.take_all()));
        let of_workers = self.shared.take_back();
        if let Some(panic) = own.err().or(of_workers) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.published.notify_all();
        for worker in self.workers.drain(..) {
            // Workers catch panics, so there is nothing to pass on.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, job: Job) {
        let mut state = self.lock();
        state.job = Some(job);
        self.jobs.fetch_add(1, Ordering::Release);
        if state.sleepers > 0 {
            self.published.notify_all();
        }
    }

    /// Lets no more workers in, waits for those inside, and returns their panic.
    fn take_back(&self) -> Option<Box<dyn Any + Send>> {
        self.lock().job = None;
        spin_until(|| self.active.load(Ordering::Acquire) == 0);
        let mut state = self.lock();
        while self.active.load(Ordering::Acquire) > 0 {
            state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.panic.take()
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        while let Some(Job(items)) = self.next_job(&mut seen) {
            // SAFETY: this worker was counted as active while the job was still published, and the caller keeps the
            // items until no worker is active.
            let items = unsafe { &*items };
            let panic = catch_unwind(AssertUnwindSafe(|| items.take_all())).err();
            let mut state = self.lock();
            if panic.is_some() {
                state.panic = panic;
            }
            if self.active.fetch_sub(1, Ordering::Release) == 1 {
                self.finished.notify_one();
            }
        }
    }

    /// Waits for a job and enters it; `None` when the pool ends.
    fn next_job(&self, seen: &mut usize) -> Option<Job> {
        spin_until(|| self.jobs.load(Ordering::Acquire) != *seen);
        let mut state = self.lock();
        loop {
            if state.stopping {
                return None;
            }
            // A job that is over already was taken back: then this waits for the next one.
            if self.jobs.load(Ordering::Acquire) != *seen {
                *seen = self.jobs.load(Ordering::Acquire);
                if let Some(job) = state.job {
                    self.active.fetch_add(1, Ordering::AcqRel);
                    return Some(job);
                }
                drop(state);
                spin_until(|| self.jobs.load(Ordering::Acquire) != *seen);
                state = self.lock();
                continue;
            }
            state.sleepers += 1;
            state = self.published.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleepers -= 1;
        }
    }
}

fn spin_until(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() && began.elapsed() < SPIN {
        for _ in 0..16 {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 7, 100] {
                let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|item| {
                    done[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{threads} {count}");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_whole() {
        let pool = Pool::new(3).unwrap();
        let panicked =
            catch_unwind(AssertUnwindSafe(|| pool.run(50, &|item| assert!(item != 20, "item 20"))));
        assert!(panicked.is_err());
        let done = AtomicUsize::new(0);
        pool.run(50, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 50);
    }
}
