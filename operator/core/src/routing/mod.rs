//! Where a request goes: the health of single endpoints and the policy over the tiers of a model.
//!
//! Both are pure: time comes in as milliseconds of a monotonic clock, events come in as values, and nothing here
//! opens a connection or reads a clock. The gateway feeds them; the controller may ask the same questions.

pub mod health;
pub mod policy;
pub mod progress;

pub use health::{Cause, EndpointHealth, Health, HealthEvent, HealthSettings};
pub use policy::{
    Decision, EndpointView, FailbackState, Mode, RouteInput, RoutedEndpoint, Switch, TierView, route,
};
pub use progress::{EngineReport, Patience, Progress};

/// Milliseconds of a monotonic clock with an arbitrary origin.
pub type Millis = u64;
