//! The command line, read once.

use std::path::PathBuf;

use atlas_headers::AddressRange;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Plans, explains and watches Atlas models.
#[derive(Debug, Parser)]
#[command(name = "kubectl-atlas", bin_name = "kubectl atlas", version)]
pub struct Cli {
    /// When to colour.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub color: Color,
    /// Any value but an empty one turns colours off where --color is auto.
    #[arg(long, env = "NO_COLOR", hide = true)]
    pub no_color: Option<String>,
    /// Width of the output in columns; the terminal's where it has one.
    #[arg(long, global = true, env = "COLUMNS", hide_env_values = true)]
    pub width: Option<u16>,
    /// Which cluster and namespace.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Which cluster and namespace.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Namespace; the context's where it is absent.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub context: Option<String>,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what a model needs of its cards, and what to change where it does not fit.
    Plan(PlanArgs),
    /// Shows how models stand.
    Status(StatusArgs),
    /// Shows which cards a node has, and which GpuProfiles match it.
    Explain(ExplainArgs),
    /// Moves a model's traffic to one tier, or back to automatic failover.
    Failover(FailoverArgs),
    /// Checks this machine as a card node, or why a model is slow.
    Doctor(DoctorArgs),
    /// Measures a model as a client sees it, at several concurrencies.
    Bench(BenchArgs),
    /// Prints an AtlasModel for the cards that there are.
    Init(InitArgs),
    /// Prints the clients' llm_config.yaml.
    Config(ConfigArgs),
}

/// `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Name of an AtlasModel in the cluster.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub name: Option<String>,
    /// Manifests with AtlasModels, and GpuProfiles where they hold any; no cluster is asked then.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// GpuProfiles to plan with; those of the operator's samples where neither this nor the manifests have one.
    #[arg(long, conflicts_with = "name")]
    pub profiles: Option<PathBuf>,
    /// Header of a tier's model as a local file, TIER=PATH, instead of its source.
    #[arg(long = "header", value_parser = parse_header, value_name = "TIER=PATH")]
    pub headers: Vec<(String, PathBuf)>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Where sources are read.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// How sources are read.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Address of the hub that hf:// means.
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub hub: String,
    /// Token for private and gated repositories of the hub.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    pub hub_token: Option<String>,
    /// Range of addresses that sources may lead to besides public ones, for example 10.0.0.0/8; repeatable.
    #[arg(long = "header-allow-addresses", value_name = "RANGE")]
    pub allow_addresses: Vec<AddressRange>,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Name of an AtlasModel; all of the namespace where it is absent.
    pub name: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
    /// Look again every second until it is interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Name of a node.
    pub node: String,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Name of an AtlasModel.
    pub name: String,
    /// Tier that serves from now on, whatever its health.
    #[arg(long, required_unless_present = "auto", conflicts_with = "auto")]
    pub to: Option<String>,
    /// Back to automatic failover.
    #[arg(long)]
    pub auto: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// An AtlasModel to check instead of this machine: its status and settings, and its engines for five seconds, best
    /// while it is under load.
    #[arg(long)]
    pub model: Option<String>,
    /// Where the node's file system begins, for a pod that has it mounted.
    #[arg(long, default_value = "/", conflicts_with = "model")]
    pub root: PathBuf,
    /// The kernel's log as a file; what dmesg prints where it is absent.
    #[arg(long, conflicts_with = "model")]
    pub kernel_log: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Base URL of the API, such as http://code.atlas.svc:8080/v1.
    pub url: String,
    /// Model to ask for; the first of /models where it is absent.
    #[arg(long)]
    pub model: Option<String>,
    /// Requests at once, one level after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8", value_parser = parse_concurrency)]
    pub concurrency: Vec<usize>,
    /// Requests of each level; at least one a client.
    #[arg(long, default_value_t = 16)]
    pub requests: usize,
    /// Tokens that each answer may have.
    #[arg(long, default_value_t = 128)]
    pub max_tokens: u32,
    /// What is asked.
    #[arg(
        long,
        default_value = "Write a function that reverses a linked list, and explain it line by line."
    )]
    pub prompt: String,
    /// Key of the API.
    #[arg(long, env = "ATLAS_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Sources of the model files, the preferred one first: each gets a tier on a card of its own.
    #[arg(required = true, value_name = "SOURCE")]
    pub models: Vec<String>,
    /// Name of the AtlasModel; made from the first file's name where it is absent.
    #[arg(long)]
    pub name: Option<String>,
    /// GpuProfiles to choose from instead of those of the cluster that have a node.
    #[arg(long, conflicts_with = "offline")]
    pub profiles: Option<PathBuf>,
    /// Choose from the operator's sample profiles, and ask no cluster.
    #[arg(long)]
    pub offline: bool,
    /// Where sources are read.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Name of an AtlasModel.
    pub name: String,
    /// Host that the client reaches the model by, for clients outside the cluster; the exposed one where the Service
    /// has one.
    #[arg(long)]
    pub host: Option<String>,
    /// Port that the client reaches the model by.
    #[arg(long, requires = "host")]
    pub port: Option<u16>,
}

fn parse_concurrency(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1024) => Ok(number),
        _ => Err(format!("{text:?} is no number from 1 to 1024")),
    }
}

fn parse_header(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((tier, path)) if !tier.is_empty() && !path.is_empty() => Ok((tier.to_owned(), path.into())),
        _ => Err(format!("{text:?} is not TIER=PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parse = |words: &[&str]| {
            Cli::try_parse_from(["kubectl-atlas"].into_iter().chain(words.iter().copied())).is_ok()
        };
        assert!(parse(&["plan", "code", "-n", "atlas", "-o", "json"]));
        assert!(parse(&["plan", "-f", "m.yaml", "--profiles", "p.yaml", "--header", "primary=a.gguf"]));
        assert!(parse(&["failover", "code", "--to", "fallback"]));
        assert!(parse(&["failover", "code", "--auto"]));
        assert!(parse(&["bench", "http://h/v1", "--concurrency", "1,8"]));
        assert!(parse(&["init", "hf://o/r/a.gguf", "hf://o/r/b.gguf", "--offline"]));
        assert!(!parse(&["bench", "http://h/v1", "--concurrency", "0"]));
        assert!(!parse(&["init"]));
        for wrong in [
            &["plan"][..],
            &["plan", "code", "-f", "m.yaml"],
            &["plan", "code", "--profiles", "p.yaml"],
            &["plan", "-f", "m.yaml", "--header", "a.gguf"],
            &["failover", "code"],
            &["failover", "code", "--to", "a", "--auto"],
            &["status", "code", "-A"],
        ] {
            assert!(!parse(wrong), "{wrong:?}");
        }
    }
}
