//! Threads that share out the items of a step.
//!
//! A job is one word that says whether it is open and how many workers are inside. Workers enter while it is open,
//! without a lock; the caller takes items too and never waits for a worker that has not entered, only for items that
//! have begun. Each thread begins with a run of neighbouring items of its own, so that what it reads lies one behind the
//! other, and takes from the ends of the others' runs once that is done. A worker that finds nothing to do spins for some microseconds, because the next product follows soon,
//! and sleeps after that: an idle pool uses no processor. While somebody holds [`Pool::keep_awake`], as for the length
//! of a model's step, workers do not sleep between jobs but give the processor to whoever else wants it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps, or before it yields while it is kept awake.
const SPIN: Duration = Duration::from_micros(50);

/// A fixed number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

/// Keeps the workers of a pool from sleeping.
#[must_use = "workers may sleep once it is dropped"]
pub struct Awake<'a>(&'a Shared);

struct Shared {
    /// The job's number, whether it is open, and how many workers are inside: see [`State`].
    state: AtomicUsize,
    /// The job, while it is open or workers are inside.
    job: AtomicPtr<Items<'static>>,
    /// One a thread, the caller's first; written while no job is open.
    runs: Box<[Run]>,
    /// Holders of [`Awake`].
    awake: AtomicUsize,
    stopping: AtomicBool,
    /// Workers that sleep, or are about to.
    sleepers: AtomicUsize,
    /// Guards only the wait on `wake`.
    bed: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A job's state in one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(usize);

impl State {
    const OPEN: usize = 1 << 15;
    const NUMBER: usize = 1 << 16;

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn inside(self) -> usize {
        self.0 & (Self::OPEN - 1)
    }

    fn number(self) -> usize {
        self.0 / Self::NUMBER
    }
}

/// What the threads of a job share; lives on the caller's stack.
struct Items<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    /// What is left of each thread's run.
    runs: &'a [Run],
}

/// Items that are left: the first in the upper half, the end in the lower one. Alone on a cache line, because its thread
/// writes it with every item.
#[repr(align(64))]
struct Run(AtomicU64);

impl Run {
    fn set(&self, first: usize, end: usize) {
        self.0.store((first as u64) << 32 | end as u64, Ordering::Relaxed);
    }

    /// Takes an item from the front, or from the end.
    fn take(&self, front: bool) -> Option<usize> {
        let split = |run: u64| (run >> 32, run & u64::from(u32::MAX));
        let shorter = |run| {
            let (first, end) = split(run);
            // Neither half leaves its bits: the first is below the end.
            (first < end).then(|| if front { run + (1 << 32) } else { run - 1 })
        };
        let run = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter).ok()?;
        let (first, end) = split(run);
        Some(if front { first as usize } else { end as usize - 1 })
    }
}

impl Items<'_> {
    /// Does what is left of a thread's own run, then of the others'.
    fn take_all(&self, thread: usize) {
        while let Some(item) = self.runs[thread].take(true) {
            (self.work)(item);
        }
        for other in (1..self.runs.len()).map(|step| (thread + step) % self.runs.len()) {
            while let Some(item) = self.runs[other].take(false) {
                (self.work)(item);
            }
        }
    }
}

