//! Where the rows of a weight are: in panels of our own memory, or still as they lie in a file.

use crate::pages::Pages;
use atlas_engine_core::backend::SharedBytes;
use std::cell::RefCell;

/// A part's weights.
pub(super) enum Storage {
    /// Repacked.
    Panels(Pages),
    /// Row after row of ggml's blocks.
    Rows(SharedBytes),
}

impl Storage {
    pub(super) fn byte_count(&self) -> usize {
        match self {
            Self::Panels(pages) => pages.len(),
            Self::Rows(bytes) => bytes.len(),
        }
    }
}

/// A cache line: what kernels load at once.
#[derive(Clone)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with so many zeros of this thread, aligned to cache lines; `work` does not come here again.
pub(super) fn with_scratch(length: usize, work: impl FnOnce(&mut [u8])) {
    SCRATCH.with_borrow_mut(|lines| {
        lines.clear();
        lines.resize(length.div_ceil(size_of::<Line>()), Line([0; 64]));
        // SAFETY: the lines are `length` bytes at least, and any bytes are values of them.
        work(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), length) });
    });
}
