//! Stops one thread of a process, as a card that never answers stops the thread that waits for it.
//!
//! The thread is held by a tracer; everything else of the process goes on, its probes above all. The tracer is a thread
//! of its own because the kernel binds the two to each other.

use std::{sync::mpsc, thread::JoinHandle};

use anyhow::Context;
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// A thread that stands still until this is dropped.
pub struct Stalled {
    release: Option<mpsc::Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Stalled {
    /// Stops the first thread of this name in these processes.
    ///
    /// # Errors
    ///
    /// They have no such thread, or may not be traced.
    pub fn stall(processes: &[u32], name: &str) -> anyhow::Result<Self> {
        let thread = processes.iter().find_map(|process| find_thread(*process, name));
        let thread = thread.with_context(|| format!("no thread {name:?} in {processes:?}"))?;
        let (release, released) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let tracer = std::thread::spawn(move || {
            let held = hold(thread);
            let holds = held.is_ok();
            // Who asked is waiting for it.
            let _ = tell.send(held);
            if holds {
                // An error is the sender's drop, which is the release.
                let _ = released.recv();
                // The process may have been killed meanwhile.
                let _ = ptrace::detach(thread, None);
            }
        });
        told.recv().context("the tracer ended")?.context("the thread cannot be stopped")?;
        Ok(Self { release: Some(release), tracer: Some(tracer) })
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.release.take();
        if let Some(tracer) = self.tracer.take() {
            // It does nothing that could panic.
            let _ = tracer.join();
        }
    }
}

fn hold(thread: Pid) -> nix::Result<()> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    waitpid(thread, Some(WaitPidFlag::__WALL))?;
    Ok(())
}

fn find_thread(process: u32, name: &str) -> Option<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let found = threads.flatten().find(|thread| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    })?;
    Some(Pid::from_raw(found.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_the_thread_is_told() {
        let error = Stalled::stall(&[std::process::id()], "no such thread").map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("no such thread"), "{error}");
    }
}
