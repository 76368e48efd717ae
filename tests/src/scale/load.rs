//! The cluster's other inhabitants: nodes, models, pods, and the Deployment controller's words.

use std::collections::BTreeSet;

use anyhow::Context;
use atlas_crds::{AtlasModel, GpuProfile, names};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::operator::PATIENCE;

/// Requests that are under way at once.
const CONCURRENCY: usize = 16;
/// Models of one namespace.
const MODELS_PER_NAMESPACE: usize = 50;

/// Tier, profile, label values, memory of the two kinds of card.
const KINDS: [(&str, &str, &str, &str); 2] =
    [("primary", "rx-7900-xtx", "24G", "96"), ("fallback", "rx-7600", "8G", "32")];

/// How many of what.
pub struct Load {
    client: kube::Client,
    models: usize,
    nodes: usize,
    /// Profiles of each kind: models and nodes take them by turns.
    pairs: usize,
}

fn parse<T: DeserializeOwned>(object: Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(object)?)
}

impl Load {
    /// Nothing is created yet.
    pub fn new(client: kube::Client, models: usize, nodes: usize, profiles: usize) -> Self {
        let pairs = (profiles / 2).max(1);
        Self { client, models, nodes: nodes.max(2 * pairs), pairs }
    }

    /// Nodes of one profile.
    fn nodes_of_profile(&self) -> usize {
        self.nodes / 2 / self.pairs
    }

    /// The node whose card a model's tier has.
    fn node_of(&self, model: usize, tier: usize) -> String {
        let slot = (model / self.pairs) % self.nodes_of_profile();
        node_name(2 * (model % self.pairs + self.pairs * slot) + tier)
    }

