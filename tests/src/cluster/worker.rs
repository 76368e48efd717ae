//! A thread that runs short jobs in order: one in each network namespace, and one on the host for child processes.
//!
//! A socket or a child process belongs to the namespace of the thread that makes it, so one thread per namespace is
//! all it takes to get inside, without `unsafe`. Child processes also need a parent thread that outlives them: the
//! kernel sends their parent-death signal when the *thread* that started them ends, not when the process does.
//! It deliberately never waits for anything long: a job that blocks holds up every later one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs one after the other.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread and runs `enter` in it; the jobs come after it.
    ///
    /// # Errors
    /// What `enter` or the creation of the thread gave.
    pub fn start(
        name: &str,
        enter: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (entered_tx, entered) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = enter();
            let failed = result.is_err();
            if entered_tx.send(result).is_err() || failed {
                return;
            }
            while let Ok(job) = queue.recv() {
                // A job that panics loses its own answer; the thread must live on, since its children live with it.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        entered.recv().map_err(std::io::Error::other)??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// The host's worker, which lives as long as this process.
    pub fn host() -> &'static Worker {
        static HOST: OnceLock<Worker> = OnceLock::new();
        HOST.get_or_init(|| Worker::start("host-spawner", || Ok(())).expect("a process can start one thread"))
    }

    /// Runs `f` on the thread and gives back what it returned.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits for the answer any more: then it is dropped here.
            let _ = tx.send(f());
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .expect("the thread ends only when the worker is dropped");
        rx.await.expect("a job does not panic")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closing the queue ends the loop; waiting for it makes sure that nothing holds the namespace any more.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
