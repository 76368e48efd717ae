//! The planner against every row of the hardware guide, and the laws that a plan keeps whatever the model.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "vram/guide.rs"]
mod guide;
#[path = "vram/laws.rs"]
mod laws;
#[path = "vram/models.rs"]
mod models;
#[path = "vram/shapes.rs"]
mod shapes;
