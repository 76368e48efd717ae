//! A lost node and lost controllers on the whole local cluster, under load and short: nothing is lost, no stream breaks.
//!
//! `make chaos` plays the same for long and measures it.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_tests::{
    chaos::{Args, Fault, run},
    support::init_logging,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_lost_node_nor_lost_controllers_lose_an_answer() -> anyhow::Result<()> {
    init_logging();
    let folder = tempfile::tempdir()?;
    let args = Args {
        // The second round loses a gateway with the engine.
        rounds: 2,
        clients: 4,
        share: 0.5,
        stream_tokens: 24,
        seed: 1,
        faults: vec![Fault::NodeKill, Fault::ControllerKill],
        loopback: false,
        peer: false,
        saturate: None,
        out: folder.path().to_owned(),
    };
    for summary in run(&args).await? {
        assert_eq!((summary.lost, summary.broken), (0, 0), "{}: {:?}", summary.fault, summary.failures);
        assert!(summary.affected > 0, "{}: no request met the fault", summary.fault);
    }
    Ok(())
}
