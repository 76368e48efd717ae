//! What the examples share: a gateway over one engine on loopback, and the machine that figures were taken on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use atlas_gateway::{
    EndpointConfig, GatewayConfig, Listeners, ModelConfig, ModelTable, TierConfig, Timing, serve,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Any error: these are tools at their end, not a library.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The machine, for people who compare figures.
pub fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|pair| pair.1);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{} x {}, profile {}",
        cores,
        model.unwrap_or("unknown CPU"),
        if cfg!(debug_assertions) { "dev" } else { "release" }
    )
}

/// Starts a gateway whose only engine is at this address.
pub async fn start_gateway(engine: SocketAddr) -> Result<SocketAddr, Failure> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = GatewayConfig {
        namespace: "atlas".into(),
        listen: any,
        internal_listen: any,
        tls: None,
        cluster_domain: "cluster.local".into(),
        pod_name: "bench".into(),
        timing: Timing::production(),
    };
    let listeners = Listeners::bind(&config).await?;
    let address = listeners.api.local_addr()?;
    let model = ModelConfig {
        name: "code".into(),
        aliases: Vec::new(),
        suspended: false,
        api_keys_secret: None,
        tiers: vec![TierConfig {
            name: "primary".into(),
            display_model: "m".into(),
            context_tokens: 4096,
            message: None,
        }],
        pinned_tier: None,
        active_tier_hint: None,
        unhealthy_after: Duration::from_secs(1),
        failback_after: Duration::from_secs(60),
        timeout: Duration::from_secs(300),
        queue: 64,
        across_models: false,
        client_priority: false,
        cors_origins: Vec::new(),
        max_body_bytes: 8 << 20,
    };
    let endpoint = EndpointConfig {
        model: "code".into(),
        tier: "primary".into(),
        api: engine,
        internal: engine,
        pod: None,
        node: None,
        ready: true,
    };
    let table = ModelTable {
        models: [("code".into(), Arc::new(model))].into(),
        endpoints: vec![endpoint],
        ..ModelTable::default()
    };
    let (writer, view) = watch::channel(table);
    let listed = CancellationToken::new();
    listed.cancel();
    tokio::spawn(async move {
        let _writer = writer;
        serve(config, listeners, view, listed, CancellationToken::new()).await
    });
    Ok(address)
}
