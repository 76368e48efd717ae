//! What every case plays: a model is made, changed, shortened and deleted, and after each step the world is compared.
//!
//! The test stands in for the Deployment controller, the kubelets and the garbage collector.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atlas_tests::{api_proxy::ApiProxy, support::wait_until};
use futures::StreamExt;
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};

use super::canonical::{CHILDREN, World, difference, list, look};
use crate::{
    bench::{Bench, kind, tier},
    scenarios::pod_status,
};

/// What the issue gives a cluster to come to rest after a fault.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Without a write for this long, nothing more is to come: an engine that starts is asked every second.
pub const QUIET: Duration = Duration::from_millis(1500);

/// The cluster, the way to it that breaks, and what a run without faults left after each step.
pub struct Stage<'a> {
    pub bench: &'a Bench,
    pub proxy: &'a ApiProxy,
    pub reference: Vec<World>,
}

/// Plays the Deployment controller: every Deployment is rolled out at once.
pub async fn roll_out_everything(client: kube::Client) {
    let deployments = kube::Api::<DynamicObject>::all_with(client.clone(), &kind("Deployment"));
    let mut changes =
        watcher(deployments, watcher::Config::default()).default_backoff().applied_objects().boxed();
    while let Some(change) = changes.next().await {
        let Ok(deployment) = change else { continue };
        let generation = deployment.metadata.generation;
        if deployment.data["status"]["observedGeneration"].as_i64() == generation {
            continue;
        }
        let replicas = deployment.data["spec"]["replicas"].as_i64().unwrap_or(1);
        let status = json!({"status": {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas,
            "readyReplicas": replicas, "availableReplicas": replicas,
        }});
        let namespace = deployment.namespace().unwrap_or_default();
        let api =
            kube::Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind("Deployment"));
        // One that was deleted meanwhile needs no status.
        let _ =
            api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
    }
}

/// A tier whose header the hub has.
pub fn wide(name: &str, profile: &str, context: i32) -> Value {
    let mut tier = tier(name, profile);
    tier["model"]["source"] = "hf://acme/models/wide.gguf".into();
    tier["contextTokens"] = context.into();
    tier
}

/// The tiers at first.
pub fn first_tiers() -> [Value; 2] {
    [wide("primary", "big", 4096), wide("fallback", "small", 2048)]
}

/// What the second step makes of the specification.
pub fn changed_spec() -> Value {
    let tiers = [wide("primary", "big", 8192), wide("fallback", "small", 2304)];
    json!({"tiers": tiers, "aliases": ["gpt-patch"], "requests": {"queue": 7}})
}

