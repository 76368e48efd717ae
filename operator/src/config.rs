//! The command line, read once; nothing else reads the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use atlas_headers::AddressRange;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Atlas Operator: language models on AMD cards, behind one URL that fails over.
#[derive(Debug, Parser)]
#[command(name = "atlas-operator", version)]
pub struct Cli {
    /// Form of the log lines.
    #[arg(long, global = true, value_enum, default_value = "text", env = "ATLAS_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to log, for example `info,atlas_operator=debug`.
    #[arg(long, global = true, default_value = "info", env = "RUST_LOG")]
    pub log: String,
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For log collectors.
    Json,
}

/// What a node shows while a card of it is marked as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeMark {
    /// Nothing: only Atlas' own pods are kept away.
    None,
    /// The condition AtlasGpuFault, for monitoring and for what drains nodes by conditions.
    Condition,
    /// The taint `atlas.gillsystems.com/gpu-fault:NoSchedule`, which keeps everybody's new pods away.
    Taint,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the controllers of AtlasModel and GpuProfile.
    Controller(Box<ControllerArgs>),
    /// Runs the data path of one namespace.
    Gateway(GatewayArgs),
}

/// Settings of the controllers.
#[derive(Debug, Clone, Args)]
pub struct ControllerArgs {
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, default_value = "0.0.0.0:8082")]
    pub listen: SocketAddr,
    /// The operator's own namespace, where its Lease lives.
    #[arg(long, env = "POD_NAMESPACE", default_value = "atlas-system")]
    pub namespace: String,
    /// The operator's own pod: its identity in the Lease and in Events.
    #[arg(long, env = "POD_NAME", default_value = "atlas-operator")]
    pub pod_name: String,
    /// Image of the gateways.
    #[arg(long)]
    pub operator_image: String,
    /// Image of the engines on AMD cards.
    #[arg(long)]
    pub engine_hip_image: String,
    /// Image of the engines on CPUs.
    #[arg(long)]
    pub engine_cpu_image: String,
    /// Pull policy of these images.
    #[arg(long, default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Secret of type kubernetes.io/dockerconfigjson, in each namespace that holds an AtlasModel, that these images are
    /// pulled with; repeatable.
    #[arg(long, value_name = "NAME")]
    pub image_pull_secret: Vec<String>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Gateways in each namespace that holds an AtlasModel.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=16))]
    pub gateway_replicas: i32,
    /// Secret of type kubernetes.io/tls, in each namespace that holds an AtlasModel, for its gateways' API; without it
    /// they speak plain HTTP.
    #[arg(long, value_name = "NAME")]
    pub gateway_tls_secret: Option<String>,
    /// GpuProfiles that are created at start where they are missing: YAML documents or one list.
    #[arg(long)]
    pub default_profiles: Option<PathBuf>,
    /// Whether replicas elect the one that reconciles.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_election: bool,
    /// How often each watch is compared with a list, so that an event that it has lost is noticed.
    #[arg(long, default_value = "40s", value_parser = parse_duration)]
    pub audit_interval: Duration,
    /// Whether headers of model files are read, so that what does not fit is refused before a node fetches it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub read_headers: bool,
    /// Whether the Secrets that models name for their sources are read, for the headers of private files.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub read_secrets: bool,
    /// Address of the hub that hf:// means.
    #[arg(long, default_value = "https://huggingface.co")]
    pub hub: String,
    /// Token for private and gated repositories of the hub.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    pub hub_token: Option<String>,
    /// Range of addresses that headers may be read from besides public ones, for example 10.0.0.0/8; repeatable.
    #[arg(long, value_name = "RANGE")]
    pub header_allow_addresses: Vec<AddressRange>,
    /// Address of the validating webhook; without it there is none.
    #[arg(long)]
    pub webhook_listen: Option<SocketAddr>,
    /// Name of the webhook's Service, Secret and ValidatingWebhookConfiguration.
    #[arg(long, default_value = "atlas-operator-webhook")]
    pub webhook_name: String,
    /// Further name or address of its certificate, for API servers that reach it by URL; repeatable.
    #[arg(long, value_name = "NAME")]
    pub webhook_dns_name: Vec<String>,
    /// What a node shows while a card of it is marked as failed, for others than Atlas.
    #[arg(long, value_enum, default_value = "none")]
    pub mark_nodes: NodeMark,
    /// Silence after which a ready gateway is deleted.
    #[arg(long, default_value = "750ms", value_parser = parse_silence)]
    pub gateway_silence: Duration,
}

/// Settings of the gateway.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Namespace whose models are served.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Address of the API.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Address of `/healthz`, `/readyz`, `/metrics` and `/internal/status`.
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub internal_listen: SocketAddr,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Certificate of the API's listener, and those between it and a root, as PEM; read anew when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Name of this pod, shown in its status.
    #[arg(long, env = "POD_NAME", default_value = "atlas-gateway")]
    pub pod_name: String,
}

/// Reads a duration in the Kubernetes form, for example `750ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration =
        text.parse().map_err(|_| format!("{text:?} is no duration: write for example 750ms or 2s"))?;
    if parsed.is_negative() {
        return Err(format!("{text:?} is negative"));
    }
    Ok(parsed.into())
}

/// Shortest silence that says anything: a gateway is asked twice within it.
const SHORTEST_SILENCE: Duration = Duration::from_millis(500);

/// Reads a duration after which a gateway may be given up.
fn parse_silence(text: &str) -> Result<Duration, String> {
    let silence = parse_duration(text)?;
    if silence < SHORTEST_SILENCE {
        return Err(format!("{text:?} would replace gateways that are well: write 500ms or more"));
    }
    Ok(silence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_reads_the_contract() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from([
            "atlas-operator",
            "controller",
            "--operator-image",
            "o",
            "--engine-hip-image",
            "h",
            "--engine-cpu-image",
            "c",
            "--leader-election=false",
            "--gateway-silence",
            "500ms",
        ])
        .unwrap();
        let Command::Controller(args) = cli.command else { panic!("the subcommand was controller") };
        assert!(!args.leader_election);
        assert_eq!(args.gateway_silence, Duration::from_millis(500));
    }
}
