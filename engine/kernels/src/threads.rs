//! The number of threads of the numeric library.
//!
//! candle reads it from the environment alone, once, when its pool starts.

use std::fs;

/// The variable that candle's pool reads.
const VARIABLE: &str = "CANDLE_NUM_THREADS";

/// Why the number of threads could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    /// Other threads run already, and might read the environment.
    #[error("the number of worker threads must be set before other threads start; {running} run")]
    TooLate {
        /// Threads of this process.
        running: usize,
    },
    /// The threads of this process cannot be counted.
    #[error("cannot count this process's threads")]
    Count(#[source] std::io::Error),
}

/// Sets how many threads matrix products use. To be called first thing in `main`.
///
/// # Errors
/// The process has more than one thread, or they cannot be counted.
pub fn set_worker_threads(count: usize) -> Result<(), ThreadsError> {
    let running = fs::read_dir("/proc/self/task").map_err(ThreadsError::Count)?.count();
    if running != 1 {
        return Err(ThreadsError::TooLate { running });
    }
    // SAFETY: set_var is unsafe because another thread may read the environment meanwhile; there is no other
    // thread, as counted above, and none can start while this one is here.
    unsafe { std::env::set_var(VARIABLE, count.to_string()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_refused() {
        // The test runner's own threads are the others.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(matches!(set_worker_threads(3), Err(ThreadsError::TooLate { .. })));
        drop(stop);
        assert!(other.join().unwrap().is_err());
    }
}
