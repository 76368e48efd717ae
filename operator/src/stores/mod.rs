//! Reflected copies of everything that a reconcile reads, and which reconciles a change triggers.
//!
//! Every replica keeps them warm, leader or not; reconciles read them instead of asking the API server.

mod triggers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use atlas_crds::{AtlasModel, GpuProfile, names};
use atlas_operator_core::inventory::{NodeView, OtherWorkloads, match_node};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use triggers::Seen;

use crate::{
    engine_pods::{EnginePods, EnginePodsCache},
    kinds::Kind,
    watch::Spawn,
};

/// Where triggers go while this replica leads.
pub struct Queues {
    /// Models to reconcile.
    pub models: UnboundedSender<ObjectRef<AtlasModel>>,
    /// Profiles to reconcile.
    pub profiles: UnboundedSender<ObjectRef<GpuProfile>>,
    /// Namespaces whose gateway to reconcile.
    pub namespaces: UnboundedSender<String>,
}

/// Reflected copies of the cluster's objects.
pub struct Stores {
    /// Every AtlasModel.
    pub models: Store<AtlasModel>,
    /// Every GpuProfile.
    pub profiles: Store<GpuProfile>,
    /// Pods that the operator's Deployments made.
    pub pods: Store<Pod>,
    children: Vec<Store<DynamicObject>>,
    engine_pods: EnginePodsCache,
    /// Profiles whose cards do not suffice for what models want of them.
    contended: Mutex<BTreeSet<String>>,
    nodes: RwLock<BTreeMap<String, Arc<NodeView>>>,
    others: RwLock<Arc<OtherWorkloads>>,
    others_ready: tokio::sync::watch::Sender<bool>,
    nodes_ready: tokio::sync::watch::Sender<bool>,
    queues: OnceLock<Queues>,
    /// Whether models may have gone since somebody looked.
    models_gone: AtomicBool,
    /// Whether the cluster serves resource claims (`resource.k8s.io/v1`).
    pub serves_claims: bool,
}

