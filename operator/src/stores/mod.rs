//! Reflected copies of everything that a reconcile reads, and which reconciles a change triggers.
//!
//! Every replica keeps them warm, leader or not; reconciles read them instead of asking the API server.

mod audit;
mod cards;
mod child;
mod index;
mod nodes;
mod told;
mod triggers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use atlas_crds::{AtlasModel, GpuProfile, names};
use atlas_operator_core::inventory::{NodeView, OtherWorkloads};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use prometheus::IntCounterVec;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use audit::{Audited, VersionLog};
use cards::{CardCache, Changed};
pub use child::Child;
use index::{ByModel, Listed};
use told::ToldStatuses;
use triggers::Seen;

use crate::{
    kinds::Kind,
    watch::{Spawn, Watch},
};

/// Every node, by its name.
pub type Nodes = BTreeMap<String, Arc<NodeView>>;

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
    children: Vec<Store<Child>>,
    /// Which of each kind belong to which model.
    owned: Vec<ByModel>,
    engine_pods: ByModel,
    cards: CardCache,
    /// Profiles whose cards do not suffice for what models want of them.
    contended: Mutex<BTreeSet<String>>,
    nodes: RwLock<Arc<Nodes>>,
    others: RwLock<Arc<OtherWorkloads>>,
    others_ready: tokio::sync::watch::Sender<bool>,
    nodes_ready: tokio::sync::watch::Sender<bool>,
    queues: OnceLock<Queues>,
    /// Whether models may have gone since somebody looked.
    models_gone: AtomicBool,
    audited: OnceLock<Vec<Audited>>,
    /// What statuses are meant to be.
    pub told: ToldStatuses,
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
        broken_watches: &IntCounterVec,
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
                let writer = Writer::new(kind);
                (writer.as_reader(), (kind, writer))
            })
            .unzip();
        let stores = Arc::new(Self {
            models,
            profiles,
            pods,
            children,
            owned: Kind::ALL.map(|_| ByModel::default()).into(),
            engine_pods: ByModel::default(),
            cards: CardCache::default(),
            contended: Mutex::default(),
            nodes: RwLock::default(),
            others: RwLock::default(),
            others_ready: tokio::sync::watch::Sender::new(false),
            nodes_ready: tokio::sync::watch::Sender::new(false),
            queues: OnceLock::new(),
            models_gone: AtomicBool::new(false),
            audited: OnceLock::new(),
            told: ToldStatuses::default(),
            serves_claims,
        });

        let spawn = Spawn { tasks, stop, broken: broken_watches };
        let any = watcher::Config::default();
        let mut seen: HashMap<_, Seen> = HashMap::new();
        let models_again = spawn.watch(Api::all(client.clone()), any.clone(), Some(models_writer), {
            let stores = Arc::clone(&stores);
            move |event: &watcher::Event<AtlasModel>| match event {
                watcher::Event::Apply(model) => {
                    let now = Seen::of(model);
                    let before = seen.insert(ObjectRef::from_obj(model), now.clone());
                    // A status write of our own changes no generation, and needs no reconcile.
                    if before.as_ref() != Some(&now) {
                        stores.cards.note(Changed::Models);
                        stores.model_changed(model);
                        stores.trigger_profiles(before.iter().chain([&now]));
                    } else if stores.told.is_foreign(model.metadata.uid.as_deref(), model.status.as_ref()) {
                        stores.trigger_model(ObjectRef::from_obj(model));
                    }
                }
                watcher::Event::Delete(model) => {
                    stores.told.forget(model.metadata.uid.as_deref());
                    let before = seen.remove(&ObjectRef::from_obj(model));
                    stores.models_gone.store(true, Ordering::Release);
                    stores.cards.note(Changed::Models);
                    stores.model_is_gone(model);
                    stores.model_changed(model);
                    stores.trigger_profiles(&before);
                }
                watcher::Event::InitDone => {
                    stores.models_gone.store(true, Ordering::Release);
                    stores.cards.note(Changed::Models);
                    stores.trigger_everything();
                }
                watcher::Event::Init => seen.clear(),
                watcher::Event::InitApply(model) => {
                    seen.insert(ObjectRef::from_obj(model), Seen::of(model));
                }
            }
        });
        let mut generations = HashMap::new();
        let profiles_again = spawn.watch(Api::all(client.clone()), any.clone(), Some(profiles_writer), {
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
                        stores.cards.note(Changed::Profiles);
                        stores.trigger_everything();
                    } else if stores.told.is_foreign(profile.metadata.uid.as_deref(), profile.status.as_ref())
                    {
                        stores.trigger_profile(&profile.name_any());
                    }
                }
                watcher::Event::Delete(profile) => {
                    stores.told.forget(profile.metadata.uid.as_deref());
                    generations.remove(&profile.name_any());
                    stores.cards.note(Changed::Profiles);
                    stores.trigger_everything();
                }
                watcher::Event::InitDone => {
                    stores.cards.note(Changed::Profiles);
                    stores.trigger_everything();
                }
                watcher::Event::Init | watcher::Event::InitApply(_) => {}
            }
        });
        let api = Api::all(client.clone());
        let config = ours.clone();
        let own = Watch { api, config, writer: Some(pods_writer), dyntype: (), prune: prune_pod };
        let pods_again = spawn.watch_with(own, {
            let stores = Arc::clone(&stores);
            let mut listed = Listed::default();
            move |event: &watcher::Event<Pod>| {
                stores.engine_pods.follow(event, &mut listed);
                stores.cards.note(Changed::Pods);
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
        let versions = Arc::new(VersionLog::default());
        let nodes_again = spawn.watch(Api::all(client.clone()), any, None, {
            let (stores, versions) = (Arc::clone(&stores), Arc::clone(&versions));
            let (mut listed, mut listed_versions) = (BTreeMap::new(), HashMap::new());
            move |event: &watcher::Event<Node>| {
                versions.follow(event, &mut listed_versions);
                stores.node_event(event, &mut listed);
            }
        });
        let labels = ours.label_selector.clone();
        let mut audited = vec![
            Audited::of(&stores.models, &(), None, models_again),
            Audited::of(&stores.profiles, &(), None, profiles_again),
            Audited::of(&stores.pods, &(), labels.clone(), pods_again),
            Audited::of_versions::<Node>(&versions, nodes_again),
        ];
        for (kind, writer) in writers {
            if !kind.is_served(serves_claims) {
                continue;
            }
            let told = Arc::clone(&stores);
            let mut listed = Listed::default();
            let on_event = move |event: &watcher::Event<Child>| {
                if let Some(owned) = told.owned.get(kind.index()) {
                    owned.follow(event, &mut listed);
                }
                if kind == Kind::Deployment {
                    told.cards.note(Changed::Deployments);
                }
                match event {
                    watcher::Event::Apply(object) | watcher::Event::Delete(object) => {
                        told.child_changed(object)
                    }
                    watcher::Event::InitDone => told.trigger_everything(),
                    watcher::Event::Init | watcher::Event::InitApply(_) => {}
                }
            };
            let api = Api::all_with(client.clone(), &kind);
            let config = ours.clone();
            let child = Watch { api, config, writer: Some(writer), dyntype: kind, prune: |_| {} };
            let again = spawn.watch_with(child, on_event);
            if let Some(store) = stores.children.get(kind.index()) {
                audited.push(Audited::of(store, &kind, labels.clone(), again));
            }
        }
        let _ = stores.audited.set(audited);
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
    pub fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Child>> {
        self.children.get(kind.index())?.get(&ObjectRef::new_with(name, kind).within(namespace))
    }

    /// The same with everything that it holds.
    #[must_use]
    pub fn read_child(&self, kind: Kind, namespace: &str, name: &str) -> Option<DynamicObject> {
        Some(self.child(kind, namespace, name)?.read())
    }

    /// Objects of one kind that carry a model's label.
    #[must_use]
    pub fn children_of(&self, kind: Kind, namespace: &str, model: &str) -> Vec<Arc<Child>> {
        let names = self.owned.get(kind.index()).map(|owned| owned.names(namespace, model));
        let found = names.into_iter().flatten().filter_map(|name| self.child(kind, namespace, &name));
        found.filter(|object| label(&**object, names::LABEL_MODEL) == Some(model)).collect()
    }

    /// The engine pods of one model, by name.
    #[must_use]
    pub fn engine_pods(&self, namespace: &str, model: &str) -> Vec<Arc<Pod>> {
        let names = self.engine_pods.names(namespace, model);
        let found = names.iter().filter_map(|name| self.pods.get(&ObjectRef::new(name).within(namespace)));
        found.filter(|pod| label(&**pod, names::LABEL_MODEL) == Some(model)).collect()
    }

    /// The gateways of a namespace.
    #[must_use]
    pub fn gateway_pods(&self, namespace: &str) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace) && is_gateway(pod))
    }

    /// Every node.
    #[must_use]
    pub fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What pods of others hold.
    #[must_use]
    pub fn others(&self) -> Arc<OtherWorkloads> {
        Arc::clone(&self.others.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn pod_changed(&self, pod: &Pod, event: &watcher::Event<Pod>) {
        if is_gateway(pod) {
            self.trigger_namespace(pod.namespace());
        }
        let labels = pod.labels();
        let (Some(model), Some(namespace)) = (labels.get(names::LABEL_MODEL), pod.namespace()) else {
            return;
        };
        let key = ObjectRef::new(model).within(&namespace);
        // What keeps weights has no tier, since it is no engine and holds no card.
        let Some(tier) = labels.get(names::LABEL_TIER) else { return self.trigger_model(key) };
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

    fn child_changed(&self, object: &Child) {
        let namespace = object.namespace();
        // Not by label: the Service of the stable URL carries none, or its EndpointSlices would look like engines'.
        let controller = object.owner_references().iter().find(|owner| owner.controller == Some(true));
        match (controller, &namespace) {
            (Some(model), Some(namespace)) => {
                self.trigger_model(ObjectRef::new(&model.name).within(namespace));
            }
            _ => self.trigger_namespace(namespace),
        }
    }
}

fn is_gateway(pod: &Pod) -> bool {
    label(pod, names::LABEL_COMPONENT) == Some(names::COMPONENT_GATEWAY)
}

/// Leaves of a pod's specification what is read of it: by far the most of it is its template once more.
fn prune_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = PodSpec { node_name: spec.node_name.take(), ..PodSpec::default() };
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
