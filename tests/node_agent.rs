//! The simulated node against a real control plane: what pods see, how they end, and what each fault does.

#[path = "node_agent/faults.rs"]
mod faults;
#[path = "node_agent/pods.rs"]
mod pods;
#[path = "node_agent/support.rs"]
mod support;