impl Stores {
    /// Starts every watch; each ends when the token is cancelled.
    #[must_use]
    pub fn start(
        client: &Client,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        serves_claims: bool,
    ) -> Arc<Self> {
        let ours = watcher::Config::default().labels(&format!(
            "{}={}",
            names::LABEL_MANAGED_BY,
            names::FIELD_MANAGER
        ));
        let (models, models_writer) = kube::runtime::reflector::store();
        let (profiles, profiles_writer) = kube::runtime::reflector::store();
        let (pods, pods_writer) = kube::runtime::reflector::store();
        let (children, writers): (Vec<_>, Vec<_>) = Kind::ALL
            .into_iter()
            .map(|kind| {
                let writer = Writer::new(kind.api_resource());
                (writer.as_reader(), (kind, writer))
            })
            .unzip();
        let stores = Arc::new(Self {
            models,
            profiles,
            pods,
            children,
            engine_pods: EnginePodsCache::default(),
            contended: Mutex::default(),
            nodes: RwLock::new(BTreeMap::new()),
            others: RwLock::default(),
            others_ready: tokio::sync::watch::Sender::new(false),
            nodes_ready: tokio::sync::watch::Sender::new(false),
            queues: OnceLock::new(),
            models_gone: AtomicBool::new(false),
            serves_claims,
        });

        let spawn = Spawn { tasks, stop };
        let any = watcher::Config::default();
        let mut seen: HashMap<_, Seen> = HashMap::new();
        spawn.watch(Api::all(client.clone()), any.clone(), Some(models_writer), {
            let stores = Arc::clone(&stores);
            move |event: &watcher::Event<AtlasModel>| match event {
                watcher::Event::Apply(model) => {
                    let now = Seen::of(model);
                    let before = seen.insert(ObjectRef::from_obj(model), now.clone());
                    // A status write of our own changes no generation, and needs no reconcile.
                    if before.as_ref() != Some(&now) {
                        stores.model_changed(model);
                        stores.trigger_profiles(before.iter().chain([&now]));
                    }
                }
                watcher::Event::Delete(model) => {
                    let before = seen.remove(&ObjectRef::from_obj(model));
                    stores.models_gone.store(true, Ordering::Release);
                    stores.model_changed(model);
                    stores.trigger_profiles(&before);
                }
                watcher::Event::InitDone => {
                    stores.models_gone.store(true, Ordering::Release);
                    stores.trigger_everything();
                }
                watcher::Event::Init => seen.clear(),
                watcher::Event::InitApply(model) => {
                    seen.insert(ObjectRef::from_obj(model), Seen::of(model));
                }
            }
        });
        let mut generations = HashMap::new();
        spawn.watch(Api::all(client.clone()), any.clone(), Some(profiles_writer), {
            let stores = Arc::clone(&stores);
            move |event: &watcher::Event<GpuProfile>| match event {
                watcher::Event::Apply(profile) => {
                    // What engines found about their cards decides where pods may go, and what is planned.
                    let told = profile.status.as_ref().map(|status| {
                        let runtime = status.calibration.as_ref().map(|c| c.runtime.clone());
                        (status.excluded.clone(), status.card_faults.clone(), runtime)
                    });
                    let key = Some((profile.metadata.generation, told.unwrap_or_default()));
                    // Every profile and model is concerned: they say which others there are and which share nodes.
                    if generations.insert(profile.name_any(), key.clone()) != Some(key) {
                        stores.trigger_everything();
                    }
                }
                watcher::Event::Delete(profile) => {
                    generations.remove(&profile.name_any());
                    stores.trigger_everything();
                }
                watcher::Event::InitDone => stores.trigger_everything(),
                watcher::Event::Init | watcher::Event::InitApply(_) => {}
            }
        });
        spawn.watch(Api::all(client.clone()), ours.clone(), Some(pods_writer), {
            let stores = Arc::clone(&stores);
            move |event: &watcher::Event<Pod>| {
                stores.engine_pods.invalidate();
                match event {
                    watcher::Event::Apply(pod) | watcher::Event::Delete(pod) => {
                        stores.pod_changed(pod, event)
                    }
                    watcher::Event::InitDone => stores.trigger_everything(),
                    watcher::Event::Init | watcher::Event::InitApply(_) => {}
                }
            }
        });
        // Pods that are not ours count for the cards that they hold, and only that is kept of them.
        let bound = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
        let theirs = watcher::Config::default()
            .labels(&format!("{}!={}", names::LABEL_MANAGED_BY, names::FIELD_MANAGER))
            .fields(bound);
        spawn.watch(Api::all(client.clone()), theirs, None, {
            let stores = Arc::clone(&stores);
            let mut listed = OtherWorkloads::default();
            move |event: &watcher::Event<Pod>| stores.other_pod_event(event, &mut listed)
        });
        spawn.watch(Api::all(client.clone()), any, None, {
            let stores = Arc::clone(&stores);
            let mut listed = BTreeMap::new();
            move |event: &watcher::Event<Node>| stores.node_event(event, &mut listed)
        });
        for (kind, writer) in writers {
            if !kind.is_served(serves_claims) {
                continue;
            }
            let stores = Arc::clone(&stores);
            let api = Api::all_with(client.clone(), &kind.api_resource());
            spawn.watch_with(
                api,
                ours.clone(),
                Some(writer),
                kind.api_resource(),
                move |event| match event {
                    watcher::Event::Apply(object) | watcher::Event::Delete(object) => {
                        stores.child_changed(object)
                    }
                    watcher::Event::InitDone => stores.trigger_everything(),
                    watcher::Event::Init | watcher::Event::InitApply(_) => {}
                },
            );
        }
        stores
    }

    /// Waits for the first list of every watch.
    pub async fn wait_until_ready(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        self.models.wait_until_ready().await?;
        self.profiles.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        for (kind, store) in Kind::ALL.iter().zip(&self.children) {
            if kind.is_served(self.serves_claims) {
                store.wait_until_ready().await?;
            }
        }
        // The sender lives as long as this object, so waiting cannot fail.
        let _ = self.nodes_ready.subscribe().wait_for(|ready| *ready).await;
        let _ = self.others_ready.subscribe().wait_for(|ready| *ready).await;
        Ok(())
    }

    /// Whether models may have gone since this was asked last.
    pub fn take_models_gone(&self) -> bool {
        self.models_gone.swap(false, Ordering::AcqRel)
    }

    /// Sends triggers from now on, and one for everything that exists.
    pub fn lead(&self, queues: Queues) {
        let _ = self.queues.set(queues);
        self.trigger_everything();
    }

