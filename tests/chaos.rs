//! Faults under load, short: nothing is lost, no stream breaks, and every answer is the one without a fault.
//!
//! `make chaos` plays the same for long and measures it.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_tests::{
    chaos::{Args, Fault, run},
    support::init_logging,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_an_engine_loses_or_breaks_an_answer() -> anyhow::Result<()> {
    init_logging();
    let folder = tempfile::tempdir()?;
    let args = Args {
        rounds: 1,
        clients: 4,
        share: 1.0,
        seed: 1,
        faults: [&Fault::OF_ENGINES[..], &[Fault::GatewayKill]].concat(),
        loopback: true,
        peer: false,
        saturate: None,
        out: folder.path().to_owned(),
    };
    let summaries = run(&args).await?;
    for summary in &summaries {
        assert_eq!(summary.lost, 0, "{}: {:?}", summary.fault, summary.failures);
        assert!(!summary.resumes || summary.broken == 0, "{}: {:?}", summary.fault, summary.failures);
        assert!(summary.affected > 0, "{}: no request met the fault", summary.fault);
    }
    let resumed: u64 = summaries.iter().map(|summary| summary.resumed).sum();
    assert!(
        resumed > 0 || summaries.iter().any(|summary| !summary.resumes),
        "no stream had to go on elsewhere"
    );
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("summary.json"))?)?;
    assert_eq!(written.as_array().map(Vec::len), Some(summaries.len()));
    assert!(std::fs::read_to_string(folder.path().join("latency.svg"))?.ends_with("</svg>\n"));
    Ok(())
}
