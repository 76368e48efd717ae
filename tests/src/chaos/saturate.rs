//! Nothing is broken and everything is busy: no failover may happen, however long it lasts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{
    ask::Door,
    engine::Engine,
    gateway::Gateway,
    load::{Demand, Load, Outcome, STREAM_TOKENS, Sample},
    model_path,
};

/// Between two looks at what the gateway sees.
const LOOK: Duration = Duration::from_millis(250);
/// Distance of two lines of progress.
const LINE: Duration = Duration::from_secs(15);
/// For the gateway to say what it sees, however busy it is.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// What it came to.
#[derive(Debug, Default, Serialize)]
pub struct Saturated {
    /// For how long.
    pub minutes: f64,
    /// Clients, each with a request on the heels of the one before.
    pub clients: usize,
    /// Requests that are over.
    pub requests: usize,
    /// Those without an answer.
    pub lost: usize,
    /// Those whose answer ended early or differs.
    pub broken: usize,
    /// Requests that the fallback answered.
    pub by_fallback: usize,
    /// Moves of traffic that the gateway recorded.
    pub switches: usize,
    /// Looks at the gateway, and those at which it held an engine to be unhealthy.
    pub looks: usize,
    /// See `looks`.
    pub unhealthy_looks: usize,
    /// Median and slowest hundredth of the time to a first token.
    pub first_token_p50_ms: u64,
    /// See `first_token_p50_ms`.
    pub first_token_p99_ms: u64,
    /// The first failures, word for word.
    pub failures: Vec<String>,
}

/// Lets the clients ask for all that an engine can answer.
///
/// # Errors
///
/// Traffic moved, an engine was held to be unhealthy, or a request was not answered whole.
pub async fn run(minutes: f64, clients: usize, out: &Path) -> anyhow::Result<Saturated> {
    let model = model_path()?;
    println!("saturation: two engines start");
    let (primary, fallback) = (Engine::start(&model).await?, Engine::start(&model).await?);
    let gateway = Gateway::start([primary.api, primary.internal], [fallback.api, fallback.internal]).await?;
    gateway.active("primary").await?;
    gateway.all_healthy().await?;
    println!("saturation: every answer is learned, then {clients} clients ask for {minutes} minutes");
    let load = Load::start(Door::only(gateway.api), Demand::without_pause(clients, STREAM_TOKENS)).await?;
    let mut result = Saturated { minutes, clients, ..Saturated::default() };
    let mut firsts = Vec::new();
    let began = Instant::now();
    let (end, mut next_line) = (began + Duration::from_secs_f64(minutes * 60.0), began + LINE);
    while Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        let status = status_of(&gateway).await?;
        result.looks += 1;
        if Instant::now() >= next_line {
            next_line += LINE;
            println!(
                "saturation: {} requests after {} s, {} lost, {} broken",
                result.requests,
                began.elapsed().as_secs(),
                result.lost,
                result.broken
            );
        }
        let endpoints = status["models"][0]["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        if endpoints.iter().any(|endpoint| endpoint["health"] != "Healthy") {
            result.unhealthy_looks += 1;
            println!("held to be unhealthy: {}", Value::from(endpoints));
        }
        result.add(load.take(), &mut firsts);
    }
    let status = status_of(&gateway).await?;
    result.switches = status["models"][0]["switches"].as_array().map_or(0, Vec::len);
    println!("saturation: nothing more is asked, {clients} clients finish");
    result.add(load.finish().await, &mut firsts);
    firsts.sort_unstable();
    let at = |share: f64| firsts.get((firsts.len() as f64 * share) as usize).copied().unwrap_or_default();
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    (result.first_token_p50_ms, result.first_token_p99_ms) = (millis(at(0.5)), millis(at(0.99)));
    println!(
        "{minutes} minutes of saturation, {clients} clients: {} requests, first token after {} ms (p50) and {} ms (p99), \
         {} lost, {} broken, {} by the fallback, {} switches, unhealthy at {} of {} looks",
        result.requests,
        result.first_token_p50_ms,
        result.first_token_p99_ms,
        result.lost,
        result.broken,
        result.by_fallback,
        result.switches,
        result.unhealthy_looks,
        result.looks
    );
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("saturation.json"), serde_json::to_string_pretty(&result)? + "\n")?;
    ensure!(result.lost + result.broken == 0, "not answered whole: {:?}", result.failures);
    ensure!(
        result.switches + result.unhealthy_looks + result.by_fallback == 0,
        "a false failover: {}",
        status["models"][0]
    );
    Ok(result)
}

async fn status_of(gateway: &Gateway) -> anyhow::Result<Value> {
    let status = tokio::time::timeout(STATUS_LIMIT, gateway.status()).await;
    status.with_context(|| format!("the gateway did not say what it sees within {STATUS_LIMIT:?}"))?
}

impl Saturated {
    fn add(&mut self, samples: Vec<Sample>, firsts: &mut Vec<Duration>) {
        self.requests += samples.len();
        for sample in samples {
            firsts.extend(sample.first_after());
            self.by_fallback += usize::from(sample.tier.as_deref() == Some("fallback"));
            let (count, why) = match sample.outcome {
                Outcome::Whole => continue,
                Outcome::Lost(why) => (&mut self.lost, why),
                Outcome::Broken(why) => (&mut self.broken, why),
            };
            *count += 1;
            if self.failures.len() < 5 {
                self.failures.push(why);
            }
        }
    }
}
