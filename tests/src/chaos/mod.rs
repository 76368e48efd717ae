//! Faults under load, over the real gateway and real engine processes: what clients notice of them, in figures.
//!
//! The gateway runs in this process with a table made by hand, the two engines are processes on loopback that serve
//! the same model as two tiers. What needs nodes and a cluster (a lost node, a lost gateway) is not played here.

mod engine;
mod load;
mod plot;
pub mod soak;
mod stall;
mod summary;
mod wire;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use atlas_gateway::{
    EndpointConfig, GatewayConfig, Listeners, ModelConfig, ModelTable, TierConfig, Timing, serve,
};
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{assets::cache_folder, lab::MODEL_FILE, support::wait_until};
use engine::Engine;
use load::Load;
pub use load::{Outcome, Sample};
pub use summary::{FaultSummary, render_table};
use wire::Wire;

const PATIENCE: Duration = Duration::from_secs(120);
/// Short, since every round waits for it; what is measured does not depend on it.
const FAILBACK_AFTER: Duration = Duration::from_millis(200);
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
    /// The engine's worker stands still in the middle of its work and everything else goes on, as when the card hangs.
    GpuHang,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 5] =
        [Self::EngineKill, Self::EngineCrash, Self::NodeFreeze, Self::NetCut, Self::GpuHang];

    /// The id in the summary.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::EngineKill => "engine-kill",
            Self::EngineCrash => "engine-crash",
            Self::NodeFreeze => "node-freeze",
            Self::NetCut => "net-cut",
            Self::GpuHang => "gpu-hang",
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
        let played = play(*fault, args, &mut engines, &mut random).await.context(fault.id())?;
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
    let load = Load::start(gateway.api, args.clients).await?;
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

/// A gateway of this process.
struct Gateway {
    api: SocketAddr,
    internal: SocketAddr,
    _stop: DropGuard,
    _table: watch::Sender<ModelTable>,
}

impl Gateway {
    async fn start(primary: [SocketAddr; 2], fallback: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = GatewayConfig {
            namespace: "atlas".into(),
            listen: any,
            internal_listen: any,
            cluster_domain: "cluster.local".into(),
            pod_name: "chaos".into(),
            timing: Timing { drain_grace: Duration::ZERO, ..Timing::production() },
        };
        let listeners = Listeners::bind(&config).await?;
        let (api, internal) = (listeners.api.local_addr()?, listeners.internal.local_addr()?);
        let (table, view) = watch::channel(table(primary, fallback));
        let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
        listed.cancel();
        tokio::spawn(serve(config, listeners, view, listed, stop.clone()));
        Ok(Self { api, internal, _stop: stop.drop_guard(), _table: table })
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let answer = engine::request(self.internal, "GET", "/internal/status", "").await;
        Ok(serde_json::from_slice(&answer.context("the gateway does not answer")?.1)?)
    }

    async fn active(&self, tier: &str) -> anyhow::Result<()> {
        self.reached(&format!("{tier} to serve"), |model| model["activeTier"] == tier).await
    }

    async fn all_healthy(&self) -> anyhow::Result<()> {
        let healthy = |endpoint: &Value| endpoint["health"] == "Healthy";
        self.reached("every engine to be healthy", |model| {
            model["endpoints"].as_array().is_some_and(|endpoints| endpoints.iter().all(healthy))
        })
        .await
    }

    async fn reached(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if is_so(&status["models"][0]) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}: {status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn table(primary: [SocketAddr; 2], fallback: [SocketAddr; 2]) -> ModelTable {
    let tier = |name: &str| TierConfig {
        name: name.into(),
        display_model: Path::new(MODEL_FILE).file_stem().unwrap_or_default().to_string_lossy().into(),
        context_tokens: 512,
        message: None,
    };
    let endpoint = |tier: &str, [api, internal]: [SocketAddr; 2]| EndpointConfig {
        model: "code".into(),
        tier: tier.into(),
        api,
        internal,
        pod: None,
        node: None,
        ready: true,
    };
    let model = ModelConfig {
        name: "code".into(),
        aliases: Vec::new(),
        suspended: false,
        api_keys_secret: None,
        tiers: vec![tier("primary"), tier("fallback")],
        pinned_tier: None,
        active_tier_hint: None,
        unhealthy_after: Duration::from_secs(1),
        failback_after: FAILBACK_AFTER,
        timeout: Duration::from_secs(300),
        queue: 64,
        max_body_bytes: 1 << 20,
    };
    ModelTable {
        models: [("code".to_owned(), Arc::new(model))].into(),
        endpoints: vec![endpoint("primary", primary), endpoint("fallback", fallback)],
        ..ModelTable::default()
    }
}
