//! Metadata that every owned object carries.

use atlas_crds::names;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Desired;
use crate::{kinds::Kind, validate::ValidatedModel};

/// Annotation: hash of what was applied, so that an unchanged object costs no write.
pub const APPLIED_ANNOTATION: &str = "atlas.gillsystems.com/applied";
/// Annotation: the model's generation that the object was last written from.
pub const GENERATION_ANNOTATION: &str = "atlas.gillsystems.com/generation";
/// Annotation: hash of the pod template as the operator rendered it.
pub const TEMPLATE_ANNOTATION: &str = "atlas.gillsystems.com/template";

/// Labels of an object.
pub type Labels = Map<String, Value>;

/// An owner of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Name of the AtlasModel.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether it is the one that manages the object.
    pub controller: bool,
}

impl Owner {
    fn reference(&self) -> Value {
        let mut reference = json!({
            "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
            "kind": "AtlasModel",
            "name": self.name,
            "uid": self.uid,
        });
        if self.controller {
            reference["controller"] = true.into();
            reference["blockOwnerDeletion"] = true.into();
        }
        reference
    }
}

/// Labels that every object of the operator carries.
pub fn base_labels(app: &str) -> Labels {
    labels([("app.kubernetes.io/name", app), (names::LABEL_MANAGED_BY, names::FIELD_MANAGER)])
}

/// Labels from pairs.
pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// What an object is made from.
pub struct Parts<'a> {
    pub kind: Kind,
    pub namespace: &'a str,
    pub name: String,
    pub labels: Labels,
    pub owners: &'a [Owner],
    pub annotations: Labels,
    /// Top-level fields besides `apiVersion`, `kind` and `metadata`.
    pub fields: Value,
}

/// Puts an object together and notes its hash in it.
pub fn assemble(parts: Parts<'_>) -> Desired {
    let Parts { kind, namespace, name, labels, owners, annotations, fields } = parts;
    let resource = kind.api_resource();
    let mut body = fields;
    body["apiVersion"] = resource.api_version.into();
    body["kind"] = kind.as_str().into();
    body["metadata"] = json!({
        "name": name,
        "namespace": namespace,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": owners.iter().map(Owner::reference).collect::<Vec<_>>(),
    });
    let hash = hash_of(&body);
    body["metadata"]["annotations"][APPLIED_ANNOTATION] = hash.into();
    Desired { kind, namespace: namespace.to_owned(), name, body }
}

/// The only owner of a model's own objects.
pub fn controller_of(model: &ValidatedModel) -> [Owner; 1] {
    [Owner { name: model.name.clone(), uid: model.uid.clone(), controller: true }]
}

/// A short hash of a value that does not depend on the order of its keys.
#[must_use]
pub fn hash_of(value: &Value) -> String {
    fn feed(value: &Value, digest: &mut Sha256) {
        match value {
            Value::Object(map) => {
                let mut keys: Vec<_> = map.keys().collect();
                keys.sort();
                digest.update(b"{");
                for key in keys {
                    digest.update(key.as_bytes());
                    digest.update(b"\0");
                    feed(&map[key], digest);
                }
                digest.update(b"}");
            }
            Value::Array(list) => {
                digest.update(b"[");
                for item in list {
                    feed(item, digest);
                }
                digest.update(b"]");
            }
            scalar => {
                digest.update(scalar.to_string().as_bytes());
                digest.update(b"\0");
            }
        }
    }
    let mut digest = Sha256::new();
    feed(value, &mut digest);
    hex::encode(digest.finalize()).chars().take(16).collect()
}
