//! The local cluster: the real control plane in network namespaces of its own, or the API server alone on loopback.
//!
//! Everything it starts ends with it, also when this process is killed. It deliberately has no nodes: those are
//! simulated by `node_agent`.

mod admin;
pub mod apiserver;
mod error;
pub mod net;
mod netns;
pub mod pki;
mod process;
mod run_folder;
mod worker;

pub use admin::KubectlOutput;
pub use apiserver::ApiServer;
pub use error::ClusterError;
pub use process::Daemon;

/// PATH with the folders of system programs (`nft`, `ip`), which not every user's shell has.
fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
