//! Random faults every few seconds for a long time: nothing may be lost, and memory stays flat.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::ensure;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    Fault,
    ask::Door,
    engine::Engine,
    gateway::Gateway,
    load::{Demand, Load, Outcome, STREAM_TOKENS, Sample},
    loopback::{inject, repair},
    model_path,
    wire::Wire,
};

/// Growth of memory from the first quarter to the last that is none.
const FLAT: f64 = 1.25;

/// What `atlas-local soak` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How long.
    #[arg(long, default_value_t = 60.0)]
    pub minutes: f64,
    /// Clients that ask all the time, half of them for streams.
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// Distance of two faults in seconds.
    #[arg(long, default_value_t = 20)]
    pub every_seconds: u64,
    /// Where the random faults begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the result is left.
    #[arg(long, default_value = "target/chaos/soak.json")]
    pub out: PathBuf,
}

/// What it came to.
#[derive(Debug, Default, Serialize)]
pub struct Soaked {
    /// Faults so far.
    pub faults: usize,
    /// Requests that are over.
    pub requests: usize,
    /// Those without an answer.
    pub lost: usize,
    /// Those whose answer ended early or differs.
    pub broken: usize,
    /// Whether the engines know how to go on with a broken stream.
    pub resumes: bool,
    /// Resident memory of gateway and clients, which are one process, after each fault.
    pub rss_kib: Vec<u64>,
    /// The first failures, word for word.
    pub failures: Vec<String>,
}

impl Soaked {
    fn add(&mut self, samples: Vec<Sample>) {
        self.requests += samples.len();
        for sample in samples {
            let (count, why) = match sample.outcome {
                Outcome::Whole => continue,
                Outcome::Lost(why) => (&mut self.lost, why),
                Outcome::Broken(why) => (&mut self.broken, why),
            };
            *count += 1;
            if self.failures.len() < 20 {
                self.failures.push(why);
            }
        }
    }

    /// Leaves what was seen so far, so that a run that is ended has not been for nothing.
    fn write(&self, out: &Path) -> anyhow::Result<()> {
        if let Some(folder) = out.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(std::fs::write(out, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// How memory grew from the first quarter to the last.
    #[must_use]
    pub fn growth(&self) -> f64 {
        let quarter = self.rss_kib.len() / 4;
        let mean = |part: &[u64]| part.iter().sum::<u64>() as f64 / part.len().max(1) as f64;
        let (first, last) = (&self.rss_kib[..quarter], &self.rss_kib[self.rss_kib.len() - quarter..]);
        if quarter == 0 { 1.0 } else { mean(last) / mean(first) }
    }
}

/// Plays random faults on either engine, never on both.
///
/// # Errors
///
/// A request was lost, a stream broke that another engine could have gone on with, or memory grew.
pub async fn run(args: &Args) -> anyhow::Result<Soaked> {
    let model = model_path()?;
    let mut engines = [Engine::start(&model).await?, Engine::start(&model).await?];
    let mut wires = Vec::new();
    for engine in &engines {
        wires.push([Wire::lay(engine.api).await?, Wire::lay(engine.internal).await?]);
    }
    let [primary, fallback] = [0, 1].map(|at: usize| [wires[at][0].address, wires[at][1].address]);
    let gateway = Gateway::start(primary, fallback).await?;
    gateway.active("primary").await?;
    let load =
        Load::start(Door::only(gateway.api), Demand::without_pause(args.clients, STREAM_TOKENS)).await?;
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut soaked = Soaked { resumes: engines[1].resumes_streams().await?, ..Soaked::default() };
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(args.minutes * 60.0);
    println!(
        "soak: {} clients, a fault every {} s, for {} minutes",
        args.clients, args.every_seconds, args.minutes
    );
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_secs(args.every_seconds);
        let (at, fault) =
            (random.random_range(0..2), Fault::OF_ENGINES[random.random_range(0..Fault::OF_ENGINES.len())]);
        inject(fault, &mut engines[at], &wires[at])?;
        tokio::time::sleep(Duration::from_millis(random.random_range(100..5_000))).await;
        repair(fault, &mut engines[at], &wires[at]).await?;
        gateway.all_healthy().await?;
        soaked.faults += 1;
        soaked.add(load.take());
        soaked.rss_kib.push(resident_kib());
        println!(
            "{:>5} s, fault {:>4}: {:<12} on {}; requests {}, lost {}, broken {}, {} MB",
            began.elapsed().as_secs(),
            soaked.faults,
            fault.id(),
            ["primary", "fallback"][at],
            soaked.requests,
            soaked.lost,
            soaked.broken,
            resident_kib() / 1_000
        );
        soaked.write(&args.out)?;
        tokio::time::sleep_until(next.into()).await;
    }
    soaked.add(load.finish().await);
    soaked.write(&args.out)?;
    println!(
        "{} minutes of soak: {} faults, {} requests, {} lost, {} broken, memory at {:.2} times its beginning",
        args.minutes,
        soaked.faults,
        soaked.requests,
        soaked.lost,
        soaked.broken,
        soaked.growth()
    );
    let may_break = !soaked.resumes;
    ensure!(soaked.lost == 0 && (may_break || soaked.broken == 0), "{:?}", soaked.failures);
    ensure!(soaked.growth() < FLAT, "memory grew to {:.2} times what it was", soaked.growth());
    Ok(soaked)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
