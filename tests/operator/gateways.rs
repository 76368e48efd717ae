//! The gateways of a namespace: whose they are, and what the controller makes of what they say.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};
use atlas_crds::names::GATEWAY_INTERNAL_PORT;
use axum::{Json, Router, extract::State, routing::get};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::bench::{Bench, tier};

const OBJECTS: [&str; 5] =
    ["Deployment", "ServiceAccount", "RoleBinding", "PodDisruptionBudget", "NetworkPolicy"];

pub async fn the_gateway_stays_while_a_model_lives(bench: &Bench) -> Result<()> {
    bench.namespace("shared").await?;
    let a = bench.model(("shared", "a"), &[tier("primary", "big")], json!({})).await?.uid();
    let b = bench.model(("shared", "b"), &[tier("primary", "small")], json!({})).await?.uid();
    let owned_by = |expected: Vec<Option<String>>| {
        move |object: &DynamicObject| {
            let mut owners: Vec<_> = object.owner_references().iter().map(|o| Some(o.uid.clone())).collect();
            let mut expected = expected.clone();
            owners.sort();
            expected.sort();
            if owners == expected { Ok(()) } else { Err(format!("{owners:?}")) }
        }
    };
    for kind in OBJECTS {
        bench.wait_for(kind, (Some("shared"), "atlas-gateway"), owned_by(vec![a.clone(), b.clone()])).await?;
    }
    bench.remove_model(("shared", "a")).await?;
    for kind in OBJECTS {
        bench.wait_for(kind, (Some("shared"), "atlas-gateway"), owned_by(vec![b.clone()])).await?;
    }
    bench.remove_model(("shared", "b")).await
}

pub async fn a_name_that_the_gateway_needs_is_never_forced(bench: &Bench) -> Result<()> {
    let at = ("gateway-taken", "code");
    bench.namespace(at.0).await?;
    let theirs = json!({"metadata": {"name": "atlas-gateway", "namespace": at.0}});
    bench.create("ServiceAccount", Some(at.0), theirs).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.condition(at, "Accepted", "False", "NameTaken", &["ServiceAccount/atlas-gateway"]).await?;
    ensure!(bench.event(at.0, at.1, "NameTaken").await?.contains("ServiceAccount/atlas-gateway"));
    let account = bench.api("ServiceAccount", Some(at.0)).get("atlas-gateway").await?;
    ensure!(account.owner_references().is_empty() && account.labels().is_empty(), "{account:?}");
    bench.remove_model(at).await
}

/// A gateway that says what a test wants it to say.
pub struct FakeGateway {
    address: SocketAddr,
    says: Arc<Mutex<Value>>,
    server: JoinHandle<()>,
}

impl FakeGateway {
    /// The contract names the port, so the address is what is free: any of 127.0.0.0/8 will do.
    async fn start() -> Result<Self> {
        for _ in 0..64 {
            let [a, b, c, _] = rand::random::<u32>().to_be_bytes();
            let ip = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
            let Ok(listener) = TcpListener::bind((ip, GATEWAY_INTERNAL_PORT)).await else { continue };
            let says = Arc::new(Mutex::new(json!({"pod": "fake", "models": []})));
            let router = Router::new()
                .route(
                    "/internal/status",
                    get(async |State(says): State<Arc<Mutex<Value>>>| Json(says.lock().unwrap().clone())),
                )
                .with_state(Arc::clone(&says));
            let address = listener.local_addr()?;
            let server = tokio::spawn(async move {
                axum::serve(listener, router).await.unwrap();
            });
            return Ok(Self { address, says, server });
        }
        bail!("no free address in 127.0.0.0/8")
    }

    /// Starts one and makes it a pod of a namespace.
    pub async fn join(bench: &Bench, namespace: &str, node: &str, active: Option<&str>) -> Result<Self> {
        let fake = Self::start().await?;
        fake.say(active, &[]);
        let labels = json!({
            "app.kubernetes.io/name": "atlas-gateway", "app.kubernetes.io/component": "gateway",
            "app.kubernetes.io/managed-by": "atlas-operator",
        });
        let pod = json!({
            "metadata": {"name": "atlas-gateway-0", "namespace": namespace, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "gateway", "image": "example/atlas-operator:t"}]},
        });
        bench.create("Pod", Some(namespace), pod).await?;
        let ip = fake.address.ip().to_string();
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        bench.patch_status("Pod", (Some(namespace), "atlas-gateway-0"), status).await?;
        Ok(fake)
    }

    /// Ends it, as a gateway that is taken down.
    pub async fn leave(self, bench: &Bench, namespace: &str) -> Result<()> {
        self.server.abort();
        bench.remove_pod((namespace, "atlas-gateway-0")).await
    }

    /// Says which tier serves, and how these engines are.
    pub fn say_engines(&self, active: Option<&str>, engines: &[Value]) {
        *self.says.lock().unwrap() = json!({"pod": "fake", "models": [
            {"model": "code", "activeTier": active, "endpoints": engines, "switches": []}
        ]});
    }

    pub fn say(&self, active: Option<&str>, switches: &[(&str, &str, &str, &str)]) {
        let switches: Vec<Value> = switches
            .iter()
            .enumerate()
            .map(|(i, (from, to, cause, at))| {
                json!({"seq": i + 1, "from": from, "to": to, "cause": cause, "millis": 12, "at": at})
            })
            .collect();
        *self.says.lock().unwrap() =
            json!({"pod": "fake", "models": [{"model": "code", "activeTier": active, "switches": switches}]});
    }
}

pub async fn what_gateways_measure_becomes_status_and_events(bench: &Bench) -> Result<()> {
    let at = ("moves", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big"), tier("fallback", "small")], json!({})).await?;
    let fake = FakeGateway::join(bench, at.0, "xtx", Some("primary")).await?;
    bench.condition(at, "Ready", "True", "Serving", &["primary"]).await?;
    bench.condition(at, "Degraded", "False", "FirstTierServes", &[]).await?;

    let now = jiff::Timestamp::now().as_second();
    let time = |seconds: i64| jiff::Timestamp::from_second(now + seconds).map(|time| time.to_string());
    let (over, back) = (time(0)?, time(60)?);
    let lost = ("primary", "fallback", "ConnectionRefused", over.as_str());
    fake.say(Some("fallback"), &[lost]);
    bench.condition(at, "Degraded", "True", "FallbackServing", &["fallback", "primary"]).await?;
    let counted = |object: &DynamicObject| {
        let failover = &object.data["status"]["failover"];
        let right = failover["count"] == 1
            && failover["lastReason"] == "ConnectionRefused"
            && failover["lastMillis"] == 12;
        if right { Ok(()) } else { Err(failover.to_string()) }
    };
    bench.wait_for("AtlasModel", (Some(at.0), at.1), counted).await?;
    let note = bench.event(at.0, at.1, "FailedOver").await?;
    ensure!(note.contains("from tier primary to fallback after 12 ms: ConnectionRefused"), "{note}");

    fake.say(Some("primary"), &[lost, ("fallback", "primary", "FailedBack", &back)]);
    bench.condition(at, "Degraded", "False", "FirstTierServes", &[]).await?;
    bench.event(at.0, at.1, "FailedBack").await?;
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    counted(&model).map_err(anyhow::Error::msg).context("a failback is no failover")?;
    fake.leave(bench, at.0).await?;
    bench.remove_model(at).await
}
