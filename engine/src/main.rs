//! `atlas-engine`: an OpenAI-compatible server for GGUF models.
//!
//! This file parses the command line, runs the command and turns its end into the exit code of the contract.

mod backend;
mod bench;
mod card_metrics;
mod checkpoint;
mod config;
mod error;
mod fetch;
mod inspect;
mod load;
mod logits;
mod metrics;
mod model;
mod otlp;
mod runtime;
mod selftest;
mod serve;
mod server;
mod startup;
mod status;
mod text;
mod vram;

use atlas_engine_core::ExitCode as ExitCodes;
use clap::Parser;
use config::{Arguments, Command};
use error::Fatal;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Kubernetes keeps the last 4,096 bytes of a termination message; the reason comes before the header and needs room too.
const LONGEST_HEADER: usize = 3000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    // Both TLS libraries' providers could be linked; this names ours. It fails only where one is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut header = None;
    let (result, termination_log) = match &arguments.command {
        Command::Serve(serve) => {
            let served = serve::serve(serve).map_err(|failed| {
                header = failed.header;
                failed.error
            });
            (served, Some(serve.termination_log.as_path()))
        }
        Command::Inspect(inspect) => (inspect::inspect(inspect).map(|report| print(&report)), None),
        Command::Fetch(fetch) => (run_fetch(fetch), Some(fetch.termination_log.as_path())),
        Command::SelfTest(arguments) => (selftest::selftest(arguments, print), None),
        Command::Bench(arguments) => (bench::bench(arguments).map(|report| print(&report)), None),
        Command::Logits(arguments) => (logits::logits(arguments), None),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, header.as_ref(), termination_log);
            ExitCode::from(error.exit_code().number())
        }
    }
}

fn run_fetch(arguments: &config::Fetch) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Fatal::System { what: "starting the runtime", source })?;
    let download = startup::Download::default();
    let fetched = runtime.block_on(async {
        let mut stop = serve::Signals::new()
            .map_err(|source| Fatal::System { what: "listening for signals", source })?;
        let work = async {
            let place = arguments.buckets.place();
            let (uri, sha256) = (arguments.model.as_str(), arguments.sha256.as_deref());
            let wanted = fetch::Wanted { uri, place: &place, sha256 };
            let path = fetch::fetch(wanted, &arguments.cache_dir, &download).await?;
            print(&format!("{}\n", path.display()));
            if arguments.hold {
                fetch::read_ahead(&path).await?;
                std::future::pending::<()>().await;
            }
            Ok::<(), Fatal>(())
        };
        tokio::select! {
            done = work => done,
            () = stop.wait() => Ok(()),
        }
    });
    // A file that is read on a thread of its own is nobody's concern any more.
    runtime.shutdown_background();
    fetched
}

/// Prints, and takes a closed pipe for what it is: nobody reads on.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says why the process ends, to whoever looks: standard error, and the file that Kubernetes shows. Where memory was the
/// reason, the model's numbers follow in that file: nobody else may know them, and this process cannot be asked any more.
fn report(error: &Fatal, header: Option<&Value>, termination_log: Option<&Path>) {
    let message = error.message();
    tracing::error!(exit_code = error.exit_code().number(), "{message}");
    if let Some(path) = termination_log {
        // Outside a container there is none, and that is no second error. It is never created in /dev.
        let file = std::fs::OpenOptions::new().append(true).create(!path.starts_with("/dev")).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{message}");
            let memory = matches!(error.exit_code(), ExitCodes::DoesNotFit | ExitCodes::OutOfMemory);
            let header = header.filter(|_| memory).map(|header| format!("header: {header}"));
            // As above: the reason is in the log, and whoever plans goes on with what it knows.
            if let Some(header) = header.filter(|header| header.len() <= LONGEST_HEADER) {
                let _ = writeln!(file, "{header}");
            }
        }
    }
}
