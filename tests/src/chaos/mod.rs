//! Faults under load, over the real gateway and real engines: what clients notice of them, in figures.
//!
//! `loopback` plays what happens to an engine, to the way to it or to a gateway, with a gateway in this process and engine
//! processes beside it: quick, and without root. `cluster` plays what needs a cluster (a lost node, a lost controller, a
//! Service in front) on the local one, with the operator installed from the chart, and the same on plain Kubernetes.

mod ask;
pub mod cluster;
pub mod engine;
pub mod gateway;
mod load;
mod loopback;
mod plot;
pub mod saturate;
pub mod soak;
mod stall;
mod summary;
pub mod wire;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rand::{SeedableRng, rngs::StdRng};

use crate::{assets::cache_folder, lab::MODEL_FILE, support::wait_until};
use load::{Demand, Load};
pub use load::{Outcome, Sample};
use loopback::Loopback;
pub use summary::{FaultSummary, render_table};

const PATIENCE: Duration = Duration::from_secs(120);

/// What happens, to the engine of the preferred tier where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL: its connections are reset, its ports refuse.
    EngineKill,
    /// It ends by a crash of its own, as after an illegal instruction.
    EngineCrash,
    /// SIGSTOP: connections stay open and nothing answers, as when a node freezes.
    NodeFreeze,
    /// No byte passes, and nobody says so.
    NetCut,
    /// The engine's worker stands still in the middle of its work and everything else goes on, as when the card hangs.
    GpuHang,
    /// SIGKILL of one of two gateways.
    GatewayKill,
    /// Its whole node is lost, link first; in the second half of the rounds a gateway is lost with it.
    NodeKill,
    /// SIGKILL of every controller at once.
    ControllerKill,
}

impl Fault {
    /// Every fault that is played where none is named.
    pub const USUAL: [Self; 7] = [
        Self::EngineKill,
        Self::NodeKill,
        Self::NodeFreeze,
        Self::NetCut,
        Self::GpuHang,
        Self::GatewayKill,
        Self::ControllerKill,
    ];
    /// Every fault of an engine or of the way to it.
    pub const OF_ENGINES: [Self; 5] =
        [Self::EngineKill, Self::EngineCrash, Self::NodeFreeze, Self::NetCut, Self::GpuHang];

    /// Whether it needs a cluster.
    #[must_use]
    pub const fn needs_cluster(self) -> bool {
        matches!(self, Self::NodeKill | Self::ControllerKill)
    }

    /// Whether it can be played on the cluster, where a crash is the same as a kill.
    #[must_use]
    pub const fn fits_cluster(self) -> bool {
        !matches!(self, Self::EngineCrash)
    }

    /// Whether a whole node is lost, on a cluster with whatever else stands there.
    #[must_use]
    pub const fn takes_a_node(self) -> bool {
        matches!(self, Self::NodeKill | Self::NodeFreeze | Self::NetCut)
    }

    /// The id in the summary.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::EngineKill => "engine-kill",
            Self::EngineCrash => "engine-crash",
            Self::NodeFreeze => "node-freeze",
            Self::NetCut => "net-cut",
            Self::GatewayKill => "gateway-kill",
            Self::GpuHang => "gpu-hang",
            Self::NodeKill => "node-kill",
            Self::ControllerKill => "controller-kill",
        }
    }
}

/// What `atlas-local chaos` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Rounds of every fault.
    #[arg(long, default_value_t = 50)]
    pub rounds: u32,
    /// Clients, half of them for streams.
    #[arg(long, default_value_t = 32)]
    pub clients: usize,
    /// How much the clients ask for, of what an engine was seen to answer when nobody waits; 1 lets nobody wait.
    #[arg(long, default_value_t = 0.5)]
    pub share: f64,
    /// Tokens of a stream; whole answers have 4. The longer streams are, the more of them a fault meets in their middle, and
    /// the longer those behind them wait for an engine that computes two at a time.
    #[arg(long, default_value_t = load::STREAM_TOKENS)]
    pub stream_tokens: u32,
    /// Where the random times of the faults begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The faults; all but the crash of an engine where none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Play on loopback what needs no cluster, without root; otherwise only what cannot be played on the cluster.
    #[arg(long, conflicts_with = "peer")]
    pub loopback: bool,
    /// Play the faults on plain Kubernetes too, on the same cluster: a Service over two Deployments, without the operator.
    #[arg(long)]
    pub peer: bool,
    /// Break nothing: for so many minutes let the clients ask for all that an engine can answer, and fail when traffic moves.
    #[arg(long, value_name = "MINUTES", conflicts_with_all = ["faults", "loopback", "peer", "rounds", "share"])]
    pub saturate: Option<f64>,
    /// Where the summary and the plot are left.
    #[arg(long, default_value = "target/chaos")]
    pub out: PathBuf,
}

impl Args {
    /// What the clients ask where nobody waits.
    fn demand(&self) -> Demand {
        Demand::without_pause(self.clients, self.stream_tokens)
    }