    /// Profiles, nodes with cards, namespaces.
    pub async fn create_surroundings(&self) -> anyhow::Result<()> {
        let profiles: Api<GpuProfile> = Api::all(self.client.clone());
        for (pair, (_, name, class, units)) in (0..self.pairs).flat_map(|pair| KINDS.map(|kind| (pair, kind)))
        {
            let (vram, gfx) = if class == "24G" { ("24560Mi", "gfx1100") } else { ("8176Mi", "gfx1102") };
            let spec = json!({
                "product": name, "gfxTarget": gfx, "vram": vram, "maxBatch": 4,
                "match": {"vramClass": class, "computeUnits": compute_units(units, pair)?},
            });
            let profile = parse(json!({
                "apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "GpuProfile",
                "metadata": {"name": profile_name(name, pair)}, "spec": spec,
            }))?;
            profiles.create(&PostParams::default(), &profile).await?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for index in 0..self.models.div_ceil(MODELS_PER_NAMESPACE) {
            let name = format!("scale-{index}");
            namespaces.create(&PostParams::default(), &parse(json!({"metadata": {"name": name}}))?).await?;
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        // Every model's tier gets a card.
        let cards = self.models.div_ceil(self.pairs).div_ceil(self.nodes_of_profile()).to_string();
        self.each(self.nodes, async |index| {
            let (_, _, class, units) = KINDS[index % 2];
            let units = compute_units(units, index / 2 % self.pairs)?.to_string();
            let amounts = json!({"cpu": "16", "memory": "64Gi", "pods": "110", "amd.com/gpu": cards});
            let node = json!({
                "metadata": {"name": node_name(index), "labels": {"amd.com/gpu.vram": class, "amd.com/gpu.cu-count": units}},
                "status": {
                    "capacity": amounts, "allocatable": amounts,
                    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
                },
            });
            nodes.create(&PostParams::default(), &parse(node)?).await?;
            Ok(())
        })
        .await
    }

    /// The models.
    pub async fn create_models(&self) -> anyhow::Result<()> {
        self.each(self.models, async |index| {
            let (namespace, name) = model_name(index);
            let tiers: Vec<Value> = KINDS
                .iter()
                .map(|(tier, profile, ..)| {
                    let source = format!("hf://acme/models/wide-{}.gguf", index % 20);
                    let profile = profile_name(profile, index % self.pairs);
                    json!({"name": tier, "gpuProfile": profile, "model": {"source": source}, "contextTokens": 2048})
                })
                .collect();
            let model = parse(json!({
                "apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "AtlasModel",
                "metadata": {"name": name}, "spec": {"tiers": tiers},
            }))?;
            let api: Api<AtlasModel> = Api::namespaced(self.client.clone(), &namespace);
            api.create(&PostParams::default(), &model).await?;
            Ok(())
        })
        .await
    }

    /// A ready pod for each tier, on the node whose card is the model's.
    pub async fn create_pods(&self) -> anyhow::Result<()> {
        self.each(self.models * 2, async |number| {
            let (index, (tier, ..)) = (number / 2, KINDS[number % 2]);
            let (namespace, model) = model_name(index);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let name = format!("{}-0", names::tier_object_name(&model, tier));
            let node = self.node_of(index, number % 2);
            let labels = json!({
                names::LABEL_MODEL: model, names::LABEL_TIER: tier,
                names::LABEL_COMPONENT: names::COMPONENT_ENGINE, names::LABEL_MANAGED_BY: names::FIELD_MANAGER,
            });
            let pod = json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": node, "containers": [{"name": "engine", "image": "example/atlas-engine-hip:t"}]},
            });
            api.create(&PostParams::default(), &parse(pod)?).await?;
            let status = json!({"status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "engine", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
                    "state": {"running": {}},
                }],
            }});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            Ok(())
        })
        .await
    }

    /// Waits until this condition of every model is true for its present specification.
    pub async fn wait_for_every_model(&self, type_: &str) -> anyhow::Result<()> {
        let api: Api<AtlasModel> = Api::all(self.client.clone());
        let mut changes =
            watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed();
        let mut done = BTreeSet::new();
        let all = async {
            while done.len() < self.models {
                let model = changes.try_next().await?.context("the watch of models ended")?;
                let holds = model.status.iter().flat_map(|status| &status.conditions).any(|condition| {
                    condition.type_ == type_
                        && condition.status == "True"
                        && condition.observed_generation == model.metadata.generation
                });
                if holds {
                    done.insert((model.namespace(), model.name_any()));
                }
            }
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(PATIENCE, all).await;
        ended.with_context(|| format!("{} of {} models are {type_}", done.len(), self.models))?
    }

    /// Changes one node.
    pub async fn change_node(&self, change: &Value) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let (name, params) = (node_name(0), PatchParams::default());
        if change.get("status").is_some() {
            nodes.patch_status(&name, &params, &Patch::Merge(change)).await?;
        } else {
            nodes.patch(&name, &params, &Patch::Merge(change)).await?;
        }
        Ok(())
    }

    /// Changes one model in a way that its pods see.
    pub async fn change_model(&self) -> anyhow::Result<()> {
        let (namespace, name) = model_name(0);
        let api: Api<AtlasModel> = Api::namespaced(self.client.clone(), &namespace);
        let change = json!({"spec": {"requests": {"queue": 7}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    async fn each(&self, count: usize, act: impl AsyncFn(usize) -> anyhow::Result<()>) -> anyhow::Result<()> {
        stream::iter(0..count)
            .map(|index| act(index))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }
}

/// Cards of one kind differ in their number of units, which is what profiles match on.
fn compute_units(units: &str, pair: usize) -> anyhow::Result<usize> {
    Ok(units.parse::<usize>()? + pair)
}

fn profile_name(name: &str, pair: usize) -> String {
    format!("{name}-{pair}")
}

fn node_name(index: usize) -> String {
    format!("node-{index:04}")
}

fn model_name(index: usize) -> (String, String) {
    (format!("scale-{}", index / MODELS_PER_NAMESPACE), format!("model-{index:04}"))
}