impl Pool {
    /// A pool of this many threads, the caller's included.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.clamp(1, State::OPEN);
        let shared = Arc::new(Shared {
            runs: (0..threads).map(|_| Run(AtomicU64::new(0))).collect(),
            state: AtomicUsize::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
            awake: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::default(),
            wake: Condvar::new(),
            panic: Mutex::default(),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::default() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("compute-{index}"));
            pool.workers.push(thread.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Keeps workers from sleeping until the guard is dropped: for a series of jobs that follow one another closely.
    pub fn keep_awake(&self) -> Awake<'_> {
        self.shared.awake.fetch_add(1, Ordering::SeqCst);
        self.shared.wake_sleepers();
        Awake(&self.shared)
    }

    /// Calls `work` once with each of `0..count`, in any order and on any thread, and returns when all are done.
    ///
    /// # Panics
    /// Where `work` does.
    pub fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || count <= 1 {
            return (0..count).for_each(work);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = &self.shared.runs;
        assert!(count <= u32::MAX as usize, "{count} items");
        for (thread, run) in runs.iter().enumerate() {
            run.set(thread * count / runs.len(), (thread + 1) * count / runs.len());
        }
        let items = Items { work, runs };
        self.shared.open(&items);
        // The job must be closed before `items` goes, also when the caller's own share panics.
        let own = catch_unwind(AssertUnwindSafe(|| items.take_all(0)));
        let of_workers = self.shared.close();
        if let Some(panic) = own.err().or(of_workers) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // Workers catch panics, so there is nothing to pass on.
            let _ = worker.join();
        }
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.awake.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn state(&self) -> State {
        State(self.state.load(Ordering::SeqCst))
    }

    /// Lets workers in.
    fn open(&self, items: &Items<'_>) {
        self.job.store(ptr::from_ref(items).cast_mut().cast(), Ordering::Relaxed);
        // Nobody is inside, so nobody else changes the state. SeqCst here and in `sleep`: either a worker that goes
        // to sleep sees this job, or this sees the worker.
        let number = self.state().number().wrapping_add(1);
        self.state.store(number.wrapping_mul(State::NUMBER) | State::OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_sleepers();
        }
    }

    /// Lets no more workers in, waits for those inside, and returns their panic.
    fn close(&self) -> Option<Box<dyn Any + Send>> {
        if State(self.state.fetch_and(!State::OPEN, Ordering::AcqRel)).inside() > 0 {
            wait_until(|| self.state().inside() == 0);
        }
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Enters the job if it is open.
    fn enter(&self) -> bool {
        let state = self.state();
        state.is_open()
            && self.state.compare_exchange(state.0, state.0 + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        let mut seen = self.state().number();
        while self.await_job(seen) {
            let number = self.state().number();
            if !self.enter() {
                // It was closed meanwhile, or another worker was faster; only in the first case is it over.
                if !self.state().is_open() {
                    seen = number;
                }
                continue;
            }
            seen = self.state().number();
            // SAFETY: this worker is counted as inside a job that was open, and the caller keeps the items until
            // nobody is inside.
            let items = unsafe { &*self.job.load(Ordering::Relaxed) };
            let panic = catch_unwind(AssertUnwindSafe(|| items.take_all(thread))).err();
            if panic.is_some() {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = panic;
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for a job after the one of this number; `false` when the pool ends.
    fn await_job(&self, seen: usize) -> bool {
        let mut began = Instant::now();
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return false;
            }
            if self.state().number() != seen {
                return true;
            }
            if began.elapsed() < SPIN {
                spin();
            } else if self.awake.load(Ordering::Relaxed) > 0 {
                std::thread::yield_now();
            } else {
                self.sleep(seen);
                began = Instant::now();
            }
        }
    }

    /// Sleeps until something happens.
    fn sleep(&self, seen: usize) {
        let bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let nothing = self.state().number() == seen
            && self.awake.load(Ordering::SeqCst) == 0
            && !self.stopping.load(Ordering::SeqCst);
        if nothing {
            // Spurious wakes do no harm: the caller looks again.
            drop(self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        // Whoever is about to sleep holds this lock from its last look until it waits.
        drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

fn spin() {
    for _ in 0..16 {
        std::hint::spin_loop();
    }
}

/// Spins, and gives the processor away where that takes long: the awaited thread may have lost its own.
fn wait_until(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        if began.elapsed() < SPIN {
            spin();
        } else {
            std::thread::yield_now();
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
    fn many_short_jobs_of_a_pool_that_is_kept_awake_are_all_done() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..50 {
            let awake = pool.keep_awake();
            for _ in 0..40 {
                pool.run(5, &|item| {
                    total.fetch_add(item + 1, Ordering::Relaxed);
                });
            }
            drop(awake);
            if round % 10 == 0 {
                // Long enough for workers to sleep, so that the next round wakes them.
                std::thread::yield_now();
            }
        }
        assert_eq!(total.into_inner(), 50 * 40 * 15);
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
