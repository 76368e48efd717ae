//! Nodes and what pods of others hold on them: what a change of either means for whom.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use atlas_crds::{GpuProfile, names};
use atlas_operator_core::inventory::{NodeView, OtherWorkloads, match_node};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    ResourceExt,
    runtime::{reflector::ObjectRef, watcher},
};

use super::{Nodes, Stores, cards::Changed, label};
use crate::place::{Concerned, Ground, Shares, concerned};

/// A profile, what its nodes offer, and how its cards are shared out.
type Standing = (Arc<GpuProfile>, Arc<Ground>, Arc<Shares>);

impl Stores {
    pub(super) fn other_pod_event(&self, event: &watcher::Event<Pod>, listed: &mut OtherWorkloads) {
        match event {
            watcher::Event::Init => *listed = OtherWorkloads::default(),
            watcher::Event::InitApply(pod) => {
                listed.put(pod);
            }
            watcher::Event::InitDone => {
                let now = Arc::new(std::mem::take(listed));
                let before = std::mem::replace(
                    &mut *self.others.write().unwrap_or_else(PoisonError::into_inner),
                    Arc::clone(&now),
                );
                self.cards.note(Changed::Others);
                self.others_ready.send_replace(true);
                if before != now {
                    self.trigger_everything();
                }
            }
            watcher::Event::Apply(pod) => self.other_pod_changed(pod, &|others| others.put(pod)),
            watcher::Event::Delete(pod) => self.other_pod_changed(pod, &|others| others.remove(pod)),
        }
    }

    fn other_pod_changed(&self, pod: &Pod, change: &dyn Fn(&mut OtherWorkloads) -> Option<String>) {
        // Most pods of a cluster hold no card.
        let Some(node) = self.others().node_of(pod).map(str::to_owned) else { return };
        let view = self.nodes().get(&node).cloned();
        self.change_ground([view.as_deref()], || {
            let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
            change(Arc::make_mut(&mut others));
            self.cards.note(Changed::Others);
        });
    }

    pub(super) fn node_event(
        &self,
        event: &watcher::Event<Node>,
        listed: &mut BTreeMap<String, Arc<NodeView>>,
    ) {
        let view = |node: &Node| Arc::new(NodeView::from_node(node));
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(node) => {
                listed.insert(node.name_any(), view(node));
            }
            watcher::Event::InitDone => {
                let now = Arc::new(std::mem::take(listed));
                let before = std::mem::replace(
                    &mut *self.nodes.write().unwrap_or_else(PoisonError::into_inner),
                    Arc::clone(&now),
                );
                self.cards.note(Changed::Nodes);
                self.nodes_ready.send_replace(true);
                if before != now {
                    self.trigger_everything();
                }
            }
            watcher::Event::Apply(node) => self.node_changed(&node.name_any(), Some(view(node))),
            watcher::Event::Delete(node) => self.node_changed(&node.name_any(), None),
        }
    }

    fn node_changed(&self, name: &str, now: Option<Arc<NodeView>>) {
        let before = self.nodes().get(name).cloned();
        if before == now {
            return;
        }
        self.change_ground([before.as_deref(), now.as_deref()], || {
            let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
            let nodes: &mut Nodes = Arc::make_mut(&mut nodes);
            match &now {
                Some(now) => nodes.insert(name.to_owned(), Arc::clone(now)),
                None => nodes.remove(name),
            };
            self.cards.note(Changed::Nodes);
        });
        // What runs there may be lost, or may have another card than it wanted.
        for pod in self
            .pods
            .state_filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name))
        {
            match (label(&*pod, names::LABEL_MODEL), pod.namespace()) {
                (Some(model), Some(namespace)) => {
                    self.trigger_model(ObjectRef::new(model).within(&namespace));
                }
                (None, namespace) => self.trigger_namespace(namespace),
                (Some(_), None) => {}
            }
        }
    }

    /// Carries a change of these nodes out, and asks for the reconciles of those whom it concerns.
    ///
    /// Both sides of the change are compared as the models and pods are now; what changes of these has triggers of
    /// its own.
    fn change_ground<const N: usize>(&self, views: [Option<&NodeView>; N], change: impl FnOnce()) {
        let matches =
            |profile: &GpuProfile| views.iter().flatten().any(|node| match_node(profile, node).is_some());
        let profiles: Vec<Arc<GpuProfile>> = self.profiles.state_filter(|profile| matches(profile));
        let stand = |profile: &Arc<GpuProfile>| -> Standing {
            let ground = self.ground(profile);
            let shares = self.shares(profile, &ground);
            (Arc::clone(profile), ground, shares)
        };
        let before: Vec<Standing> =
            if self.leads() { profiles.iter().map(stand).collect() } else { Vec::new() };
        change();
        if !self.leads() {
            return;
        }
        for (index, profile) in profiles.iter().enumerate() {
            let name = profile.name_any();
            self.trigger_profile(&name);
            let (_, ground, shares) = stand(profile);
            let whom = match before.get(index) {
                Some((_, then, had)) => {
                    if then.refused != ground.refused {
                        self.trigger_waiting(&name);
                    }
                    concerned(profile, (then, had), (&ground, &shares))
                }
                // The lead began in between.
                None => Concerned::Everybody,
            };
            match whom {
                Concerned::Everybody => {
                    for model in self.models_using(&name) {
                        self.trigger_model(ObjectRef::from_obj(&*model));
                    }
                }
                Concerned::These(models) => {
                    for (namespace, model) in models {
                        self.trigger_model(ObjectRef::new(&model).within(&namespace));
                    }
                }
            }
        }
    }
}
