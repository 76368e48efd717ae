//! Moving bytes between host and card, and waiting.
//!
//! Work is waited for by asking an event again and again, so that a card that hangs is noticed.

use super::device::{Address, Device, Pinned, STAGING_BYTES};
use super::error::HipError;
use super::ffi;
use std::ffi::c_void;
use std::time::{Duration, Instant};

/// How long a wait spins before it sleeps between two looks.
const SPIN: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);

/// Is told how many bytes an upload has moved further.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

impl Device {
    /// Fills memory with zeros, in the stream's order.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn zero(&self, at: Address, bytes: u64) -> Result<(), HipError> {
        // SAFETY: callers pass ranges of their own allocations; the runtime checks them again.
        let code = unsafe {
            (self.library.functions().hipMemsetAsync)(at.pointer(), 0, bytes as usize, self.stream)
        };
        self.library.check("hipMemsetAsync", code)
    }

    /// Copies from pinned memory to the card, in the stream's order; the source must stay as it is until a wait.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn upload_pinned(&self, from: &Pinned, bytes: usize, to: Address) -> Result<(), HipError> {
        self.copy(to.pointer(), from.at.cast(), bytes.min(from.bytes), ffi::HOST_TO_DEVICE)
    }

    /// Copies from the card to pinned memory, in the stream's order; the bytes are there after a wait.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn download_pinned(
        &self,
        from: Address,
        bytes: usize,
        to: &mut Pinned,
        at: usize,
    ) -> Result<(), HipError> {
        let room = to.bytes_mut().get_mut(at..at + bytes).map(<[u8]>::as_mut_ptr);
        let to = room.ok_or(HipError::OutOfMemory {
            what: "a download",
            needed: (at + bytes) as u64,
            available: to.bytes as u64,
        })?;
        self.copy(to.cast(), from.pointer(), bytes, ffi::DEVICE_TO_HOST)
    }

    fn copy(&self, to: *mut c_void, from: *const c_void, bytes: usize, kind: i32) -> Result<(), HipError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the host side is pinned memory of at least this length; the runtime checks the device side.
        let code = unsafe { (self.library.functions().hipMemcpyAsync)(to, from, bytes, kind, self.stream) };
        self.library.check("hipMemcpyAsync", code)
    }

    /// Copies bytes of any memory to the card through two pinned buffers in turn, and waits for the last.
    ///
    /// # Errors
    /// The runtime refuses, or the card hangs.
    pub fn upload(&mut self, bytes: &[u8], to: Address, progress: Progress<'_>) -> Result<(), HipError> {
        for (index, part) in bytes.chunks(STAGING_BYTES).enumerate() {
            let turn = index % 2;
            if index >= 2 {
                // The copy that used this buffer last.
                self.wait_for(turn)?;
            }
            self.staging[turn].bytes_mut()[..part.len()].copy_from_slice(part);
            let at = to.plus((index * STAGING_BYTES) as u64);
            self.upload_pinned(&self.staging[turn], part.len(), at)?;
            self.record(turn)?;
            progress(part.len() as u64);
        }
        self.finish()
    }

    /// Copies from the card to any memory.
    ///
    /// # Errors
    /// The runtime refuses, or the card hangs.
    pub fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), HipError> {
        for (index, part) in bytes.chunks_mut(STAGING_BYTES).enumerate() {
            let at = from.plus((index * STAGING_BYTES) as u64);
            self.copy(self.staging[0].at.cast(), at.pointer(), part.len(), ffi::DEVICE_TO_HOST)?;
            self.finish()?;
            part.copy_from_slice(&self.staging[0].bytes()[..part.len()]);
        }
        Ok(())
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// The work failed, or is not done within the time limit.
    pub fn finish(&self) -> Result<(), HipError> {
        self.record(2)?;
        self.wait_for(2)
    }

    /// Milliseconds that the card takes for what `work` starts.
    ///
    /// # Errors
    /// Whatever fails in it.
    pub fn time(&self, work: impl FnOnce() -> Result<(), HipError>) -> Result<f32, HipError> {
        self.record(0)?;
        work()?;
        self.record(1)?;
        self.wait_for(1)?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are recorded and done.
        let code = unsafe {
            (self.library.functions().hipEventElapsedTime)(
                &raw mut milliseconds,
                self.events[0],
                self.events[1],
            )
        };
        self.library.check("hipEventElapsedTime", code)?;
        Ok(milliseconds)
    }

    fn record(&self, event: usize) -> Result<(), HipError> {
        // SAFETY: event and stream live as long as the device.
        let code = unsafe { (self.library.functions().hipEventRecord)(self.events[event], self.stream) };
        self.library.check("hipEventRecord", code)
    }

    fn wait_for(&self, event: usize) -> Result<(), HipError> {
        let began = Instant::now();
        loop {
            // SAFETY: the event lives as long as the device.
            let code = unsafe { (self.library.functions().hipEventQuery)(self.events[event]) };
            if code != ffi::NOT_READY {
                return self.library.check("hipEventQuery", code);
            }
            let waited = began.elapsed();
            if waited > self.timeout {
                return Err(HipError::Hung { seconds: waited.as_secs() });
            }
            if waited < SPIN { std::hint::spin_loop() } else { std::thread::sleep(NAP) }
        }
    }
}
