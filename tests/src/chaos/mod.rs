//! Faults under load, over the real gateway and real engine processes: what clients notice of them, in figures.
//!
//! The gateway runs in this process with a table made by hand (two of them in processes of their own where one is
//! killed), the two engines are processes on loopback that serve the same model as two tiers. What needs a cluster (a
//! lost node, a lost controller, a Service in front) is not played here.

mod engine;
pub mod gateway;
mod load;
mod plot;
pub mod soak;
mod stall;
mod summary;
mod wire;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{assets::cache_folder, lab::MODEL_FILE, support::wait_until};
use engine::Engine;
use gateway::{Gateway, GatewayProcess};
use load::Load;
pub use load::{Outcome, Sample};
pub use summary::{FaultSummary, render_table};
use wire::Wire;

const PATIENCE: Duration = Duration::from_secs(120);
/// What happens to the engine of the preferred tier.
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
    /// SIGKILL of one of two gateways.
    GatewayKill,
    /// The engine's worker stands still in the middle of its work and everything else goes on, as when the card hangs.
    GpuHang,
}

impl Fault {
    /// Every fault of an engine or of the way to it.
    pub const OF_ENGINES: [Self; 5] =
        [Self::EngineKill, Self::EngineCrash, Self::NodeFreeze, Self::NetCut, Self::GpuHang];
    /// Every fault.
    pub const ALL: [Self; 6] = [
        Self::EngineKill,
        Self::EngineCrash,
        Self::NodeFreeze,
        Self::NetCut,
        Self::GpuHang,
        Self::GatewayKill,
    ];

    /// The id in the summary.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::EngineKill => "engine-kill",
            Self::EngineCrash => "engine-crash",
            Self::NodeFreeze => "node-freeze",
            Self::NetCut => "net-cut",
            Self::GpuHang => "gpu-hang",
            Self::GatewayKill => "gateway-kill",
        }
    }
}

/// What `atlas-local chaos` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Rounds of every fault.
    #[arg(long, default_value_t = 50)]
    pub rounds: u32,
    /// Clients that ask all the time, half of them for streams.
    #[arg(long, default_value_t = 32)]
    pub clients: usize,
    /// Where the random times of the faults begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The faults; all of them where none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Where the summary and the plot are left.
    #[arg(long, default_value = "target/chaos")]
    pub out: PathBuf,
}

/// Times of one round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// The fault.
    pub fault: Instant,
    /// When the gateway had moved traffic away.
    pub moved: Instant,
    /// When the engine was put right again.
    pub repaired: Instant,
}

/// Plays the faults one after another, prints the table and leaves summary and plot.
///
/// # Errors
///
/// The engines do not start, or traffic does not move.
pub async fn run(args: &Args) -> anyhow::Result<Vec<FaultSummary>> {
    let model = model_path()?;
    let mut engines =
        Engines { primary: Engine::start(&model).await?, fallback: Engine::start(&model).await? };
    let mut random = StdRng::seed_from_u64(args.seed);
    let faults = if args.faults.is_empty() { &Fault::ALL[..] } else { &args.faults };
    let (mut summaries, mut panels) = (Vec::new(), Vec::new());
    for fault in faults {
        let played = match fault {
            Fault::GatewayKill => kill_gateways(args, &engines, &mut random).await,
            _ => play(*fault, args, &mut engines, &mut random).await,
        };
        let played = played.context(fault.id())?;
        let summary = FaultSummary::of(*fault, &played);
        println!("{}", render_table(std::slice::from_ref(&summary)));
        summaries.push(summary);
        panels.push((fault.id(), played));
    }
    println!("{}", render_table(&summaries));
    std::fs::create_dir_all(&args.out)?;
    std::fs::write(args.out.join("summary.json"), serde_json::to_string_pretty(&summaries)? + "\n")?;
    std::fs::write(args.out.join("latency.svg"), plot::render(&panels))?;
    Ok(summaries)
}

fn model_path() -> anyhow::Result<PathBuf> {
    let model = cache_folder().join("models").join(MODEL_FILE);
    ensure!(model.is_file(), "{} is missing: run `make setup`", model.display());
    Ok(model)
}

/// Lets the fault happen to an engine behind these cables.
fn inject(fault: Fault, engine: &mut Engine, wires: &[Wire; 2]) -> anyhow::Result<()> {
    match fault {
        Fault::EngineKill => engine.signal(Signal::SIGKILL),
        Fault::EngineCrash => engine.signal(Signal::SIGILL),
        Fault::NodeFreeze => engine.signal(Signal::SIGSTOP),
        Fault::NetCut => {
            wires.iter().for_each(|wire| wire.set_cut(true));
            Ok(())
        }
        Fault::GpuHang => engine.stall_worker(),
        Fault::GatewayKill => anyhow::bail!("no fault of an engine"),
    }
}

