//! How the gateway comes to know the health of its endpoints: probes, the clock, and the watches.
//!
//! The state machine itself is `atlas_operator_core::routing::health`; outcomes of requests come from `forward`.

pub mod endpoint;
pub mod facts;
pub mod probe;
pub mod watch;

use std::time::Instant;

use atlas_operator_core::routing::Millis;

/// The monotonic clock that the routing policy counts in.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn now(&self) -> Millis {
        Millis::try_from(self.origin.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }
}
