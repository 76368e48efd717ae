//! The local cluster: the real control plane in network namespaces of its own.

pub mod net;
mod netns;
mod worker;
