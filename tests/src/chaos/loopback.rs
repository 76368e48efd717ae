//! Faults on loopback: a gateway in this process, or several in processes of their own, over two engine processes.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rand::{RngExt, rngs::StdRng};

use super::{
    Fault, PATIENCE, Played, Round,
    ask::Door,
    engine::Engine,
    gateway::{Gateway, GatewayProcess},
    load::{Demand, Load, pace_of},
    model_path, stream_in_its_middle,
    wire::Wire,
};
use crate::support::wait_until;

/// Two engines, each a tier.
pub struct Loopback {
    primary: Engine,
    fallback: Engine,
    demand: Demand,
}

impl Loopback {
    /// Starts them and measures at which pace the clients ask for `share` of what one of them can answer.
    ///
    /// # Errors
    ///
    /// They do not start.
    pub async fn start(mut demand: Demand, share: f64) -> anyhow::Result<Self> {
        let model = model_path()?;
        let (primary, fallback) = (Engine::start(&model).await?, Engine::start(&model).await?);
        if share < 1.0 {
            let gateway =
                Gateway::start([primary.api, primary.internal], [fallback.api, fallback.internal]).await?;
            gateway.active("primary").await?;
            demand.pace = Some(pace_of(&Door::only(gateway.api), demand, share).await?);
        }
        Ok(Self { primary, fallback, demand })
    }

    /// Distance of a client's requests, where it is not as small as can be.
    #[must_use]
    pub fn pace(&self) -> Option<Duration> {
        self.demand.pace
    }

    /// Plays one fault again and again.
    ///
    /// # Errors
    ///
    /// Traffic does not move, or what is broken does not come back.
    pub async fn play(&mut self, fault: Fault, rounds: u32, random: &mut StdRng) -> anyhow::Result<Played> {
        match fault {
            Fault::GatewayKill => self.kill_gateways(rounds, random).await,
            _ => self.play_on_engine(fault, rounds, random).await,
        }
    }

    /// Kills one of two gateways; clients connect to either and try again, as those of a Service do.
    async fn kill_gateways(&self, rounds: u32, random: &mut StdRng) -> anyhow::Result<Played> {
        let Self { primary, fallback, demand } = self;
        let addresses = [primary.api, primary.internal, fallback.api, fallback.internal];
        let mut gateways = [GatewayProcess::start(addresses).await?, GatewayProcess::start(addresses).await?];
        let door = Door::any(gateways.iter().map(GatewayProcess::address).collect());
        let load = Load::start(door, *demand).await?;
        let mut played = Vec::new();
        for _ in 0..rounds {
            tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
            stream_in_its_middle(&load).await?;
            let victim = random.random_range(0..2);
            let at = Instant::now();
            gateways[victim].kill().await?;
            answers_of(&load, at, "primary", demand.clients).await?;
            let repaired = Instant::now();
            gateways[victim].start_again().await?;
            played.push(Round { fault: at, moved: at, repaired });
        }
        let resumes = fallback.resumes_streams().await?;
        Ok(Played {
            rounds: played,
            samples: load.finish().await,
            retried: 0,
            resumed: 0,
            deleted: 0,
            gateways_lost: 0,
            resumes,
        })
    }

    async fn play_on_engine(
        &mut self,
        fault: Fault,
        rounds: u32,
        random: &mut StdRng,
    ) -> anyhow::Result<Played> {
        let Self { primary, fallback, demand } = self;
        let wires = [Wire::lay(primary.api).await?, Wire::lay(primary.internal).await?];
        let way = match fault {
            Fault::NetCut => [wires[0].address, wires[1].address],
            _ => [primary.api, primary.internal],
        };
        let resumes = fallback.resumes_streams().await?;
        let gateway = Gateway::start(way, [fallback.api, fallback.internal]).await?;
        gateway.active("primary").await?;
        let load = Load::start(Door::only(gateway.api), *demand).await?;
        let mut played = Vec::new();
        for _ in 0..rounds {
            gateway.active("primary").await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
            stream_in_its_middle(&load).await?;
            let at = Instant::now();
            inject(fault, primary, &wires)?;
            gateway.active("fallback").await?;
            let moved = Instant::now();
            // Its usual time to a first token is known from them.
            answers_of(&load, moved, "fallback", demand.clients).await?;
            let repaired = Instant::now();
            repair(fault, primary, &wires).await?;
            played.push(Round { fault: at, moved, repaired });
        }
        gateway.active("primary").await?;
        let samples = load.finish().await;
        let counts = gateway.status().await?["models"][0]["requests"].clone();
        let count = |name: &str| counts[name].as_u64().unwrap_or(0);
        let (retried, resumed) = (count("retried"), count("resumed"));
        Ok(Played { rounds: played, samples, retried, resumed, deleted: 0, gateways_lost: 0, resumes })
    }
}

async fn answers_of(load: &Load, since: Instant, tier: &str, wanted: usize) -> anyhow::Result<()> {
    wait_until(&format!("answers of {tier}"), PATIENCE, || async {
        let answered = load.answered_since(since, tier);
        if answered >= wanted { Ok(()) } else { Err(format!("{answered} so far")) }
    })
    .await
    .context("the load stands still")?;
    Ok(())
}

/// Lets the fault happen to an engine behind these cables.
pub(super) fn inject(fault: Fault, engine: &mut Engine, wires: &[Wire; 2]) -> anyhow::Result<()> {
    match fault {
        Fault::EngineKill => engine.signal(Signal::SIGKILL),
        Fault::EngineCrash => engine.signal(Signal::SIGILL),
        Fault::NodeFreeze => engine.signal(Signal::SIGSTOP),
        Fault::NetCut => {
            wires.iter().for_each(|wire| wire.set_cut(true));
            Ok(())
        }
        Fault::GpuHang => engine.stall_worker(),
        Fault::GatewayKill | Fault::NodeKill | Fault::ControllerKill => {
            anyhow::bail!("{} is no fault of an engine", fault.id())
        }
    }
}

/// Puts it right again.
pub(super) async fn repair(fault: Fault, engine: &mut Engine, wires: &[Wire; 2]) -> anyhow::Result<()> {
    match fault {
        // A card that hung is of no use any more: its engine is started anew, as its watchdog has it.
        Fault::EngineKill | Fault::EngineCrash | Fault::GpuHang => engine.start_again().await,
        Fault::NodeFreeze => engine.signal(Signal::SIGCONT),
        Fault::NetCut => {
            wires.iter().for_each(|wire| wire.set_cut(false));
            Ok(())
        }
        Fault::GatewayKill | Fault::NodeKill | Fault::ControllerKill => {
            anyhow::bail!("{} is no fault of an engine", fault.id())
        }
    }
}
