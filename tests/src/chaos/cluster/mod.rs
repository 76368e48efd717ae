//! Faults on the local cluster: real gateways, controllers and engines as pods, and clients at the ClusterIP.
//!
//! Clients connect from inside the control plane's network, so that kube-proxy's rules choose a pod for each connection,
//! as for any program of the cluster. With `--peer` the same faults are played on plain Kubernetes afterwards: one Service
//! over two Deployments with readiness probes of a second, each on the same card as the tier that it stands for.

mod faults;
mod manifests;
mod site;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use rand::{RngExt, rngs::StdRng};

use super::{
    Args, Fault, PATIENCE, Panels, Played, Round,
    ask::Door,
    describe_demand,
    load::{Demand, Load, pace_of},
    stream_in_its_middle,
};
use crate::{
    support::wait_until,
    tour::{
        report::{Report, Screen},
        stage::LocalStage,
    },
};
use site::{Site, System};

/// The place's name in summaries, with the operator.
pub const CLUSTER: &str = "cluster";
/// The place's name in summaries, without it.
pub const PLAIN: &str = "plain";

/// How long a fault without any effect is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// Starts the cluster, plays the faults, and ends it.
///
/// # Errors
///
/// The cluster does not come up, or something never happens that has to.
pub(super) async fn run(
    args: &Args,
    faults: &[Fault],
    random: &mut StdRng,
    panels: &mut Panels,
) -> anyhow::Result<()> {
    let screen = Screen::default();
    let stage = LocalStage::start(&screen, &mut Report::default(), BTreeMap::new()).await?;
    let mut site = Site::new(stage);
    let outcome = play_all(args, faults, random, &mut site, panels).await;
    if outcome.is_err() {
        println!("{}", site.describe().await);
    }
    site.stop().await;
    outcome
}

async fn play_all(
    args: &Args,
    faults: &[Fault],
    random: &mut StdRng,
    site: &mut Site,
    panels: &mut Panels,
) -> anyhow::Result<()> {
    let door = site.deploy(System::Atlas).await?;
    let mut demand = args.demand();
    if args.share < 1.0 {
        demand.pace = Some(pace_of(&door, demand, args.share).await?);
    }
    println!("on the cluster: {}", describe_demand(args.clients, demand.pace));
    for fault in faults {
        let played = play(*fault, args.rounds, demand, random, site, &door).await.context(fault.id())?;
        panels.add(*fault, CLUSTER, played)?;
    }
    if !args.peer {
        return Ok(());
    }
    site.remove_atlas().await?;
    let door = site.deploy(System::Plain).await?;
    println!("on plain Kubernetes, at the same pace");
    for fault in faults.iter().filter(|fault| System::Plain.can_play(**fault)) {
        let played = play(*fault, args.rounds, demand, random, site, &door).await;
        panels.add(*fault, PLAIN, played.with_context(|| format!("{} on {PLAIN}", fault.id()))?)?;
    }
    Ok(())
}

async fn play(
    fault: Fault,
    rounds: u32,
    demand: Demand,
    random: &mut StdRng,
    site: &mut Site,
    door: &Door,
) -> anyhow::Result<Played> {
    site.settled().await?;
    site.hear_controllers().await?;
    let before = site.counts();
    let load = Load::start(door.clone(), demand).await?;
    let (mut played, mut gateways_lost) = (Vec::new(), 0);
    for round in 0..rounds {
        let begun = Instant::now();
        // In the second half of the rounds a lost node takes a gateway with it; else the engine is all that is lost.
        let with_gateway = fault.takes_a_node() && round >= rounds.div_ceil(2);
        site.place_gateway(with_gateway).await?;
        site.settled().await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
        stream_in_its_middle(&load).await?;
        let victims = site.choose(fault, random).await?;
        gateways_lost += u64::from(with_gateway && site.has_gateways());
        let at = Instant::now();
        site.inject(fault, &victims).await?;
        let moved = if fault == Fault::ControllerKill {
            tokio::time::sleep(WATCHED).await;
            Instant::now()
        } else {
            // No record is older than what it tells of.
            site.moved(fault, &victims).await?.max(at)
        };
        let seen = Instant::now();
        wait_until("answers after the fault", PATIENCE, || async {
            let answered = load.whole_since(seen);
            if answered >= demand.clients { Ok(()) } else { Err(format!("{answered} so far")) }
        })
        .await?;
        let repaired = Instant::now();
        site.repair(fault, &victims).await?;
        let millis = |from: Instant, to: Instant| to.duration_since(from).as_millis();
        println!(
            "    {} round {} of {rounds}{}: traffic moved after {} ms (ready for it in {} ms, answers for {} ms, \
             repaired in {} ms)",
            fault.id(),
            round + 1,
            if with_gateway { ", with a gateway" } else { "" },
            millis(at, moved),
            millis(begun, at),
            millis(moved, repaired),
            repaired.elapsed().as_millis()
        );
        played.push(Round { fault: at, moved, repaired });
    }
    site.settled().await?;
    let resumes = site.resumes_streams().await?;
    let samples = load.finish().await;
    site.hear_controllers().await?;
    let after = site.counts();
    // One that was killed and started again in its place counts anew.
    let since = |after: u64, before: u64| after.saturating_sub(before);
    if since(after.deleted, before.deleted) > gateways_lost {
        println!("more gateways were deleted than were lost:\n{}", site.told_of_gateways().await?);
    }
    Ok(Played {
        rounds: played,
        samples,
        retried: since(after.retried, before.retried),
        resumed: since(after.resumed, before.resumed),
        deleted: since(after.deleted, before.deleted),
        gateways_lost,
        resumes,
    })
}
