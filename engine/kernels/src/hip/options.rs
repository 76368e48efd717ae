//! How a card is to be opened.

use super::card::Expected;
use std::path::PathBuf;
use std::time::Duration;

/// What [`super::HipBackend::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where `dev` and `sys` are: `/` but in tests.
    pub root: PathBuf,
    /// The HIP runtime's file; the usual names where there is none.
    pub library: Option<String>,
    /// What the card must be.
    pub expected: Expected,
    /// Memory to take for weights, KV cache and scratch; all that is free but `spare_bytes` where there is none.
    pub arena_bytes: Option<u64>,
    /// Memory to leave alone.
    pub spare_bytes: u64,
    /// Longest time for one step; beyond it the card counts as hung.
    pub step_timeout: Duration,
    /// Whether decode steps are captured and replayed, where the runtime can.
    pub graphs: bool,
}

impl Options {
    /// The machine's card as it is, with everything that the runtime can do.
    #[must_use]
    pub fn new() -> Self {
        Self {
            root: PathBuf::from("/"),
            library: None,
            expected: Expected::default(),
            arena_bytes: None,
            spare_bytes: 256 << 20,
            step_timeout: Duration::from_secs(60),
            graphs: true,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}
