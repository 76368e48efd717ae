//! The only crate with `unsafe`: today the memory map of a weight file and the number of worker threads.
//!
//! CPU intrinsics and the HIP runtime join it with their own issues.
//! Every `unsafe` block stands behind a safe function that checks what the block relies on.

mod map;
mod threads;

pub use map::MappedFile;
pub use threads::{ThreadsError, set_worker_threads};
