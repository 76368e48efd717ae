//! The gateways that the faults are played on: one of this process, or processes that can be killed.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use atlas_gateway::{
    EndpointConfig, GatewayConfig, Keys, Listeners, ModelConfig, ModelTable, TierConfig, Timing, serve,
};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{PATIENCE, engine};
use crate::{lab::MODEL_FILE, support::binary};

/// Short, since every round waits for it; what is measured does not depend on it.
const FAILBACK_AFTER: Duration = Duration::from_millis(200);

/// What `atlas-local chaos-gateway` takes: a gateway that the suite can kill.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayArgs {
    /// Where clients connect to.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where its status is.
    #[arg(long)]
    pub internal_listen: SocketAddr,
    /// API and internal port of the preferred tier's engine, then of the other one's.
    #[arg(long, value_delimiter = ',')]
    pub engines: Vec<SocketAddr>,
}

/// Serves until the process ends.
///
/// # Errors
///
/// A port is taken.
pub async fn run_gateway(args: GatewayArgs) -> anyhow::Result<()> {
    let [a, b, c, d] = args.engines[..] else { anyhow::bail!("four addresses of engines are needed") };
    let config = config(args.listen, args.internal_listen);
    let listeners = Listeners::bind(&config).await?;
    let (_table, view) = watch::channel(table([a, b], [c, d]));
    let listed = CancellationToken::new();
    listed.cancel();
    Ok(serve(config, listeners, view, listed, CancellationToken::new()).await?)
}

fn config(listen: SocketAddr, internal_listen: SocketAddr) -> GatewayConfig {
    GatewayConfig {
        namespace: "atlas".into(),
        listen,
        internal_listen,
        tls: None,
        cluster_domain: "cluster.local".into(),
        pod_name: "chaos".into(),
        timing: Timing { drain_grace: Duration::ZERO, ..Timing::production() },
    }
}

/// A gateway process on ports of its own; ended when dropped.
pub struct GatewayProcess {
    args: GatewayArgs,
    child: Child,
}

impl GatewayProcess {
    /// Starts one over two engines and waits until it serves from the first.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn start(engines: [SocketAddr; 4]) -> anyhow::Result<Self> {
        let (listen, internal_listen) = (engine::free_port().await?, engine::free_port().await?);
        let args = GatewayArgs { listen, internal_listen, engines: engines.to_vec() };
        let process = Self { child: spawn(&args)?, args };
        process.ready().await?;
        Ok(process)
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.args.listen
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// It is gone already.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Starts it again on the same ports.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.args)?;
        self.ready().await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        reached(self.args.internal_listen, "a gateway to serve", |model| model["activeTier"] == "primary")
            .await
    }
}

fn spawn(args: &GatewayArgs) -> anyhow::Result<Child> {
    let engines: Vec<String> = args.engines.iter().map(SocketAddr::to_string).collect();
    let mut command = Command::new(binary("atlas-local")?);
    command.args(["chaos-gateway", "--listen", &args.listen.to_string()]);
    command.args(["--internal-listen", &args.internal_listen.to_string(), "--engines", &engines.join(",")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().context("the gateway does not start")
}

async fn reached(internal: SocketAddr, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A process that has just been started does not listen yet.
        let answer = engine::request(internal, "GET", "/internal/status", "").await;
        let status: Value =
            answer.and_then(|(_, body)| serde_json::from_slice(&body).ok()).unwrap_or_default();
        if is_so(&status["models"][0]) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}: {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A gateway of this process.
pub struct Gateway {
    /// Where clients connect to.
    pub api: SocketAddr,
    internal: SocketAddr,
    _stop: DropGuard,
    table: watch::Sender<ModelTable>,
}

impl Gateway {
    /// Starts one over two engines.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start(primary: [SocketAddr; 2], fallback: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = config(any, any);
        let listeners = Listeners::bind(&config).await?;
        let (api, internal) = (listeners.api.local_addr()?, listeners.internal.local_addr()?);
        let (table, view) = watch::channel(table(primary, fallback));
        let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
        listed.cancel();
        tokio::spawn(serve(config, listeners, view, listed, stop.clone()));
        Ok(Self { api, internal, _stop: stop.drop_guard(), table })
    }

    /// Lets in only callers with these keys, by their names.
    pub fn require_keys(&self, callers: &[(&str, &str)]) {
        let entries: Vec<(String, &[u8])> =
            callers.iter().map(|(name, key)| ((*name).to_owned(), key.as_bytes())).collect();
        let keys = Keys::read(entries.iter().map(|(name, key)| (name, *key)));
        self.table.send_modify(|table| {
            table.keys = [("keys".to_owned(), Arc::new(keys))].into();
            for model in table.models.values_mut() {
                Arc::make_mut(model).api_keys_secret = Some("keys".to_owned());
            }
        });
    }

    /// What it says about itself.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let answer = engine::request(self.internal, "GET", "/internal/status", "").await;
        Ok(serde_json::from_slice(&answer.context("the gateway does not answer")?.1)?)
    }

    /// Waits until this tier serves.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn active(&self, tier: &str) -> anyhow::Result<()> {
        reached(self.internal, &format!("{tier} to serve"), |model| model["activeTier"] == tier).await
    }

    /// Waits until every engine is healthy.
    ///
    /// # Errors
    ///
    /// One is not.
    pub async fn all_healthy(&self) -> anyhow::Result<()> {
        let healthy = |endpoint: &Value| endpoint["health"] == "Healthy";
        reached(self.internal, "every engine to be healthy", |model| {
            model["endpoints"].as_array().is_some_and(|endpoints| endpoints.iter().all(healthy))
        })
        .await
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
        across_models: false,
        client_priority: false,
        cors_origins: Vec::new(),
        max_body_bytes: 1 << 20,
    };
    ModelTable {
        models: [("code".to_owned(), Arc::new(model))].into(),
        endpoints: vec![endpoint("primary", primary), endpoint("fallback", fallback)],
        ..ModelTable::default()
    }
}
