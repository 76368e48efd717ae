//! The operator among faults: whatever breaks, the cluster comes to the same rest as without.
//!
//! `ATLAS_PERTURB=all` plays every write and every event, `ATLAS_PERTURB=storms` storms of many faults and nothing else;
//! without it a sample is drawn, anew for each `ATLAS_PERTURB_SEED`. `ATLAS_AUDIT_INTERVAL` says how often the operator looks for events that a watch lost; a
//! short one makes the run of every event shorter.

mod canonical;
mod children;
mod leader;
mod properties;
mod script;
mod stale;
mod statuses;
mod storm;

use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use atlas_tests::api_proxy::{ApiProxy, Fault};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::bench::Bench;
pub use canonical::CHILDREN;
use canonical::look;
use script::{Stage, roll_out_everything};

/// Where the operators of these cases log to, and who they are in the Lease: a killed one's successor leads at once.
const POD: &str = "operator-p";

/// One thing that goes wrong in one run of the script.
#[derive(Debug, Clone, Copy)]
struct Case {
    what: What,
    at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The operator is killed after the write took place.
    Kill,
    Break(Fault),
}

const OF_WRITES: [What; 6] = [
    What::Kill,
    What::Break(Fault::Answer(409)),
    What::Break(Fault::Answer(429)),
    What::Break(Fault::Answer(500)),
    What::Break(Fault::LoseAnswer),
    What::Break(Fault::Hang),
];
const OF_WATCHES: [What; 3] =
    [What::Break(Fault::CutWatch), What::Break(Fault::ExpireWatch), What::Break(Fault::DropEvent)];

pub async fn everything() -> Result<()> {
    let mut bench = Bench::without_operator().await?;
    let proxy = ApiProxy::start(bench.client.clone()).await?;
    bench.lead_through(&proxy.kubeconfig())?;
    bench.card_node("xtx", "24G", "96").await?;
    bench.card_node("rx", "8G", "32").await?;
    let rollouts = tokio::spawn(roll_out_everything(bench.client.clone()));
    let played = play_all(&bench, &proxy).await;
    rollouts.abort();
    played.with_context(|| tail(&bench.log(POD)))
}

async fn play_all(bench: &Bench, proxy: &ApiProxy) -> Result<()> {
    let plan = std::env::var("ATLAS_PERTURB").unwrap_or_default();
    let all = plan == "all";
    let seed = std::env::var("ATLAS_PERTURB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut stage = Stage { bench, proxy, reference: Vec::new() };
    let (writes, events) = without_faults(&mut stage).await?;
    println!("without faults: {writes} writes, {events} events");
    if plan == "storms" {
        return storm::storms_come_to_the_same_rest(&stage, 40, seed).await;
    }
    let cases = if all { every_case(writes, events) } else { sample(writes, events, seed) };
    for case in cases {
        play(&stage, case).await?;
    }
    children::edits_and_deletions_by_hand_are_put_back(&stage).await?;
    statuses::statuses_edited_by_hand_are_put_back(&stage).await?;
    properties::what_is_changed_and_reverted_leaves_no_trace(&stage, (!all).then_some(seed)).await?;
    stale::lists_of_the_past_harm_nothing(&stage).await?;
    storm::storms_come_to_the_same_rest(&stage, if all { 12 } else { 1 }, seed).await?;
    leader::a_deposed_leaders_late_write_is_put_right(&stage).await
}

fn every_case(writes: usize, events: usize) -> Vec<Case> {
    // A few more than without faults: retries are writes too.
    let of = |kinds: &[What], count: usize| -> Vec<Case> {
        kinds.iter().flat_map(|what| (1..=count + 2).map(|at| Case { what: *what, at })).collect()
    };
    [of(&OF_WRITES, writes), of(&OF_WATCHES, events)].concat()
}

fn sample(writes: usize, events: usize, seed: u64) -> Vec<Case> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut draw = |what: What, count: usize| Case { what, at: random.random_range(1..=count) };
    let mut cases: Vec<Case> =
        OF_WRITES.iter().chain(&[What::Kill; 2]).map(|what| draw(*what, writes)).collect();
    cases.extend(OF_WATCHES.iter().chain(&OF_WATCHES).map(|what| draw(*what, events)));
    cases.shuffle(&mut random);
    cases
}

/// Plays the script once in peace, and takes down what it leaves after each step.
async fn without_faults(stage: &mut Stage<'_>) -> Result<(usize, usize)> {
    let namespace = next_namespace();
    stage.proxy.begin(&namespace, None);
    restart(stage.bench).await?;
    stage.create(&namespace).await?;
    let mut reference = vec![look(stage.bench, &namespace).await?];
    stage.change(&namespace).await?;
    reference.push(look(stage.bench, &namespace).await?);
    stage.shorten(&namespace).await?;
    reference.push(look(stage.bench, &namespace).await?);
    stage.check_writes()?;
    ensure!(
        reference[0] != reference[1] && reference[1] != reference[2],
        "a step that changes nothing shows nothing"
    );
    let counts = stage.proxy.counts();
    stage.delete(&namespace).await?;
    stage.reference = reference;
    Ok(counts)
}

async fn play(stage: &Stage<'_>, case: Case) -> Result<()> {
    let namespace = next_namespace();
    let fault = match case.what {
        // Its answer never comes, so nothing is done about it either.
        What::Kill => Fault::Hang,
        What::Break(fault) => fault,
    };
    let began = Instant::now();
    stage.proxy.begin(&namespace, Some((fault, case.at)));
    restart(stage.bench).await?;
    let successor = async {
        if case.what == What::Kill {
            stage.proxy.wait_for_strike().await;
            restart(stage.bench).await?;
        }
        pending::<Result<()>>().await
    };
    tokio::select! {
        played = stage.play(&namespace) => played,
        failed = successor => failed,
    }
    .with_context(|| format!("{case:?} in {namespace}"))?;
    let struck = if stage.proxy.has_struck() { "" } else { " (there was none)" };
    println!("{case:?}{struck}: {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Kills the operator that runs, if one does, and starts another.
async fn restart(bench: &Bench) -> Result<()> {
    if let Some(mut old) = bench.replace_operator(None) {
        old.child.kill().await?;
    }
    let interval = std::env::var("ATLAS_AUDIT_INTERVAL").unwrap_or_else(|_| "40s".to_owned());
    let operator = bench.spawn_operator_with(POD, &["--audit-interval", &interval]).await?;
    bench.replace_operator(Some(operator));
    Ok(())
}

/// A namespace of its own for each run; the same number of digits, so that names do not differ in length.
fn next_namespace() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1000);
    format!("perturb-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