    /// An object of ours, by kind and name.
    #[must_use]
    pub fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        self.children.get(kind.index())?.get(&kind.object_ref(namespace, name))
    }

    /// Objects of one kind that carry a model's label.
    #[must_use]
    pub fn children_of(&self, kind: Kind, namespace: &str, model: &str) -> Vec<Arc<DynamicObject>> {
        let Some(store) = self.children.get(kind.index()) else { return Vec::new() };
        store.state_filter(|object| {
            object.metadata.namespace.as_deref() == Some(namespace)
                && label(object, names::LABEL_MODEL) == Some(model)
        })
    }

    /// Engine pods by model.
    #[must_use]
    pub fn engine_pods(&self) -> Arc<EnginePods> {
        self.engine_pods.get(|| self.pods.state())
    }

    /// Every node.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<NodeView>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What pods of others hold.
    #[must_use]
    pub fn others(&self) -> Arc<OtherWorkloads> {
        Arc::clone(&self.others.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn pod_changed(&self, pod: &Pod, event: &watcher::Event<Pod>) {
        let labels = pod.labels();
        let (Some(model), Some(tier), Some(namespace)) =
            (labels.get(names::LABEL_MODEL), labels.get(names::LABEL_TIER), pod.namespace())
        else {
            return;
        };
        let key = ObjectRef::new(model).within(&namespace);
        let profile = self.models.get(&key).and_then(|model| {
            model.spec.tiers.iter().find(|t| &t.name == tier).map(|t| t.gpu_profile.clone())
        });
        if let Some(profile) = profile {
            self.trigger_profile(&profile);
            // A card that became free goes to the model that waits for it.
            if matches!(event, watcher::Event::Delete(_)) && self.is_contended(&profile) {
                for other in self.models_using(&profile) {
                    self.trigger_model(ObjectRef::from_obj(&*other));
                }
            }
        }
        self.trigger_model(key);
    }

    fn child_changed(&self, object: &DynamicObject) {
        let namespace = object.metadata.namespace.clone();
        // Not by label: the Service of the stable URL carries none, or its EndpointSlices would look like engines'.
        let controller = object.owner_references().iter().find(|owner| owner.controller == Some(true));
        match (controller, &namespace) {
            (Some(model), Some(namespace)) => {
                self.trigger_model(ObjectRef::new(&model.name).within(namespace));
            }
            _ => self.trigger_namespace(namespace),
        }
    }

    fn other_pod_event(&self, event: &watcher::Event<Pod>, listed: &mut OtherWorkloads) {
        let change = |change: &dyn Fn(&mut OtherWorkloads) -> Option<String>| {
            let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
            change(Arc::make_mut(&mut others))
        };
        let node = match event {
            watcher::Event::Init => {
                *listed = OtherWorkloads::default();
                None
            }
            watcher::Event::InitApply(pod) => {
                listed.put(pod);
                None
            }
            watcher::Event::InitDone => {
                let now = Arc::new(std::mem::take(listed));
                let before = std::mem::replace(
                    &mut *self.others.write().unwrap_or_else(PoisonError::into_inner),
                    Arc::clone(&now),
                );
                self.others_ready.send_replace(true);
                if before != now {
                    self.trigger_everything();
                }
                None
            }
            watcher::Event::Apply(pod) => change(&|others| others.put(pod)),
            watcher::Event::Delete(pod) => change(&|others| others.remove(pod)),
        };
        let Some(node) = node else { return };
        let view = self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        self.node_changed(None, view.as_deref());
    }

    fn node_event(&self, event: &watcher::Event<Node>, listed: &mut BTreeMap<String, Arc<NodeView>>) {
        let view = |node: &Node| Arc::new(NodeView::from_node(node));
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(node) => {
                listed.insert(node.name_any(), view(node));
            }
            watcher::Event::InitDone => {
                *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = std::mem::take(listed);
                self.nodes_ready.send_replace(true);
                self.trigger_everything();
            }
            watcher::Event::Apply(node) => {
                let now = view(node);
                let before = self
                    .nodes
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(node.name_any(), Arc::clone(&now));
                if before.as_ref() != Some(&now) {
                    self.node_changed(before.as_deref(), Some(&now));
                }
            }
            watcher::Event::Delete(node) => {
                let before =
                    self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(&node.name_any());
                self.node_changed(before.as_deref(), None);
            }
        }
    }

    fn node_changed(&self, before: Option<&NodeView>, now: Option<&NodeView>) {
        for profile in self.profiles.state() {
            let concerned =
                [before, now].into_iter().flatten().any(|node| match_node(&profile, node).is_some());
            if concerned {
                self.trigger_profile(&profile.name_any());
                for model in self.models_using(&profile.name_any()) {
                    self.trigger_model(ObjectRef::from_obj(&*model));
                }
            }
        }
    }
}

/// A label's value.
#[must_use]
pub fn label<'a>(object: &'a impl ResourceExt, key: &str) -> Option<&'a str> {
    object.labels().get(key).map(String::as_str)
}

/// An annotation's value.
#[must_use]
pub fn annotation<'a>(object: &'a impl ResourceExt, key: &str) -> Option<&'a str> {
    object.annotations().get(key).map(String::as_str)
}
