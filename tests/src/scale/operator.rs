//! The operator's process, and what its metrics and the proxy say of it.

use std::{net::TcpListener, process::Stdio, time::Duration};

use anyhow::Context;
use atlas_operator_core::vram::mebibytes;
use axum::{Router, response::IntoResponse, routing::get};
use tokio::process::{Child, Command};

use super::QUIET;
use crate::{
    api_proxy::ApiProxy,
    support::{binary, wait_until, wide_header},
};

/// How long anything may take before the benchmark gives up.
pub const PATIENCE: Duration = Duration::from_secs(900);
/// The histogram of the models' reconciles without their waits.
pub const MODELS_BUSY: &str = "atlas_reconcile_busy_seconds";

/// One operator, and the hub that it reads headers from.
pub struct Operator {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
    hub: tokio::task::JoinHandle<()>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.hub.abort();
    }
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Reconciles of AtlasModels.
    pub reconciles: f64,
    /// Writes of objects, the Lease and Events not among them.
    pub writes: f64,
    /// Requests of every kind.
    pub requests: f64,
}

impl Counts {
    /// The difference.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reconciles: self.reconciles - before.reconciles,
            writes: self.writes - before.writes,
            requests: self.requests - before.requests,
        }
    }
}

impl Operator {
    /// Starts one and waits until its stores are filled.
    pub async fn start(proxy: &ApiProxy) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let hub_url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/acme/models/resolve/main/{file}", get(async || wide_header().into_response()));
        let hub = tokio::spawn(async move {
            // It ends with the operator.
            let _ = axum::serve(listener, router).await;
        });
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, proxy.kubeconfig())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new(binary("atlas-operator")?)
            .args(["controller", "--namespace", "default", "--pod-name", "bench", "--listen", &address])
            .args(["--operator-image", "example/atlas-operator:t"])
            .args(["--engine-hip-image", "example/atlas-engine-hip:t"])
            .args(["--engine-cpu-image", "example/atlas-engine-cpu:t"])
            .args(["--hub", &hub_url, "--header-allow-addresses", "127.0.0.1"])
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let operator = Self { child, address, folder, hub };
        wait_until("the operator's readiness", PATIENCE, async || {
            let url = format!("http://{}/readyz", operator.address);
            let answer = reqwest::get(url).await.map_err(|e| e.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await
        .with_context(|| std::fs::read_to_string(operator.folder.path().join("log")).unwrap_or_default())?;
        Ok(operator)
    }

    /// Kills it and starts another.
    pub async fn restart(mut self, proxy: &ApiProxy) -> anyhow::Result<Self> {
        self.child.kill().await?;
        Self::start(proxy).await
    }

    /// Ends it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Its metrics.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(reqwest::get(format!("http://{}/metrics", self.address)).await?.text().await?)
    }

    /// What was counted so far.
    pub async fn counts(&self, proxy: &ApiProxy) -> anyhow::Result<Counts> {
        let text = self.metrics().await?;
        Ok(Counts {
            reconciles: sum(&text, "atlas_reconciles_total{controller=\"atlasmodel\"}"),
            writes: sum(&text, "atlas_writes_total"),
            requests: proxy.requests() as f64,
        })
    }

    /// Waits until it has written nothing for a while.
    pub async fn wait_until_quiet(&self) -> anyhow::Result<()> {
        let (mut last, mut since) = (f64::NAN, tokio::time::Instant::now());
        let give_up = since + PATIENCE;
        while since.elapsed() < QUIET {
            let text = self.metrics().await?;
            let now = sum(&text, "atlas_writes_total") + sum(&text, "atlas_reconciles_total");
            if now != last {
                (last, since) = (now, tokio::time::Instant::now());
            }
            anyhow::ensure!(since < give_up, "it never rests: {now} writes and reconciles");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Waits until it has reconciled models this often.
    pub async fn wait_for_reconciles(&self, wanted: f64) -> anyhow::Result<()> {
        wait_until("reconciles", PATIENCE, async || {
            let text = self.metrics().await.map_err(|e| e.to_string())?;
            let found = sum(&text, "atlas_reconciles_total{controller=\"atlasmodel\"}");
            if found >= wanted { Ok(()) } else { Err(format!("{found} of {wanted}")) }
        })
        .await?;
        Ok(())
    }

    /// Resident memory now and at its peak, as text.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let pid = self.child.id().context("the operator ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
        };
        field("VmRSS:").zip(field("VmHWM:")).context("no memory in its status")
    }
}

/// Bytes as a person reads them.
pub fn mib(bytes: u64) -> String {
    mebibytes(bytes)
}

/// Sum of every line of a metric that begins like this.
pub fn sum(text: &str, beginning: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(beginning))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>()
        // The sum of nothing is -0.
        + 0.0
}
