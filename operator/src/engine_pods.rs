//! Engine pods by the model that they belong to, so that a reconcile looks at its own and no others.
//!
//! The index is made anew when pods have changed and somebody asks, and shared until they change again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use atlas_crds::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Engine pods by namespace and model.
#[derive(Debug, Default)]
pub struct EnginePods(HashMap<String, HashMap<String, Vec<Arc<Pod>>>>);

impl EnginePods {
    fn of_all(pods: Vec<Arc<Pod>>) -> Self {
        let mut index: HashMap<String, HashMap<String, Vec<Arc<Pod>>>> = HashMap::new();
        for pod in pods {
            let Some(model) = pod.labels().get(names::LABEL_MODEL).cloned() else { continue };
            let namespace = pod.namespace().unwrap_or_default();
            index.entry(namespace).or_default().entry(model).or_default().push(pod);
        }
        Self(index)
    }

    /// The pods of one model.
    #[must_use]
    pub fn of(&self, namespace: &str, model: &str) -> &[Arc<Pod>] {
        self.0.get(namespace).and_then(|models| models.get(model)).map_or(&[], Vec::as_slice)
    }
}

/// The newest index, and how often pods had changed when it was made.
#[derive(Debug, Default)]
pub struct EnginePodsCache {
    changes: AtomicU64,
    made: Mutex<Option<(u64, Arc<EnginePods>)>>,
}

impl EnginePodsCache {
    /// Notes that a pod has changed.
    pub fn invalidate(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The index of the pods as they are now.
    pub fn get(&self, pods: impl FnOnce() -> Vec<Arc<Pod>>) -> Arc<EnginePods> {
        // Counted before the pods are read: a change in between makes the next caller read them again.
        let changes = self.changes.load(Ordering::Acquire);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((at, index)) if *at == changes => Arc::clone(index),
            _ => {
                let index = Arc::new(EnginePods::of_all(pods()));
                *made = Some((changes, Arc::clone(&index)));
                index
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, name: &str, model: Option<&str>) -> Arc<Pod> {
        let labels = model.map(|model| json!({names::LABEL_MODEL: model}));
        let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
    }

    #[test]
    fn pods_are_found_by_their_model_and_read_again_after_a_change() {
        let cache = EnginePodsCache::default();
        let names = |index: &EnginePods, namespace: &str, model: &str| -> Vec<String> {
            index.of(namespace, model).iter().map(|pod| pod.name_any()).collect()
        };
        let first =
            cache.get(|| vec![pod("a", "1", Some("m")), pod("b", "2", Some("m")), pod("a", "3", None)]);
        assert_eq!((names(&first, "a", "m"), names(&first, "b", "m")), (vec!["1".into()], vec!["2".into()]));
        assert!(names(&first, "a", "other").is_empty() && names(&first, "c", "m").is_empty());
        let same = cache.get(|| panic!("nothing has changed"));
        assert_eq!(names(&same, "a", "m"), ["1"]);
        cache.invalidate();
        assert!(names(&cache.get(Vec::new), "a", "m").is_empty());
    }
}
