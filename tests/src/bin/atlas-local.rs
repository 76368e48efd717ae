//! What `make run` and `make bench` start: the tour on a local cluster or on the current one, and the benchmarks.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use atlas_tests::{
    bench, chaos, scale,
    tour::{
        self,
        report::{Report, Screen},
        stage::{CurrentStage, LocalStage, Stage},
    },
};
use clap::{Parser, Subcommand, ValueEnum};

/// The local cluster of Atlas Operator: a real control plane with simulated AMD nodes, on one machine without a GPU.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the main job live, then stays up until ctrl-C.
    Run {
        /// Where to play: a cluster made for this run, or the one of KUBECONFIG.
        #[arg(long, value_enum, default_value_t = Where::Local)]
        cluster: Where,
        /// End after the tour, with `tour: ok` or `tour: failed: WHY` as the last line.
        #[arg(long)]
        once: bool,
        /// Where the figures of the tour are left.
        #[arg(long, default_value = "target/run/tour.json")]
        report: PathBuf,
    },
    /// Measures what docs/benchmarks.md reports.
    Bench(bench::Args),
    /// Measures the operator with a thousand models and a thousand nodes, on an API server alone.
    Scale(scale::Args),
    /// Plays faults under load over the gateway and real engine processes, and measures what clients notice.
    Chaos(chaos::Args),
    /// A gateway that `chaos` can kill.
    #[command(hide = true)]
    ChaosGateway(chaos::gateway::GatewayArgs),
    /// Plays random faults for a long time; fails when a request is lost or memory grows.
    Soak(chaos::soak::Args),
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    Local,
    Current,
}

#[tokio::main]
async fn main() -> ExitCode {
    atlas_tests::support::init_logging();
    match Args::parse().command {
        Command::Run { cluster, once, report } => run(cluster, once, report).await,
        Command::Chaos(args) => match chaos::run(&args).await {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("chaos: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::ChaosGateway(args) => match chaos::gateway::run_gateway(args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("chaos-gateway: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Soak(args) => match chaos::soak::run(&args).await {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("soak: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Scale(args) => match scale::run(&args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("scale: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Bench(args) => match bench::run(args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

async fn run(cluster: Where, once: bool, path: PathBuf) -> ExitCode {
    let screen = Screen::default();
    let mut report = Report::default();
    let mut stage = None;
    // A ctrl-C in mid-tour takes the same way out as the tour's end: everything that was started is ended.
    let outcome = tokio::select! {
        outcome = play(cluster, once, &screen, &mut report, &mut stage) => outcome,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    report.ok = outcome.is_ok();
    report.failed = outcome.as_ref().err().map(|error| format!("{error:#}"));
    if let Err(error) = report.write(&path) {
        eprintln!("cannot write {}: {error:#}", path.display());
    }
    if outcome.is_ok() && !once {
        println!("\nctrl-C ends it and cleans up.");
        interrupted().await;
        println!();
    }
    if let Some(stage) = stage {
        stage.stop().await;
    }
    match outcome {
        Ok(()) => {
            println!("tour: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("tour: failed: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

async fn play(
    cluster: Where,
    once: bool,
    screen: &Screen,
    report: &mut Report,
    place: &mut Option<Stage>,
) -> anyhow::Result<()> {
    let stage = match cluster {
        Where::Local => Stage::Local(Box::new(LocalStage::start(screen, report, BTreeMap::new()).await?)),
        Where::Current => Stage::Current(Box::new(CurrentStage::connect().await?)),
    };
    let stage = place.insert(stage);
    tour::run(stage, screen, report).await?;
    if !once {
        screen.heading("To go on by hand");
        let url = stage.service_url().await?;
        println!("{}", by_hand(stage, &url));
    }
    Ok(())
}

fn by_hand(stage: &Stage, url: &str) -> String {
    let kubectl = stage.kubectl_path().display();
    let kubeconfig = stage.kubeconfig().display();
    format!(
        r#"  export KUBECONFIG={kubeconfig}
  {kubectl} get atlasmodels,pods -n atlas -o wide
  {kubectl} describe atlasmodel -n atlas code

  curl {url}/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"code","stream":true,"messages":[{{"role":"user","content":"Write hello world in Rust."}}]}}'

  {python} - <<'PYTHON'
  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="unused")
  answer = client.chat.completions.create(model="code", messages=[{{"role": "user", "content": "Say hello."}}])
  print(answer.choices[0].message.content)
  PYTHON"#,
        python = atlas_tests::assets::cache_folder().join("venv/bin/python").display(),
    )
}

async fn interrupted() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
