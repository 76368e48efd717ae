//! An object of ours as the stores keep it: its metadata, what is asked of thousands at once, and the rest as text.
//!
//! A parsed object takes ten times the memory of its text, and a reconcile reads some ten of ten thousand.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, api::DynamicObject, core::DynamicResourceScope};
use serde::{Deserialize, Deserializer};

use crate::kinds::Kind;

/// An object of ours.
#[derive(Debug, Clone)]
pub struct Child {
    metadata: ObjectMeta,
    /// Pods that a Deployment asks for; 0 for every other kind.
    replicas: i32,
    rest: Box<str>,
}

impl Child {
    /// Pods that a Deployment asks for; 0 for every other kind.
    #[must_use]
    pub const fn replicas(&self) -> i32 {
        self.replicas
    }

    /// The whole object.
    #[must_use]
    pub fn read(&self) -> DynamicObject {
        let data = serde_json::from_str(&self.rest).expect("it was written from JSON");
        DynamicObject { types: None, metadata: self.metadata.clone(), data }
    }
}

impl<'de> Deserialize<'de> for Child {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let DynamicObject { types: _, mut metadata, data } = DynamicObject::deserialize(deserializer)?;
        // By far the largest part of many objects, and nobody reads it.
        metadata.managed_fields = None;
        let replicas = data.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
        Ok(Self {
            metadata,
            replicas: i32::try_from(replicas).unwrap_or(i32::MAX),
            rest: data.to_string().into_boxed_str(),
        })
    }
}

impl Resource for Child {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.as_str().into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().group.into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().version.into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_comes_back_as_it_was_without_its_managers() {
        let spec = json!({"replicas": 3, "template": {"z": 1, "a": [null, "é\n", 1.5]}});
        let status = json!({"readyReplicas": 2});
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "spec": spec, "status": status,
            "metadata": {"name": "n", "labels": {"a": "b"}, "managedFields": [{"manager": "m"}]},
        });
        let child: Child = serde_json::from_value(object).unwrap();
        assert_eq!((child.replicas(), child.meta().name.as_deref()), (3, Some("n")));
        let read = child.read();
        assert_eq!(read.data, json!({"spec": spec, "status": status}));
        assert_eq!(serde_json::to_value(&read.metadata).unwrap(), json!({"name": "n", "labels": {"a": "b"}}));
        let other: Child = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
        assert_eq!((other.replicas(), other.read().data), (0, json!({})));
    }
}
