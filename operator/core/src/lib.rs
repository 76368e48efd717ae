//! Decisions of the operator as plain functions: what cards there are, which tier may roll, who holds a card,
//! what an engine's exit means, what the clients' configuration says.
//!
//! Nothing here is async, and nothing reads a clock, a client or a global: time and objects are arguments.

pub mod engine_contract;
pub mod inventory;
pub mod llm_config;
pub mod refusal;
pub mod routing;
pub mod speed;
pub mod tiers;
pub mod vram;
