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
    /// Its name as the runtime tells it.
    pub name: Option<String>,
    /// The runtime's library.
    pub library: String,
    /// Its version.
    pub runtime: (i32, i32, i32),
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Bytes of distinct weights, at least: four times the last cache or more.
    pub bytes: u64,
    /// Width of the residual stream; a multiple of 256.
    pub hidden: u32,
    /// Width of the feed-forward part; a multiple of 256.
    pub feed_forward: u32,
    /// Positions that decode attention reads.
    pub context: u32,
    /// Rows of prefill; more than 8.
    pub rows: u32,
    /// Runs, of which the fastest counts.
    pub runs: u32,
}

impl Work {
    /// For a card: 13B shapes, 400 MiB against the 96 MB of the largest cache.
    pub const CARD: Self =
        Self { bytes: 400 << 20, hidden: 5120, feed_forward: 13_824, context: 4096, rows: 512, runs: 10 };
    /// For the tests' stand-in.
    pub const SMALL: Self =
        Self { bytes: 4 << 20, hidden: 512, feed_forward: 768, context: 256, rows: 32, runs: 2 };
}

/// What a measurement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Bytes that have to move at least.
    Bytes(u64),
    /// Multiplications and additions.
    Operations(u64),
}

/// One kernel's speed.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// The kernel.
    pub kernel: String,
    /// What of it was measured.
    pub variant: String,
    /// What it did.
    pub amount: Amount,
    /// Milliseconds of the fastest run.
    pub milliseconds: f32,
}

impl Speed {
    /// 10^9 bytes or operations a second.
    #[must_use]
    pub fn giga_per_second(&self) -> f64 {
        let (Amount::Bytes(amount) | Amount::Operations(amount)) = self.amount;
        amount as f64 / 1e6 / f64::from(self.milliseconds).max(1e-9)
    }
}
