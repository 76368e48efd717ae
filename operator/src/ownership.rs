//! Whose an object is: what may be changed, what is waited for, and what is left alone.

use atlas_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

use crate::{
    desired::APPLIED_ANNOTATION,
    stores::{annotation, label},
};

/// Who an object has to belong to so that it may be changed.
#[derive(Debug, Clone, Copy)]
pub enum Ownership<'a> {
    /// To the model with this name and uid, as its controller.
    ControlledBy {
        /// Its name.
        model: &'a str,
        /// Its uid.
        uid: &'a str,
    },
    /// To the operator: it carries its label, or models own it.
    Operator,
}

/// Whose an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owned {
    /// Ours to change, or nobody's: what `kubectl delete --cascade=orphan` has left is taken up again.
    Ours,
    /// A model's that had the same name and was deleted: garbage collection takes it away.
    Predecessors,
    /// Somebody else's.
    Theirs,
}

impl Ownership<'_> {
    /// Whether it belongs to this very owner.
    #[must_use]
    pub fn holds(self, live: &impl ResourceExt) -> bool {
        let mut owners = live.owner_references().iter();
        match self {
            Self::ControlledBy { uid, .. } => {
                owners.any(|owner| owner.uid == uid && owner.controller == Some(true))
            }
            // Labels are taken off by hand more easily than owners.
            Self::Operator => is_labelled(live) || owners.any(is_model),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn judge(self, live: &impl ResourceExt) -> Owned {
        let owners = live.owner_references();
        match self {
            _ if self.holds(live) => Owned::Ours,
            Self::ControlledBy { .. }
                if owners.is_empty()
                    && is_labelled(live)
                    && annotation(live, APPLIED_ANNOTATION).is_some() =>
            {
                Owned::Ours
            }
            Self::ControlledBy { model, .. }
                if owners.iter().any(|o| is_model(o) && o.controller == Some(true) && o.name == model) =>
            {
                Owned::Predecessors
            }
            Self::ControlledBy { .. } | Self::Operator => Owned::Theirs,
        }
    }
}

fn is_labelled(live: &impl ResourceExt) -> bool {
    label(live, names::LABEL_MANAGED_BY) == Some(names::FIELD_MANAGER)
}

fn is_model(owner: &OwnerReference) -> bool {
    owner.kind == "AtlasModel" && owner.api_version.split('/').next() == Some(names::GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::DynamicObject;
    use serde_json::{Value, json};

    #[test]
    fn what_nobody_owns_any_more_is_taken_up_and_what_is_collected_is_waited_for() {
        let owner = |kind: &str, name: &str, uid: &str| json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": true});
        let ours = || json!({"app.kubernetes.io/managed-by": "atlas-operator"});
        let check = |owners: Value, labels: Value, expected: Owned| {
            let live: DynamicObject = serde_json::from_value(json!({"metadata": {
                "name": "code", "ownerReferences": owners, "labels": labels,
                "annotations": {APPLIED_ANNOTATION: "h"},
            }}))
            .unwrap();
            let ownership = Ownership::ControlledBy { model: "code", uid: "u2" };
            assert_eq!(ownership.judge(&live), expected, "{:?}", live.metadata);
        };
        check(json!([owner("AtlasModel", "code", "u2")]), json!({}), Owned::Ours);
        check(json!([owner("AtlasModel", "code", "u1")]), ours(), Owned::Predecessors);
        check(json!([]), ours(), Owned::Ours);
        check(json!([]), json!({}), Owned::Theirs);
        check(json!([owner("AtlasModel", "other", "u1")]), ours(), Owned::Theirs);
        check(json!([owner("Chat", "code", "u1")]), ours(), Owned::Theirs);
    }
}
