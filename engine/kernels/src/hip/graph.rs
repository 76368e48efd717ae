//! Launches captured once and replayed: a decode step is hundreds of launches, and one call starts them all.

use super::device::Device;
use super::error::HipError;
use super::ffi::{self, Handle};

/// A captured run of launches.
pub struct Graph {
    handle: Handle,
    destroy: Option<unsafe extern "C" fn(Handle) -> i32>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the handle was made by the runtime that stays loaded, and is freed once. The code is of no use.
            unsafe { destroy(self.handle) };
        }
    }
}

// SAFETY: the handle belongs to the process and is only passed back to the runtime.
unsafe impl Send for Graph {}

impl Device {
    /// Whether the runtime can capture launches.
    pub fn has_graphs(&self) -> bool {
        self.graphs
    }

    /// Captures what `work` launches, without running it.
    ///
    /// # Errors
    /// The runtime refuses; launching one by one still works.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<(), HipError>) -> Result<Graph, HipError> {
        self.begin_capture()?;
        let worked = work(self);
        self.end_capture(worked)
    }

    /// From here on launches are captured rather than run.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn begin_capture(&self) -> Result<(), HipError> {
        let Some(begin) = self.library.functions().hipStreamBeginCapture else {
            return Err(self.cannot_capture());
        };
        // SAFETY: the stream lives as long as the device.
        let code = unsafe { begin(self.stream, ffi::CAPTURE_THREAD_LOCAL) };
        self.library.check("hipStreamBeginCapture", code)
    }

    /// Ends the capture, also where what was to be captured failed, or the stream would stay in it.
    ///
    /// # Errors
    /// The work failed, or the runtime refuses.
    pub fn end_capture(&self, worked: Result<(), HipError>) -> Result<Graph, HipError> {
        let functions = self.library.functions();
        let (Some(end), Some(instantiate)) =
            (functions.hipStreamEndCapture, functions.hipGraphInstantiateWithFlags)
        else {
            return Err(self.cannot_capture());
        };
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream lives; the pointers are to locals of the right type; the graph is freed once.
        unsafe {
            let ended = self.library.check("hipStreamEndCapture", end(self.stream, &raw mut graph));
            worked.and(ended)?;
            let code = instantiate(&raw mut executable, graph, 0);
            let made = self.library.check("hipGraphInstantiateWithFlags", code);
            if let Some(destroy) = functions.hipGraphDestroy {
                destroy(graph);
            }
            made?;
        }
        Ok(Graph { handle: executable, destroy: functions.hipGraphExecDestroy })
    }

    fn cannot_capture(&self) -> HipError {
        HipError::Symbol { symbol: "hipStreamBeginCapture", library: self.library.name().to_owned() }
    }

    /// Runs captured launches.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn replay(&self, graph: &Graph) -> Result<(), HipError> {
        let Some(launch) = self.library.functions().hipGraphLaunch else { return Ok(()) };
        // SAFETY: the graph was made by this device's runtime and lives as long as it.
        self.library.check("hipGraphLaunch", unsafe { launch(graph.handle, self.stream) })
    }
}
