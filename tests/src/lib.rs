//! The whole-system tests' library: a local cluster whose control plane is real and whose nodes are simulated.
//!
//! `assets` finds the control plane's programs, `cluster` runs them in network namespaces of their own (or the API
//! server alone on loopback), `api_proxy` breaks requests on their way there, `node_agent` stands in for kubelets and
//! cards, `support` waits and finds binaries, `chaos` plays faults under load over a gateway and engine processes.
//! It is a test tool, never part of an installation.

pub mod api_proxy;
pub mod assets;
pub mod bench;
pub mod chaos;
pub mod cluster;
pub mod lab;
pub mod node_agent;
pub mod scale;
pub mod support;
pub mod tour;
