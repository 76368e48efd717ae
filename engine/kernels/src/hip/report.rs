//! What the self-test tells: comparisons, speeds, and what they were taken on.

use super::card::Card;

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Kernel and shape.
    pub name: String,
    /// Largest difference from the reference.
    pub error: f64,
    /// What it may be.
    pub tolerance: f64,
}

impl Check {
    /// Whether the kernel is right. Not a number is wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// The card and the runtime, for a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The card.
    pub card: Card,
    /// The runtime's library.
    pub library: String,
    /// Its version.
    pub runtime: (i32, i32, i32),
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Bytes of distinct weights: four times the last cache or more.
    pub bytes: u64,
    /// Rows and columns of a weight; a multiple of 256.
    pub side: u32,
    /// Positions that attention reads.
    pub context: u32,
    /// Runs, of which the fastest counts.
    pub runs: u32,
}

impl Work {
    /// For a card: 13B shapes, 400 MB against the 96 MB of the largest cache.
    pub const CARD: Self = Self { bytes: 400 << 20, side: 5120, context: 4096, runs: 10 };
}

/// One kernel's speed.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// Kernel and shape.
    pub name: String,
    /// Bytes that it has to move at least.
    pub bytes: u64,
    /// Milliseconds of the fastest run.
    pub milliseconds: f32,
}

impl Speed {
    /// 10^9 bytes a second.
    #[must_use]
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / f64::from(self.milliseconds).max(1e-9)
    }
}
