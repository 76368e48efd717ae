//! `kubectl-atlas` plans, explains and watches Atlas models on a terminal; `kubectl atlas` finds it on the PATH.
//!
//! It computes with the operator's own pure core, so that what it plans offline is what the operator decides.
//! Only `failover` changes anything, and only `spec.failover` of one AtlasModel.

mod args;
mod bench;
mod cluster;
mod doctor;
mod engines;
mod error;
mod explain;
mod failover;
mod init;
mod llm_config;
mod manifest;
mod plan;
mod render;
mod status;
mod terminal;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use terminal::Terminal;

/// A plan says that a tier does not fit, or a check found a problem: no failure of the command.
const EXIT_PROBLEM: u8 = 2;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Well,
    /// It worked, and what it found is not well.
    Problem,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::detect(cli.color, cli.no_color.as_deref(), cli.width);
    match run(cli, &terminal).await {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Problem) => ExitCode::from(EXIT_PROBLEM),
        Err(error) => {
            eprintln!("{}", terminal.bad(&format!("error: {}", error::tell(error.as_ref()))));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli, terminal: &Terminal) -> anyhow::Result<Outcome> {
    let target = &cli.target;
    Ok(match cli.command {
        Command::Plan(args) => plan::run(&args, target, terminal).await?,
        Command::Status(args) => status::run(&args, target, terminal).await?,
        Command::Explain(args) => explain::run(&args, target, terminal).await?,
        Command::Failover(args) => failover::run(&args, target).await?,
        Command::Doctor(args) => doctor::run(&args, target, terminal).await?,
        Command::Bench(args) => bench::run(&args, terminal).await?,
        Command::Init(args) => init::run(&args, target).await?,
        Command::Config(args) => llm_config::run(&args, target).await?,
    })
}
