//! `bench`: a concurrency sweep against an OpenAI-compatible URL, as the hardware guide's batch table is made.
//!
//! Every level runs as many clients as it says, each asking again as soon as it has its answer; figures are of whole
//! answers alone. It measures what a client sees, through gateway and network.

mod client;
mod stats;

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;

pub use stats::{LevelReport, Millis};

use crate::{
    Outcome,
    args::{BenchArgs, Output},
    error::CliError,
    render::render_bench,
    terminal::{Terminal, print_value, put},
};
use client::{Asker, Sample};

/// A sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchReport {
    /// What was asked.
    pub url: String,
    /// The model that was asked for.
    pub model: String,
    /// Tokens that each answer may have.
    pub max_tokens: u32,
    /// One a concurrency, in the order of the command line.
    pub levels: Vec<LevelReport>,
}

/// Runs the sweep and prints it; a request that failed is a problem.
pub async fn run(args: &BenchArgs, terminal: &Terminal) -> Result<Outcome, CliError> {
    let asker = Arc::new(Asker::new(args)?);
    let model = asker.find_model(args.model.as_deref()).await?;
    let mut levels = Vec::with_capacity(args.concurrency.len());
    for concurrency in &args.concurrency {
        levels.push(run_level(&asker, &model, *concurrency, args).await);
    }
    let report = BenchReport { url: args.url.clone(), model, max_tokens: args.max_tokens, levels };
    match args.output {
        Output::Table => put(&render_bench(&report, terminal)),
        output => print_value(&report, output)?,
    }
    let failed = report.levels.iter().any(|level| level.failed > 0);
    Ok(if failed { Outcome::Problem } else { Outcome::Well })
}

async fn run_level(asker: &Arc<Asker>, model: &str, concurrency: usize, args: &BenchArgs) -> LevelReport {
    let total = args.requests.max(concurrency);
    let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (asker, model) = (Arc::clone(asker), model.to_owned());
        let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
        clients.spawn(async move {
            let mut samples: Vec<Result<Sample, String>> = Vec::new();
            loop {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return samples;
                }
                samples.push(asker.ask(&model, number).await);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let progress = tokio::spawn(show_progress(concurrency, total, done));
    let samples = clients.join_all().await.into_iter().flatten().collect();
    progress.abort();
    clear_progress();
    LevelReport::of(concurrency, started.elapsed(), samples)
}

/// A line on standard error, where that is a terminal.
async fn show_progress(concurrency: usize, total: usize, done: Arc<AtomicUsize>) {
    const BAR: usize = 30;
    if !std::io::stderr().is_terminal() {
        return;
    }
    loop {
        let count = done.load(Ordering::Relaxed).min(total);
        let filled = count * BAR / total.max(1);
        eprint!(
            "\r{concurrency:>3} at once [{}{}] {count}/{total}",
            "#".repeat(filled),
            "-".repeat(BAR - filled)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