    /// What is played on loopback and what on the cluster.
    fn places(&self) -> (Vec<Fault>, Vec<Fault>) {
        let faults = if self.faults.is_empty() { Fault::USUAL.to_vec() } else { self.faults.clone() };
        let on_loopback = |fault: &Fault| !fault.needs_cluster() && (self.loopback || !fault.fits_cluster());
        faults.into_iter().partition(on_loopback)
    }
}

/// Times of one round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// The fault.
    pub fault: Instant,
    /// When traffic had moved away.
    pub moved: Instant,
    /// When the engine was put right again.
    pub repaired: Instant,
}

/// What one fault came to.
pub struct Played {
    /// Its rounds.
    pub rounds: Vec<Round>,
    /// Every request of all clients.
    pub samples: Vec<Sample>,
    /// Attempts that the gateways made again.
    pub retried: u64,
    /// Breaks of streams that the other engine went on from.
    pub resumed: u64,
    /// Gateways that a controller held to be lost and deleted.
    pub deleted: u64,
    /// Gateways that were lost with their node.
    pub gateways_lost: u64,
    /// Whether the engines know how to go on with a broken stream.
    pub resumes: bool,
}

/// Plays the faults one after another, prints the table and leaves summary and plot.
///
/// # Errors
///
/// The engines or the cluster do not start, or traffic does not move.
pub async fn run(args: &Args) -> anyhow::Result<Vec<FaultSummary>> {
    if let Some(minutes) = args.saturate {
        saturate::run(minutes, args.clients, &args.out).await?;
        return Ok(Vec::new());
    }
    ensure!(args.share > 0.0 && args.share <= 1.0, "--share is {}, not above 0 and at most 1", args.share);
    let mut random = StdRng::seed_from_u64(args.seed);
    let (on_loopback, on_cluster) = args.places();
    let mut panels = Panels { played: Vec::new(), out: args.out.clone() };
    if !on_loopback.is_empty() {
        let mut loopback = Loopback::start(args.demand(), args.share).await?;
        println!("on loopback: {}", describe_demand(args.clients, loopback.pace()));
        for fault in on_loopback {
            let played = loopback.play(fault, args.rounds, &mut random).await.context(fault.id())?;
            panels.add(fault, "loopback", played)?;
        }
    }
    if !on_cluster.is_empty() {
        cluster::run(args, &on_cluster, &mut random, &mut panels).await?;
    }
    let summaries = panels.summaries();
    println!("{}", render_table(&summaries));
    Ok(summaries)
}

/// Summaries and what they were made of, for the plot; written anew after every fault, so that a run that is ended leaves
/// what it has seen.
struct Panels {
    played: Vec<(FaultSummary, Played)>,
    out: PathBuf,
}

impl Panels {
    /// Sums a fault up, shows it and writes it down with those before it.
    fn add(&mut self, fault: Fault, place: &'static str, played: Played) -> anyhow::Result<()> {
        let summary = FaultSummary::of(fault, place, &played);
        println!("{}", render_table(std::slice::from_ref(&summary)));
        self.played.push((summary, played));
        std::fs::create_dir_all(&self.out)?;
        let summaries = serde_json::to_string_pretty(&self.summaries())? + "\n";
        std::fs::write(self.out.join("summary.json"), summaries)?;
        std::fs::write(self.out.join("latency.svg"), plot::render(&self.played))?;
        Ok(())
    }

    fn summaries(&self) -> Vec<FaultSummary> {
        self.played.iter().map(|(summary, _)| summary.clone()).collect()
    }
}

fn describe_demand(clients: usize, pace: Option<Duration>) -> String {
    match pace {
        None => format!("{clients} clients, each request on the heels of the one before"),
        Some(pace) => format!("{clients} clients, each with a request every {} ms or so", pace.as_millis()),
    }
}

fn model_path() -> anyhow::Result<PathBuf> {
    let model = cache_folder().join("models").join(MODEL_FILE);
    ensure!(model.is_file(), "{} is missing: run `make setup`", model.display());
    Ok(model)
}

/// A fault should meet a stream whose client has a part of it.
async fn stream_in_its_middle(load: &Load) -> anyhow::Result<()> {
    wait_until("a stream in its middle", PATIENCE, || async {
        if load.midway() > 0 { Ok(()) } else { Err("none") }
    })
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_the_cluster_is_played_there_unless_it_is_not_wanted() {
        use Fault::{ControllerKill, EngineCrash, EngineKill, GpuHang, NodeKill};
        let check = |faults: &[Fault], loopback: bool, on_loopback: usize, on_cluster: usize| {
            let args = Args {
                rounds: 1,
                clients: 1,
                share: 0.5,
                stream_tokens: load::STREAM_TOKENS,
                seed: 1,
                faults: faults.to_vec(),
                loopback,
                peer: false,
                saturate: None,
                out: PathBuf::new(),
            };
            let (a, b) = args.places();
            assert_eq!((a.len(), b.len()), (on_loopback, on_cluster), "{faults:?} {loopback}");
        };
        check(&[], false, 0, 7);
        check(&[], true, 5, 2);
        check(&[EngineKill, EngineCrash, NodeKill], false, 1, 2);
        check(&[EngineKill, GpuHang, ControllerKill], true, 2, 1);
    }
}