/// Puts it right again.
async fn repair(fault: Fault, engine: &mut Engine, wires: &[Wire; 2]) -> anyhow::Result<()> {
    match fault {
        Fault::EngineKill | Fault::EngineCrash => engine.start_again().await,
        Fault::NodeFreeze => engine.signal(Signal::SIGCONT),
        Fault::NetCut => {
            wires.iter().for_each(|wire| wire.set_cut(false));
            Ok(())
        }
        // A card that hung is of no use any more: its engine is started anew, as its watchdog has it.
        Fault::GpuHang => engine.start_again().await,
        Fault::GatewayKill => anyhow::bail!("no fault of an engine"),
    }
}

struct Engines {
    primary: Engine,
    fallback: Engine,
}

/// What one fault came to.
pub struct Played {
    /// Its rounds.
    pub rounds: Vec<Round>,
    /// Every request of all clients.
    pub samples: Vec<Sample>,
    /// Attempts that the gateway made again.
    pub retried: u64,
    /// Breaks of streams that the other engine went on from.
    pub resumed: u64,
    /// Whether the engines know how to go on with a broken stream.
    pub resumes: bool,
}

/// Kills one of two gateways again and again; clients connect to either and try again, as those of a Service do.
async fn kill_gateways(args: &Args, engines: &Engines, random: &mut StdRng) -> anyhow::Result<Played> {
    let Engines { primary, fallback } = engines;
    let addresses = [primary.api, primary.internal, fallback.api, fallback.internal];
    let mut gateways = [GatewayProcess::start(addresses).await?, GatewayProcess::start(addresses).await?];
    let load = Load::start(gateways.iter().map(GatewayProcess::address).collect(), args.clients).await?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
        wait_until("a stream in its middle", PATIENCE, || async {
            if load.midway() > 0 { Ok(()) } else { Err("none") }
        })
        .await?;
        let victim = random.random_range(0..2);
        let at = Instant::now();
        gateways[victim].kill().await?;
        wait_until("answers of the other gateway", PATIENCE, || async {
            let answered = load.answered_since(at, "primary");
            if answered >= args.clients { Ok(()) } else { Err(format!("{answered} so far")) }
        })
        .await?;
        let repaired = Instant::now();
        gateways[victim].start_again().await?;
        rounds.push(Round { fault: at, moved: at, repaired });
    }
    let resumes = fallback.resumes_streams().await?;
    Ok(Played { rounds, samples: load.finish().await, retried: 0, resumed: 0, resumes })
}

async fn play(
    fault: Fault,
    args: &Args,
    engines: &mut Engines,
    random: &mut StdRng,
) -> anyhow::Result<Played> {
    let wires = [Wire::lay(engines.primary.api).await?, Wire::lay(engines.primary.internal).await?];
    let primary = match fault {
        Fault::NetCut => [wires[0].address, wires[1].address],
        _ => [engines.primary.api, engines.primary.internal],
    };
    let resumes = engines.fallback.resumes_streams().await?;
    let gateway = Gateway::start(primary, [engines.fallback.api, engines.fallback.internal]).await?;
    gateway.active("primary").await?;
    let load = Load::start(vec![gateway.api], args.clients).await?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        gateway.active("primary").await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
        wait_until("a stream in its middle", PATIENCE, || async {
            if load.midway() > 0 { Ok(()) } else { Err("none") }
        })
        .await?;
        let at = Instant::now();
        inject(fault, &mut engines.primary, &wires)?;
        gateway.active("fallback").await?;
        let moved = Instant::now();
        wait_until("answers of the fallback", PATIENCE, || async {
            let answered = load.answered_since(moved, "fallback");
            // Its usual time to a first token is known from them.
            if answered >= args.clients { Ok(()) } else { Err(format!("{answered} so far")) }
        })
        .await?;
        let repaired = Instant::now();
        repair(fault, &mut engines.primary, &wires).await?;
        rounds.push(Round { fault: at, moved, repaired });
    }
    gateway.active("primary").await?;
    let samples = load.finish().await;
    let counts = gateway.status().await?["models"][0]["requests"].clone();
    let count = |name: &str| counts[name].as_u64().unwrap_or(0);
    Ok(Played { rounds, samples, retried: count("retried"), resumed: count("resumed"), resumes })
}