impl Stage<'_> {
    /// Makes the namespace, the model and its pods, as far as the first rest.
    pub async fn create(&self, namespace: &str) -> Result<()> {
        self.make(namespace).await?;
        self.rest(namespace, 0).await
    }

    /// Makes the namespace, the model and its pods.
    pub async fn make(&self, namespace: &str) -> Result<()> {
        let at = (namespace, "code");
        self.bench.namespace(namespace).await?;
        self.bench.model(at, &first_tiers(), json!({})).await?;
        for (tier, node) in [("primary", "xtx"), ("fallback", "rx")] {
            self.serve(namespace, tier, node).await?;
        }
        Ok(())
    }

    /// Makes a tier's pod, which is ready at once.
    pub async fn serve(&self, namespace: &str, tier: &str, node: &str) -> Result<()> {
        let pod = self.bench.engine_pod((namespace, "code"), tier, Some(node)).await?;
        let status = pod_status(true, json!({"running": {}}));
        self.bench.patch_status("Pod", (Some(namespace), &pod), status).await
    }

    /// Changes both tiers and the model's own fields.
    pub async fn change(&self, namespace: &str) -> Result<()> {
        self.bench.patch("AtlasModel", (namespace, "code"), json!({"spec": changed_spec()})).await?;
        self.rest(namespace, 1).await
    }

    /// Takes the second tier away.
    pub async fn shorten(&self, namespace: &str) -> Result<()> {
        let spec = json!({"tiers": [wide("primary", "big", 8192)]});
        self.bench.patch("AtlasModel", (namespace, "code"), json!({"spec": spec})).await?;
        self.bench.remove_pod((namespace, "code-t-fallback-0")).await?;
        self.rest(namespace, 2).await
    }

    /// Deletes the model and collects what it owned: nothing may come back.
    pub async fn delete(&self, namespace: &str) -> Result<()> {
        self.bench.remove_model((namespace, "code")).await?;
        for pod in ["code-t-primary-0", "code-t-fallback-0"] {
            let pods = self.bench.api("Pod", Some(namespace));
            if pods.get_opt(pod).await?.is_some() {
                self.bench.remove_pod((namespace, pod)).await?;
            }
        }
        wait_until("nothing to be left", LIMIT, async || {
            let left = list(self.bench, namespace, &CHILDREN).await.map_err(|e| e.to_string())?;
            for (name, object) in &left {
                if object.owner_references().is_empty() {
                    return Err(format!("{name} has no owner: an orphan"));
                }
                let (kind, name) = name.split_once('/').unwrap_or_default();
                // Somebody else may have been faster; the next look tells.
                let _ = self.bench.api(kind, Some(namespace)).delete(name, &DeleteParams::background()).await;
            }
            if left.is_empty() { Ok(()) } else { Err(format!("left: {:?}", left.keys())) }
        })
        .await?;
        Ok(())
    }

    /// Everything, one after the other, and what must hold of the way there.
    pub async fn play(&self, namespace: &str) -> Result<()> {
        self.create(namespace).await?;
        self.change(namespace).await?;
        self.shorten(namespace).await?;
        self.stay(namespace, 2).await?;
        self.check_writes()?;
        self.delete(namespace).await
    }

    /// Waits until the world is what it was without faults after this step.
    pub async fn rest(&self, namespace: &str, step: usize) -> Result<()> {
        let Some(expected) = self.reference.get(step) else { return self.rest_unknown(namespace).await };
        wait_until(&format!("the end of step {step}"), LIMIT, async || {
            let found = look(self.bench, namespace).await.map_err(|e| e.to_string())?;
            difference(expected, &found).map_or(Ok(()), Err)
        })
        .await?;
        Ok(())
    }

    /// Waits for the rest of a run that there is nothing to compare with.
    async fn rest_unknown(&self, namespace: &str) -> Result<()> {
        let model = self.bench.api("AtlasModel", Some(namespace));
        wait_until("the first rest", LIMIT, async || {
            let object = model.get("code").await.map_err(|e| e.to_string())?;
            let status = &object.data["status"];
            if status["observedGeneration"].as_i64() != object.metadata.generation {
                return Err("not seen yet".to_owned());
            }
            crate::bench::holds(&object, "Progressing", "False", "Settled", &[])?;
            crate::bench::holds(&object, "VramFits", "True", "Fits", &[])?;
            crate::bench::holds(&object, "Ready", "True", "Serving", &[])?;
            let quiet = self.proxy.quiet_for();
            if quiet >= QUIET { Ok(()) } else { Err(format!("a write {quiet:?} ago")) }
        })
        .await?;
        Ok(())
    }

    /// Sees that the world stays as it is after this step once nothing is written any more.
    pub async fn stay(&self, namespace: &str, step: usize) -> Result<()> {
        let Some(expected) = self.reference.get(step) else { return Ok(()) };
        wait_until("the last write", LIMIT, async || {
            let quiet = self.proxy.quiet_for();
            if quiet >= QUIET / 5 { Ok(()) } else { Err(format!("a write {quiet:?} ago")) }
        })
        .await?;
        match difference(expected, &look(self.bench, namespace).await?) {
            None => Ok(()),
            Some(difference) => bail!("the world moved on after its rest: {difference}"),
        }
    }

    /// Each object was created once, and only what the second tier owned was deleted.
    pub fn check_writes(&self) -> Result<()> {
        let writes = self.proxy.writes();
        let mut created: Vec<&str> = writes
            .iter()
            .filter(|w| w.method == http::Method::PATCH && w.status == 201)
            .map(|w| w.path.as_str())
            .collect();
        created.sort_unstable();
        let twice = created.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "created twice: {twice:?}");
        for deleted in writes.iter().filter(|w| w.method == http::Method::DELETE) {
            let name = deleted.path.rsplit('/').next().context("an empty path")?;
            ensure!(name == "code-t-fallback", "deleted without a cause: {deleted:?}");
        }
        Ok(())
    }
}
