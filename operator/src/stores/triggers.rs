//! Which reconciles a change asks for.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use atlas_crds::{AtlasModel, names};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

use super::Stores;

impl Stores {
    /// Asks for a reconcile of one model.
    pub fn trigger_model(&self, model: ObjectRef<AtlasModel>) {
        if let Some(queues) = self.queues.get() {
            let _ = queues.models.unbounded_send(model);
        }
    }

    /// Whether triggers go anywhere.
    pub(super) fn leads(&self) -> bool {
        self.queues.get().is_some()
    }

    pub(super) fn trigger_namespace(&self, namespace: Option<String>) {
        if let (Some(queues), Some(namespace)) = (self.queues.get(), namespace) {
            let _ = queues.namespaces.unbounded_send(namespace);
        }
    }

    pub(super) fn trigger_profile(&self, name: &str) {
        if let Some(queues) = self.queues.get() {
            let _ = queues.profiles.unbounded_send(ObjectRef::new(name));
        }
    }

    /// Profiles count what models hold of them, also of those that a model no longer names.
    pub(super) fn trigger_profiles<'a>(&self, models: impl IntoIterator<Item = &'a Seen>) {
        for profile in models.into_iter().flat_map(|seen| &seen.profiles) {
            self.trigger_profile(profile);
        }
    }

    /// Asks for a reconcile of the profiles that a model names.
    pub fn trigger_profiles_of(&self, model: &ObjectRef<AtlasModel>) {
        if let Some(model) = self.models.get(model) {
            self.trigger_profiles(&[Seen::of(&model)]);
        }
    }

    pub(super) fn trigger_everything(&self) {
        for model in self.models.state() {
            self.trigger_namespace(model.namespace());
            self.trigger_model(ObjectRef::from_obj(&*model));
        }
        // A gateway whose last model went while nobody watched.
        for gateway in self.children.first().map(Store::state).unwrap_or_default() {
            if gateway.name_any() == names::GATEWAY_NAME {
                self.trigger_namespace(gateway.namespace());
            }
        }
        for profile in self.profiles.state() {
            self.trigger_profile(&profile.name_any());
        }
    }

    /// Asks for a reconcile of a model, and of those that share a card with it.
    pub fn model_changed(&self, model: &AtlasModel) {
        self.trigger_namespace(model.namespace());
        self.trigger_model(ObjectRef::from_obj(model));
        // Models that share a card wait for, or make way for, this one; where there are cards for all, nobody does.
        let profiles: Vec<&str> = model
            .spec
            .tiers
            .iter()
            .map(|tier| tier.gpu_profile.as_str())
            .filter(|profile| self.is_contended(profile))
            .collect();
        if profiles.is_empty() {
            return;
        }
        for other in self.models.state() {
            if other.metadata.uid != model.metadata.uid
                && other.spec.tiers.iter().any(|tier| profiles.contains(&tier.gpu_profile.as_str()))
            {
                self.trigger_model(ObjectRef::from_obj(&*other));
            }
        }
    }

    /// Notes whether a profile's cards suffice for everybody, as a plan has found.
    ///
    /// Where they no longer do, whoever was given one without holding it may have to make way.
    pub fn note_contention(&self, profile: &str, contended: bool) {
        let begins = {
            let mut all = self.contended.lock().unwrap_or_else(PoisonError::into_inner);
            if !contended {
                all.remove(profile);
                return;
            }
            all.insert(profile.to_owned())
        };
        if begins {
            for model in self.models_using(profile) {
                self.trigger_model(ObjectRef::from_obj(&*model));
            }
        }
    }

    pub(super) fn is_contended(&self, profile: &str) -> bool {
        self.contended.lock().unwrap_or_else(PoisonError::into_inner).contains(profile)
    }

    pub(super) fn models_using(&self, profile: &str) -> Vec<Arc<AtlasModel>> {
        self.models.state_filter(|model| model.spec.tiers.iter().any(|tier| tier.gpu_profile == profile))
    }
}

/// What of a model makes a reconcile worth while, and which profiles it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    uid: Option<String>,
    generation: Option<i64>,
    deleting: bool,
    pub(super) profiles: BTreeSet<String>,
}

impl Seen {
    pub(super) fn of(model: &AtlasModel) -> Self {
        Self {
            uid: model.uid(),
            generation: model.metadata.generation,
            deleting: model.metadata.deletion_timestamp.is_some(),
            profiles: model.spec.tiers.iter().map(|tier| tier.gpu_profile.clone()).collect(),
        }
    }
}
